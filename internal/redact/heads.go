package redact

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"sort"
)

// heads tells whether a short text can be the beginning of a needle: by its first byte, its first two, three, four and eight. Only what passes is
// looked up among the needles.
type heads struct {
	one         [4]uint64
	two         []uint64
	three       headSet
	four, eight sieve
}

// Masks of the first bytes of a load.
const (
	four  = 1<<32 - 1
	eight = 1<<64 - 1
)

// headSet is a set of numbers. It may seem to have more than were put into it, about one in 300: each is two of its bits.
type headSet struct {
	bits  []uint64
	shift uint8
}

func newHeadSet(size int) headSet { return headSet{make([]uint64, 1<<size/64), uint8(64 - size)} }

func (h *headSet) set(w uint64) {
	w *= multiplier
	set(h.bits, w>>h.shift)
	set(h.bits, w<<20>>h.shift)
}

func (h *headSet) has(w uint64) bool {
	w *= multiplier
	shift := h.shift & 63
	return has(h.bits, w>>shift) && has(h.bits, w<<20>>shift)
}

func headsOf(x *index) heads {
	size := 12
	for size < 20 && 1<<size < 32*len(x.needles) {
		size++
	}
	h := heads{two: make([]uint64, 1<<10), three: newHeadSet(min(size, 18)), four: newSieve(size), eight: newSieve(size)}
	for i := range x.needles {
		w := load(x.text(uint32(i)), 0)
		set(h.one[:], w&0xff)
		set(h.two, w&0xffff)
		h.three.set(w & 0xffffff)
		h.four.add(gramHash(w & four))
		h.eight.add(gramHash(w))
	}
	return h
}

func set(bits []uint64, i uint64) { bits[i>>6] |= 1 << (i & 63) }
func has(bits []uint64, i uint64) bool {
	return bits[i>>6]>>(i&63)&1 != 0
}

// may reports whether the text of n bytes that w begins with can be the beginning of a needle. False is certain.
func (h *heads) may(w uint64, n int) bool {
	switch {
	case n >= 8:
		return h.eight.may(gramHash(w))
	case n >= 4:
		return h.four.may(gramHash(w & four))
	case n == 3:
		return h.three.has(w & 0xffffff)
	case n == 2:
		return has(h.two, w&0xffff)
	}
	return has(h.one[:], w&0xff)
}

// live returns the first place from i to before, without before, where p[i:] is the beginning, and not all, of a needle; or before.
func (x *index) live(p []byte, i, before int) int {
	end := min(len(p)-7, before)
	for i = x.heads.eight.first(p, i, end, eight); i < end; i = x.heads.eight.first(p, i+1, end, eight) {
		if x.begins(p[i:]) {
			return i
		}
	}
	if i >= before {
		return before
	}
	for w := tail(p, i); i < before; i, w = i+1, w>>8 {
		n := len(p) - i
		if !x.heads.may(w, n) {
			continue
		}
		if n <= 2 && x.shortest > 2 || x.begins(p[i:]) { // of one and two bytes the heads know all
			return i
		}
	}
	return i
}

// tail returns load(p, i) where no more than eight bytes are left.
func tail(p []byte, i int) uint64 {
	if n := len(p) - 8; n >= 0 {
		return binary.LittleEndian.Uint64(p[n:]) >> (8 * uint(i-n))
	}
	return load(p, i)
}

// find returns the first needle that is not before t in order: by the first eight bytes, and only of those that agree in them by all.
func (x *index) find(t []byte) int {
	head := headOf(t)
	i, some := slices.BinarySearch(x.first, head)
	if !some {
		return i
	}
	n, _ := slices.BinarySearchFunc(x.first[i:], head, func(a, b uint64) int { return cmp.Or(cmp.Compare(a, b), -1) })
	return i + sort.Search(n, func(k int) bool { return bytes.Compare(x.text(uint32(i+k)), t) >= 0 })
}

// begins reports whether t is the beginning of a needle that is longer than t.
func (x *index) begins(t []byte) bool {
	i := x.find(t)
	if i < len(x.needles) && int(x.needles[i].n) == len(t) { // t itself, or one that comes after it: then no needle begins with t but t
		if i++; !bytes.Equal(x.text(uint32(i-1)), t) {
			return false
		}
	}
	return i < len(x.needles) && bytes.HasPrefix(x.text(uint32(i)), t)
}

// matched returns how many bytes of t, from its start, are the beginning of a needle.
func (x *index) matched(t []byte) int {
	i, best := x.find(t), 0
	for _, k := range []int{i - 1, i} {
		if k >= 0 && k < len(x.needles) {
			best = max(best, common(x.text(uint32(k)), t))
		}
	}
	return best
}

func common(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// partial returns the longest beginning of a needle that p ends in and that is so much of the needle, min(8, half), that it must not be shown. If a whole
// needle ends here, that is masked already.
func (x *index) partial(p []byte) (*label, int) {
	for i := max(0, len(p)-x.longest); i < len(p); i++ {
		t := p[i:]
		if len(t) < min(8, (x.shortest+1)/2) {
			break
		}
		if !x.heads.may(load(t, 0), len(t)) {
			continue
		}
		k, shortest := x.find(t), -1
		for ; k < len(x.needles) && bytes.HasPrefix(x.text(uint32(k)), t); k++ {
			if shortest < 0 || x.needles[k].n < x.needles[shortest].n {
				shortest = k
			}
		}
		if shortest < 0 {
			continue
		}
		n := int(x.needles[shortest].n)
		if len(t) == n {
			break
		}
		if len(t) >= min(8, (n+1)/2) {
			return &x.labels[x.needles[shortest].label], len(t)
		}
	}
	return nil, 0
}
