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
//     exactly one gram of the window of each needle in it. So a scan loads q bytes, hashes them, and tests one bit, once for every s bytes.
//  2. Needles are in classes by length, as the shortest needle of a class limits its s: s = shortest-q+1.
//  3. A bit that is set leads to a bucket of places (of the gram in the arena, and whose it is), and each of those to a comparison with the text.
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

// place is where a gram of a window is in the arena, and its needle.
type place struct{ at, id uint32 }

// class is the needles of one range of lengths.
type class struct {
	q, s   int
	mask   uint64 // the first q bytes of a load
	bits   []uint64
	most   uint64   // the last word of bits
	wide   bool     // sampleBlocks may be called
	few    uint64   // the last bucket
	starts []uint32 // bucket i is places[starts[i]:starts[i+1]]
	places []place
}

const (
	longNeedle = 16 // from here on q is 8
	midNeedle  = 4  // from here on q is 4; below it is the length of the shortest
	maxStride  = 16
	maxWindow  = 24      // a window begins at the latest there
	maxBits    = 1 << 23 // 1 MiB: more would not stay in the caches
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
	c.mask, c.wide = ^uint64(0)>>(64-8*c.q), canCompact()
	size := 10 // log2 of the bits: one in 32 is set, while they stay in the cache
	for size < 22 && 1<<size < 32*count*c.s {
		size++
	}
	c.most = 1<<(size-6) - 1
	buckets := 5
	for buckets < size && 1<<buckets < count*c.s/2 {
		buckets++
	}
	c.few = 1<<buckets - 1
	x.fill(&c, lo, hi, size, buckets)
	x.classes = append(x.classes, c)
}

// fill chooses the windows and fills bits, starts and places by counting.
func (x *index) fill(c *class, lo, hi, size, buckets int) {
	common := x.commonGrams(c, lo, hi)
	c.bits = make([]uint64, max(1, 1<<size/64))
	c.starts = make([]uint32, 1<<buckets+1)
	each := func(visit func(p place, h uint64)) {
		for id := range x.needles {
			n := &x.needles[id]
			if int(n.n) < lo || int(n.n) > hi {
				continue
			}
			at := n.at + uint32(n.window)
			for k := range uint32(c.s) {
				visit(place{at + k, uint32(id)}, c.hash(load(x.arena, int(at+k))))
			}
		}
	}
	for id := range x.needles {
		n := &x.needles[id]
		if int(n.n) >= lo && int(n.n) <= hi {
			n.class = uint16(len(x.classes))
			n.window = c.rarest(x.text(uint32(id)), common)
		}
	}
	each(func(_ place, h uint64) {
		c.bits[h>>40&c.most] |= 1<<(h>>58) | 1<<(h>>34&63) | 1<<(h>>28&63)
		c.starts[h>>20&c.few+1]++
	})
	for i := 1; i < len(c.starts); i++ {
		c.starts[i] += c.starts[i-1]
	}
	c.places = make([]place, c.starts[len(c.starts)-1])
	next := slices.Clone(c.starts)
	each(func(p place, h uint64) {
		b := h >> 20 & c.few
		c.places[next[b]] = p
		next[b]++
	})
}

// gramCounts counts grams by hash, up to 255.
type gramCounts [1 << 16]uint8

func (x *index) commonGrams(c *class, lo, hi int) *gramCounts {
	var counts gramCounts
	for id, n := range x.needles {
		if int(n.n) < lo || int(n.n) > hi {
			continue
		}
		text := x.text(uint32(id))
		for i := 0; i+c.q <= len(text) && i < maxWindow+maxStride; i++ {
			if p := &counts[c.hash(load(text, i))>>48]; *p < 255 {
				*p++
			}
		}
	}
	return &counts
}

// rarest returns where the window of a needle is to begin: the first place where the most common gram of it is as rare as it gets.
func (c *class) rarest(text []byte, common *gramCounts) uint16 {
	best, least := 0, 256
	limit := 8 // what is as rare as this stays near the front
	for w := 0; w <= maxWindow && w+c.s-1+c.q <= len(text); w++ {
		most := 0
		for k := 0; k < c.s && most < least; k++ {
			gram := load(text, w+k) & c.mask
			most = max(most, int(common[gramHash(gram)>>48]))
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

// gramHash mixes a gram. Bits 40 and up, as far as needed, give its word of the filter, the highest six and those from 34 and from
// 28 on its three bits in it, and bits 20 and up its bucket.
func gramHash(gram uint64) uint64 { return (gram | lowerCase) * multiplier }

func (c *class) hash(w uint64) uint64 { return gramHash(w & c.mask) }

// may reports whether a gram with hash h may be in a window. False is certain.
func (c *class) may(h uint64) bool {
	word := c.bits[h>>40&c.most]
	return word>>(h>>58)&(word>>(h>>34&63))&(word>>(h>>28&63))&1 != 0
}

// load returns eight bytes from i on, or what there is of them.
func load(p []byte, i int) uint64 {
	if i+8 <= len(p) {
		return binary.LittleEndian.Uint64(p[i:])
	}
	var b [8]byte
	copy(b[:], p[i:])
	return binary.LittleEndian.Uint64(b[:])
}

// skip returns the first of the places i, i+s, … of p where a gram of the class may be, or the first where fewer than eight bytes are left.
func (c *class) skip(p []byte, i int) int {
	bits, s, mask, most := c.bits, c.s, c.mask, c.most
	for c.wide && len(p)-i >= 3*s+8 {
		from := p[i:]
		i += sampleBlocks(&from[0], len(from), s, &bits[0], most, mask)
		for end := min(i+4*s, len(p)-7); i < end; i += s {
			if c.may(c.hash(binary.LittleEndian.Uint64(p[i:]))) {
				return i
			}
		}
	}
	for last := len(p) - 8 - 3*s; i <= last; i += 4 * s {
		h0 := gramHash(binary.LittleEndian.Uint64(p[i:]) & mask)
		h1 := gramHash(binary.LittleEndian.Uint64(p[i+s:]) & mask)
		h2 := gramHash(binary.LittleEndian.Uint64(p[i+2*s:]) & mask)
		h3 := gramHash(binary.LittleEndian.Uint64(p[i+3*s:]) & mask)
		if bits[h0>>40&most]&(1<<(h0>>58)) != 0 && c.may(h0) {
			return i
		}
		if bits[h1>>40&most]&(1<<(h1>>58)) != 0 && c.may(h1) {
			return i + s
		}
		if bits[h2>>40&most]&(1<<(h2>>58)) != 0 && c.may(h2) {
			return i + 2*s
		}
		if bits[h3>>40&most]&(1<<(h3>>58)) != 0 && c.may(h3) {
			return i + 3*s
		}
	}
	for ; i <= len(p)-8; i += s {
		if c.may(gramHash(binary.LittleEndian.Uint64(p[i:]) & mask)) {
			break
		}
	}
	return i
}
