package redact

import (
	"bytes"
	"slices"
)

// search is how far one stream has come in an index. Places are counted from the start of the stream.
type search struct {
	x    *index
	next [3]int64 // of each class: the next place to look at
	from int64    // where it began
	end  int64    // of what was looked at
	open []candidate
	hits []occurrence
	// found and matches are what look goes through; see there.
	found   places
	matches [finds]uint64
	// mend is for how many bytes a candidate that is broken is kept, as the text may be taken back; done is the end of the last hit, before which none is
	// kept; and places before twice were looked at before.
	mend, done, twice int64
	// quiet is a place before which no live match begins, and none will: what breaks stays broken, but for what is taken back.
	quiet int64
}

// candidate is a needle that the stream may hold from start on. It agrees up to upto. If that is not the end of the stream, it is broken there.
type candidate struct {
	start, upto int64
	id          uint32
}

// occurrence is a needle that the stream holds.
type occurrence struct {
	start int64
	id    uint32
}

// restart forgets everything and goes on at place at.
func (f *search) restart(x *index, at int64) {
	f.x, f.open, f.hits = x, f.open[:0], f.hits[:0]
	f.from, f.end, f.done, f.twice, f.quiet = at, at, at, at, 0
	f.next = [3]int64{at, at, at}
}

// cut takes back what is at end and after it.
func (f *search) cut(end int64) {
	f.twice, f.end, f.quiet = max(f.twice, f.end), end, 0
	for i := range f.open {
		f.open[i].upto = min(f.open[i].upto, end)
	}
	f.open = slices.DeleteFunc(f.open, func(c candidate) bool { return c.start >= end })
	for k := range f.x.classes {
		c := &f.x.classes[k]
		if n := f.next[k] - int64(c.s) + int64(c.q) - end; n > 0 {
			f.next[k] = max(f.from, f.next[k]-(n+int64(c.s)-1)/int64(c.s)*int64(c.s))
		}
	}
}

// scan looks at the text p, whose first byte is at base, as far as it has not yet. What it finds goes to hits, in no order.
func (f *search) scan(p []byte, base int64) {
	f.extend(p, base)
	f.end = base + int64(len(p))
	for k := range f.x.classes {
		c := &f.x.classes[k]
		i := int(f.next[k] - base)
		if i < 0 { // what is gone was part of nothing
			i += (c.s - 1 - i) / c.s * c.s
		}
		for i+c.q <= len(p) {
			var n int
			n, i = c.sift(p, i, &f.found)
			f.look(c, p, base, f.found[:n])
		}
		f.next[k] = base + int64(i)
	}
}

// look compares the needles that may have the grams at the given places in their windows. It first goes to the buckets of all of them, as the processor then
// waits for these together.
func (f *search) look(c *class, p []byte, base int64, found []uint32) {
	for k, i := range found {
		h := c.hash(load(p, int(i)))
		f.matches[k] = c.buckets[h>>c.shift].match(tagOf(h))
	}
	for k, i := range found {
		m := f.matches[k]
		if m == 0 {
			continue
		}
		w := load(p, int(i))
		h := c.hash(w)
		for b := &c.buckets[h>>c.shift]; ; b = &c.buckets[b.next] {
			for m &^= more; m != 0; m &= m - 1 {
				f.try(c, p, base, int(i), w, b.grams[which(m)])
			}
			if b.next == 0 {
				break
			}
			m = c.buckets[b.next].match(tagOf(h))
		}
	}
}

// try compares the needle of gram g with the text around place i of p, which begins with w.
func (f *search) try(c *class, p []byte, base int64, i int, w uint64, g gram) {
	arena, from, n := f.x.arena, g.from(), &f.x.needles[g.id()]
	first, size := i-from, int(n.n)
	if first < 0 || (load(arena, int(n.at)+from)^w)&c.mask != 0 {
		return
	}
	// The end of a needle tells most of the others. If it is not there yet, or if it may be mended, all is compared.
	if end := first + size; size >= 8 && end+int(f.mend) <= len(p) && load(arena, int(n.at)+size-8) != load(p, end-8) {
		return
	}
	text, rest := f.x.text(g.id()), p[first:]
	if !bytes.Equal(text[:from], rest[:from]) {
		return
	}
	at, start := base+int64(i), base+int64(first)
	if at < f.twice && slices.ContainsFunc(f.open, func(o candidate) bool { return o.id == g.id() && o.start == start }) {
		return
	}
	f.compare(candidate{start: start, upto: at, id: g.id()}, text, rest)
}

// compare goes on with candidate c, whose text begins at rest[0], from upto on.
func (f *search) compare(c candidate, text, rest []byte) {
	from := int(c.upto - c.start)
	to := min(len(text), len(rest))
	switch {
	case bytes.Equal(text[from:to], rest[from:to]):
		if to == len(text) {
			f.hits = append(f.hits, occurrence{c.start, c.id})
			return
		}
		c.upto = c.start + int64(to)
	case f.mend == 0:
		return
	default:
		c.upto += int64(common(text[from:to], rest[from:to]))
		if c.start+int64(len(rest))-c.upto >= f.mend {
			return
		}
	}
	f.open = append(f.open, c)
}

// extend goes on with the candidates that are not broken.
func (f *search) extend(p []byte, base int64) {
	if len(f.open) == 0 {
		return
	}
	open := f.open
	f.open = f.open[:0]
	for _, c := range open { // each adds one at most, so that nothing is overwritten before it is read
		switch {
		case c.start < base:
		case c.upto < f.end:
			f.open = append(f.open, c)
		default:
			f.compare(c, f.x.text(c.id), p[c.start-base:])
		}
	}
}

// prune forgets candidates that are broken for good.
func (f *search) prune() {
	if f.mend == 0 || len(f.open) == 0 {
		return
	}
	f.open = slices.DeleteFunc(f.open, func(c candidate) bool { return c.upto < f.end && (c.upto <= f.done || f.end-c.upto >= f.mend) })
}

// live returns where the longest beginning of a needle is that the text p, whose first byte is at base, ends in; and the end if it ends in none. What begins
// before floor does not count, and for what begins at before or after it, before is returned.
func (f *search) live(p []byte, base, floor, before int64) int64 {
	tail := max(floor, base, f.quiet, f.end-int64(f.x.reach))
	at := min(tail, before)
	for _, c := range f.open {
		if c.upto == f.end && c.start < at && c.start >= floor {
			at = c.start
		}
	}
	if at >= tail {
		at = base + int64(f.x.live(p, int(tail-base), int(before-base)))
	}
	f.quiet = max(f.quiet, at)
	return at
}
