package redact

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"sort"
)

// Count says how many masks of a stream hold a value of Key found in Form. A mask that unites values of several keys counts once for each of them; of the
// forms of one key the longest match counts. A value that ends exactly where a longer match ends is not counted.
//
// The forms are raw, base64, base64url, hex, base32, url, json, go, python, shell, c, xml, quoted-printable, utf16, unicode-tags, full-width, reversed,
// reversed-base64, rot13, rot47, decimal, line and part; those found in the folded view only carry the prefix "folded-". The form partial is a live match that
// was masked at the end of a stream. Deep adds atbash, octal, binary, ascii85, base58, sha256, xor, shifted, nested and detected.
type Count struct {
	Key    string
	Form   string
	Stream string
	N      int
}

const piece = 64 << 10 // the most that is fed at once

// stream is the core of Writer, Reader and Scan: bytes in by feed, redacted bytes out in out.
//
// The plan:
//  1. New bytes are appended to buf. Both lanes read them and report matches.
//  2. A match is put into masks, where matches that overlap are one.
//  3. limit is the first byte that may still become part of a match: the least of what the lanes hold. A match found later begins there or after it.
//  4. What lies before limit goes out: plain bytes as they are, a mask that ends before limit as its text. A mask that reaches beyond limit is open. Its bytes
//     are dropped, its text waits for its end. So a periodic stream holds nothing.
//  5. Flush lets go of more: see flush.go.
type stream struct {
	set    *Set
	needs  *needles
	buf    []byte
	base   int64 // offset of buf[0]
	done   int64 // everything before it went out, or is the start of the open mask
	exact  search
	folded foldedLane
	over   overwriter
	masks  []mask // in order, apart from each other
	out    []byte
	spare  []byte // takes the place of out while that is a part of buf
	counts map[*label]int
	mute   bool  // count only
	steady bool  // hold back by position alone; see NewSteadyWriter
	keep   int64 // where the live match begins that went out in part, or the greatest number; see remember
	direct bool  // out is a part of buf
}

// mask is the union of overlapping matches.
type mask struct {
	start, end int64
	best       match
	others     []match // the longest of each other key
}

type match struct {
	start  int64
	length int
	label  *label
}

func newStream(set *Set) *stream {
	return &stream{set: set, keep: math.MaxInt64, counts: make(map[*label]int)}
}

// feed takes in p and puts what is certain into s.out, which is good until the next call. Callers cut long input into pieces, which bounds buf.
func (s *stream) feed(p []byte) error {
	if err := s.arm(); err != nil {
		return err
	}
	s.shrink()
	s.buf = append(s.buf, p...)
	s.read(false)
	if s.steady {
		s.release(max(s.end()-s.needs.lag(), s.done))
	} else {
		s.release(s.limit())
	}
	if s.keep != math.MaxInt64 {
		s.remember(s.live())
	}
	return nil
}

// lag is how many bytes a steady stream holds back: one less than the longest form takes.
func (n *needles) lag() int64 { return int64(max(n.spread, 1) - 1) }

// spread returns how many bytes p takes in a stream: a folded needle three for each character, which is enough for every byte of a value spelled as \u00NN,
// because the hex form has two characters for each byte; codes with a prefix or of three digits, half as much, which is as long.
func (p pattern) spread() int {
	switch {
	case !p.folded:
		return len(p.text)
	case p.form == foldedPrefix+formDecimal || p.form == foldedPrefix+formHex && bytes.HasPrefix(p.text, []byte("0x")):
		return len(p.text) * 3 / 2
	}
	return len(p.text) * 3
}

// read lets both lanes read what they have not read yet.
func (s *stream) read(atEnd bool) {
	s.exact.scan(s.buf, s.base)
	for _, h := range s.exact.hits {
		n := &s.exact.x.needles[h.id]
		s.found(span{h.start, h.start + int64(n.n), int(n.n), &s.exact.x.labels[n.label]})
	}
	s.exact.hits = s.exact.hits[:0]
	s.folded.read(s.buf, s.base, atEnd)
	for _, h := range s.folded.hits {
		s.found(h)
	}
	s.folded.hits = s.folded.hits[:0]
	s.over.read(s.buf, s.base, atEnd)
	for _, h := range s.over.lane.hits {
		s.found(h)
	}
	s.over.lane.hits = s.over.lane.hits[:0]
}

// arm takes up a new generation of the set and looks for its needles in what is held, and in what live matches began with. Matches that were found stay.
func (s *stream) arm() error {
	if s.needs != nil && s.needs.gen == s.set.gen.Load() {
		return nil
	}
	n, err := s.set.compiled()
	if err != nil {
		return err
	}
	s.shrink()
	exact, folded := s.done, s.done
	if s.needs != nil {
		e, f := s.live()
		exact, folded = min(e, s.done), min(f, s.done)
	}
	s.needs = n
	s.exact.restart(n.exact, exact)
	s.folded.reset(n.folded, n.pairs, folded)
	s.over.reset(n, min(s.over.next, s.done))
	s.read(false)
	return nil
}

// close masks a live match that shows too much of a value, and lets go of the rest.
func (s *stream) close() error {
	if err := s.arm(); err != nil {
		return err
	}
	s.shrink()
	s.read(true)
	if !s.steady {
		s.maskPartial()
	}
	s.release(s.end())
	s.keep = math.MaxInt64
	return nil
}

// maskPartial masks what is live.
func (s *stream) maskPartial() {
	if l, n := s.exact.x.partial(s.buf); l != nil {
		s.found(span{s.end() - int64(n), s.end(), n, partialOf(l)})
	}
	if i := s.folded.live(); i < len(s.folded.text) {
		s.maskFolded(&s.folded, i)
	}
	if i, ok := s.over.live(); ok {
		s.maskFolded(&s.over.lane, i)
	}
}

// maskFolded masks what is live in a folded view from character i on.
func (s *stream) maskFolded(f *foldedLane, i int) {
	if l, n := f.x.partial(f.text[i:]); l != nil {
		i := len(f.text)
		last, size := f.place(i - 1)
		s.found(span{max(f.offset(i-n), f.floor), last + size, n, partialOf(l)})
	}
}

// wipe overwrites what the stream holds, once its last output was used.
func (s *stream) wipe() {
	clear(s.buf[:cap(s.buf)])
	clear(s.folded.text[:cap(s.folded.text)])
	s.over.wipe()
}

func partialOf(l *label) *label {
	return &label{key: l.key, form: formPartial, folded: l.folded, mask: l.mask}
}

func (s *stream) end() int64 { return s.base + int64(len(s.buf)) }

// limit returns the first byte that may still become part of a match, a beginning of an escape and matches that backspaces could mend included.
func (s *stream) limit() int64 {
	return max(s.liveExact(min(s.folded.hold(), s.over.hold())), s.done)
}

// found takes in a match.
func (s *stream) found(h span) {
	start, end := max(h.start, s.done), h.end
	if start >= end {
		return
	}
	// masks[i:j] overlap the match.
	i := sort.Search(len(s.masks), func(i int) bool { return s.masks[i].end > start })
	j := i
	for j < len(s.masks) && s.masks[j].start < end {
		j++
	}
	if i == j {
		s.masks = slices.Insert(s.masks, i, mask{start: start, end: end, best: match{start, h.length, h.label}})
		return
	}
	m := &s.masks[i]
	m.start, m.end = min(m.start, start), max(end, s.masks[j-1].end)
	m.add(match{start, h.length, h.label})
	for _, o := range s.masks[i+1 : j] {
		m.add(o.best)
		for _, b := range o.others {
			m.add(b)
		}
	}
	if j > i+1 {
		s.masks = slices.Delete(s.masks, i+1, j)
	}
}

// add keeps the longest match of each key, the longest of all first.
func (m *mask) add(n match) {
	if n.label.key == m.best.label.key {
		if before(n, m.best) {
			m.best = n
		}
		return
	}
	i := slices.IndexFunc(m.others, func(o match) bool { return o.label.key == n.label.key })
	if i < 0 {
		i, m.others = len(m.others), append(m.others, n)
	} else if before(n, m.others[i]) {
		m.others[i] = n
	}
	if before(m.others[i], m.best) {
		m.best, m.others[i] = m.others[i], m.best
	}
}

// before is a total order of matches, so that the outcome does not depend on the order in which they are found.
func before(a, b match) bool {
	if a.length != b.length {
		return a.length > b.length
	}
	return cmp.Or(
		cmp.Compare(rank(a.label), rank(b.label)),
		cmp.Compare(a.start, b.start),
		cmp.Compare(a.label.key, b.label.key),
		cmp.Compare(a.label.form, b.label.form),
	) < 0
}

// rank prefers the exact view, which names a form more precisely.
func rank(p *label) int {
	if p.folded {
		return 1
	}
	return 0
}

// release puts out everything before limit: step 4 of the plan.
func (s *stream) release(limit int64) {
	n := 0
	for _, m := range s.masks {
		if m.start >= limit {
			break
		}
		s.plain(m.start)
		if m.end > limit {
			s.done = limit
			break
		}
		s.masked(m)
		s.done = max(s.done, m.end)
		n++
	}
	s.masks = slices.Delete(s.masks, 0, n)
	if len(s.masks) == 0 || s.masks[0].start >= limit {
		s.plain(limit)
	}
}

// plain puts out the bytes up to offset as they are. The first of them need no copy, as long as nothing follows.
func (s *stream) plain(offset int64) {
	if offset <= s.done {
		return
	}
	if p := s.buf[s.done-s.base : offset-s.base]; !s.mute {
		if len(s.out) == 0 && !s.direct {
			s.direct, s.out, s.spare = true, p, s.out
		} else {
			s.own()
			s.out = append(s.out, p...)
		}
	}
	s.done = offset
}

// own makes sure that out is not a part of buf.
func (s *stream) own() {
	if s.direct {
		s.direct, s.out = false, append(s.spare[:0], s.out...)
	}
}

func (s *stream) masked(m mask) {
	if !s.mute {
		s.own()
		s.out = append(s.out, m.best.label.mask...)
	}
	s.counts[m.best.label]++
	for _, b := range m.others {
		s.counts[b.label]++
	}
}

// shrink takes back out, which has been used, and drops bytes from buf that nobody needs any more.
func (s *stream) shrink() {
	if s.direct {
		s.direct, s.out = false, s.spare
	}
	s.out = s.out[:0]
	n := min(s.done, s.folded.next, s.over.next, s.keep) - s.base
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
	s.base += n
	s.folded.buf, s.folded.base = s.buf, s.base
}

// report returns the counts in a fixed order.
func (s *stream) report(name string) []Count {
	sum := make(map[Count]int) // a label may be in several generations of the set
	for l, n := range s.counts {
		sum[Count{Key: l.key, Form: l.form, Stream: name}] += n
	}
	return sorted(sum)
}

// sorted returns counts, whose keys have no N, in a fixed order.
func sorted(sum map[Count]int) []Count {
	var out []Count
	for c, n := range sum {
		c.N = n
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Stream, b.Stream), cmp.Compare(a.Form, b.Form))
	})
	return out
}
