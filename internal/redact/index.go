package redact

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// index finds needles in text by looking at one short piece of it in every few bytes. It never changes once built, so streams share it.
//
// The plan, after Wu and Manber ("A fast algorithm for multi-pattern searching", 1994) and rsync's rolling windows:
//  1. A gram is q bytes next to each other. Of every needle, s consecutive grams are kept: its window. A text that is looked at in every s-th place meets
//     exactly one gram of the window of each needle in it. So a scan loads q bytes, hashes them, and tests a few bits, once for every s bytes: see sieve.
//  2. Needles are in classes by length, as the shortest needle of a class limits its s: s = shortest-q+1.
//  3. What passes that test leads to a bucket of grams (which needle, and where in it), and each of those to a comparison with the text.
//  4. The window of a needle is where its grams are rare among all needles, so that public beginnings such as "ghp_" cost nothing.
//  5. What a text ends in is compared with the beginnings of all needles, which are in order of their texts: see heads.
type index struct {
	arena   []byte   // the texts of the needles, one after the other
	needles []needle // in order of their texts, each text once
	first   []uint64 // of each needle the first eight bytes, as headOf returns them
	labels  []label
	classes []class
	heads   heads
	longest int
	// shortest is the length of the shortest needle; short are those of fewer than minNeedle bytes, in order of their texts.
	shortest int
	short    []uint32
	// reach is how many bytes of a needle may be in a text before its window is seen for sure.
	reach int
}

// needle is a text in the arena.
type needle struct {
	at, n  uint32
	label  uint32
	window uint16 // where its window begins
	class  uint16
}

// label is what a match is counted as.
type label struct {
	key    string
	form   string
	folded bool
	mask   string
}

// class is the needles of one range of lengths.
type class struct {
	sieve
	q, s    int
	mask    uint64 // the first q bytes of a load
	shift   uint8  // of a hash, so that the number of a bucket is left
	buckets []bucket
}

const (
	longNeedle = 16 // from here on q is 8
	midNeedle  = 4  // from here on q is 4; below it is the length of the shortest
	maxStride  = 16
	maxWindow  = 24 // a window begins at the latest there
	multiplier = 0x9E3779B97F4A7C15
	lowerCase  = 0x2020202020202020 // so that hexadecimal digits in both cases are one gram
)

// newIndex builds the index. Of several needles with the same text the first one counts. It keeps no reference to the texts.
func newIndex(pats []pattern) *index {
	x := &index{}
	x.order(pats)
	for _, bounds := range [][2]int{{longNeedle, MaxValue}, {midNeedle, longNeedle - 1}, {1, midNeedle - 1}} {
		x.addClass(bounds[0], bounds[1])
	}
	for i, n := range x.needles {
		if n.n < minNeedle {
			x.short = append(x.short, uint32(i))
		}
		c := x.classes[n.class]
		x.reach = max(x.reach, int(n.window)+c.s-1+c.q)
	}
	x.heads = headsOf(x)
	return x
}

// text returns the bytes of needle i.
func (x *index) text(i uint32) []byte {
	n := &x.needles[i]
	return x.arena[n.at : n.at+n.n]
}

// order fills arena, needles and labels.
func (x *index) order(pats []pattern) {
	type headed struct {
		head uint64
		i    int
	}
	sorted := make([]headed, len(pats))
	total := 0
	for i, p := range pats {
		sorted[i] = headed{headOf(p.text), i}
		total += len(p.text)
	}
	slices.SortFunc(sorted, func(a, b headed) int {
		if c := cmp.Compare(a.head, b.head); c != 0 {
			return c
		}
		return cmp.Or(bytes.Compare(pats[a.i].text, pats[b.i].text), cmp.Compare(a.i, b.i))
	})
	x.arena = make([]byte, 0, total)
	x.needles, x.first = make([]needle, 0, len(pats)), make([]uint64, 0, len(pats))
	ids, masks := make(map[label]uint32), make(map[string]string)
	for k, h := range sorted {
		p := pats[h.i]
		if k > 0 && bytes.Equal(p.text, pats[sorted[k-1].i].text) {
			continue
		}
		name := label{key: p.key, form: p.form, folded: p.folded}
		id, ok := ids[name]
		if !ok {
			id = uint32(len(x.labels))
			ids[name] = id
			if masks[p.key] == "" {
				masks[p.key] = maskOf(p.key)
			}
			x.labels = append(x.labels, label{p.key, p.form, p.folded, masks[p.key]})
		}
		x.needles = append(x.needles, needle{at: uint32(len(x.arena)), n: uint32(len(p.text)), label: id})
		x.first = append(x.first, h.head)
		x.arena = append(x.arena, p.text...)
		x.longest = max(x.longest, len(p.text))
		if x.shortest == 0 || len(p.text) < x.shortest {
			x.shortest = len(p.text)
		}
	}
}

// headOf returns the first eight bytes as a number that sorts as they do.
func headOf(t []byte) uint64 {
	if len(t) >= 8 {
		return binary.BigEndian.Uint64(t)
	}
	var b [8]byte
	copy(b[:], t)
	return binary.BigEndian.Uint64(b[:])
}

// addClass makes the class of the needles of lo to hi bytes, if there are any: steps 1 to 4 of the plan.
func (x *index) addClass(lo, hi int) {
	shortest, count := 0, 0
	for _, n := range x.needles {
		if l := int(n.n); l >= lo && l <= hi {
			count++
			if shortest == 0 || l < shortest {
				shortest = l
			}
		}
	}
	if count == 0 {
		return
	}
	c := class{q: min(lo, shortest)}
	if lo == longNeedle {
		c.q = 8
	} else if lo < midNeedle {
		c.q = shortest
	}
	c.s = min(shortest-c.q+1, maxStride)
	c.mask = ^uint64(0) >> (64 - 8*c.q)
	size := 10 // log2 of the bits: a third of 32 to 64 is set while they stay in the first cache, of 16 to 32 while they stay in the next
	for size < 19 && 1<<size < 32*count*c.s || size < 22 && 1<<size < 16*count*c.s {
		size++
	}
	c.sieve = newSieve(size)
	buckets := 1 // log2 of them: they are two thirds full at most, on average
	for buckets < 26 && 8<<buckets < count*c.s {
		buckets++
	}
	c.shift = uint8(64 - buckets)
	c.buckets = make([]bucket, 1<<buckets)
	x.fill(&c, lo, hi)
	x.classes = append(x.classes, c)
}

// fill chooses the windows and fills the sieve and the buckets.
func (x *index) fill(c *class, lo, hi int) {
	common := x.commonGrams(c, lo, hi)
	for id := range x.needles {
		n := &x.needles[id]
		if int(n.n) < lo || int(n.n) > hi {
			continue
		}
		n.class = uint16(len(x.classes))
		n.window = c.rarest(x.text(uint32(id)), common)
		for from := int(n.window); from < int(n.window)+c.s; from++ {
			h := c.hash(load(x.arena, int(n.at)+from))
			c.add(h)
			c.buckets = put(c.buckets, c.shift, h, gramAt(uint32(id), from))
		}
	}
	c.buckets = slices.Clone(c.buckets) // without what append has left free
}

// gramCounts counts grams by hash, up to 255. There are as many counts as grams, about, so that few share one by chance.
type gramCounts struct {
	shift  uint8
	counts []uint8
}

func (g *gramCounts) of(gram uint64) *uint8 { return &g.counts[gramHash(gram)>>g.shift] }

func (x *index) commonGrams(c *class, lo, hi int) *gramCounts {
	size := 16
	for size < 22 && 1<<size < (maxWindow+maxStride)*len(x.needles) {
		size++
	}
	g := &gramCounts{uint8(64 - size), make([]uint8, 1<<size)}
	for id, n := range x.needles {
		if int(n.n) < lo || int(n.n) > hi {
			continue
		}
		text := x.text(uint32(id))
		for i := 0; i+c.q <= len(text) && i < maxWindow+maxStride; i++ {
			if p := g.of(load(text, i) & c.mask); *p < 255 {
				*p++
			}
		}
	}
	return g
}

// rarest returns where the window of a needle is to begin: the first place where the most common gram of it is as rare as it gets.
func (c *class) rarest(text []byte, common *gramCounts) uint16 {
	best, least := 0, 256
	limit := 8 // what is as rare as this stays near the front
	for w := 0; w <= maxWindow && w+c.s-1+c.q <= len(text); w++ {
		most := 0
		for k := 0; k < c.s && most < least; k++ {
			gram := load(text, w+k) & c.mask
			most = max(most, int(*common.of(gram)))
			if gram == gram<<8&c.mask|gram&0xff { // one byte repeated: padding, rulers, zeros
				most = 255
			}
		}
		if most < least && least > limit { // what is rare enough stays near the front
			best, least = w, most
		}
	}
	return uint16(best)
}

func (c *class) hash(w uint64) uint64 { return gramHash(w & c.mask) }

// load returns eight bytes from i on, or what there is of them.
func load(p []byte, i int) uint64 {
	if i+8 <= len(p) {
		return binary.LittleEndian.Uint64(p[i:])
	}
	var b [8]byte
	copy(b[:], p[i:])
	return binary.LittleEndian.Uint64(b[:])
}

// sift puts the places i, i+s, … of p where a gram of the class may be into found, and returns how many these are and where to go on. That is where the text
// ends, or before it if found is full or nearly so.
func (c *class) sift(p []byte, i int, found *places) (n, next int) {
	n, i = c.sieve.sift(p, i, c.s, c.mask, found)
	for i > len(p)-8 && i+c.q <= len(p) && n < finds { // shorter grams, where eight bytes are not left
		if c.may(c.hash(load(p, i))) {
			found[n] = uint32(i)
			n++
		}
		i += c.s
	}
	return n, i
}
