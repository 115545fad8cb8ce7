package redact

import (
	"encoding/binary"
	"math/bits"
)

// sieve tells for many places of a text at once whether a gram of a set may begin there. Each gram is three bits of one word.
type sieve struct {
	bits []uint64
	most uint64 // the last word
	wide bool   // siftBlocks may be called
}

// finds is how many places a call of sift returns at most. The assembly knows it.
const finds = 64

// places are places of a text that passed a sieve, in order.
type places [finds]uint32

// newSieve makes an empty sieve of 1<<size bits, which are 64 at least.
func newSieve(size int) sieve {
	v := sieve{bits: make([]uint64, 1<<size/64), wide: canSift()}
	v.most = uint64(len(v.bits) - 1)
	return v
}

// gramHash mixes a gram. Bits 40 and up, as far as needed, give its word of a sieve, the highest six and those from 34 and from
// 28 on its three bits in it. The highest ones, as far as needed, also give its bucket, and those from 20 on its tag there.
func gramHash(gram uint64) uint64 { return (gram | lowerCase) * multiplier }

func (v *sieve) add(h uint64) { v.bits[h>>40&v.most] |= 1<<(h>>58) | 1<<(h>>34&63) | 1<<(h>>28&63) }

// may reports whether a gram with hash h may be in the set. False is certain.
func (v *sieve) may(h uint64) bool {
	word := v.bits[h>>40&v.most]
	return word>>(h>>58)&(word>>(h>>34&63))&(word>>(h>>28&63))&1 != 0
}

// sift looks at the places i, i+s, … of p, as far as eight bytes are left, at no more than mask of them, and puts those that may begin a gram into found. It
// returns how many these are and where to go on. That is not the end if found has no room for four more.
func (v *sieve) sift(p []byte, i, s int, mask uint64, found *places) (n, next int) {
	if v.wide && len(p)-i >= 3*s+8 {
		n, i = siftBlocks(&p[0], i, len(p), s, &v.bits[0], v.most, mask, &found[0])
	} else if !v.wide {
		n, i = v.siftFour(p, i, s, mask, found)
	}
	if n > finds-4 {
		return n, i
	}
	for ; i <= len(p)-8 && n < finds; i += s {
		if v.may(gramHash(binary.LittleEndian.Uint64(p[i:]) & mask)) {
			found[n] = uint32(i)
			n++
		}
	}
	return n, i
}

// siftFour is siftBlocks for any processor.
func (v *sieve) siftFour(p []byte, i, s int, mask uint64, found *places) (n, next int) {
	words, most := v.bits, v.most
	two := func(h uint64) uint64 {
		word := words[h>>40&most]
		return word >> (h >> 58) & (word >> (h >> 34 & 63))
	}
	for last := len(p) - 8 - 3*s; i <= last && n <= finds-4; {
		a, b := gramHash(binary.LittleEndian.Uint64(p[i:])&mask), gramHash(binary.LittleEndian.Uint64(p[i+s:])&mask)
		c, d := gramHash(binary.LittleEndian.Uint64(p[i+2*s:])&mask), gramHash(binary.LittleEndian.Uint64(p[i+3*s:])&mask)
		if (two(a)|two(b)|two(c)|two(d))&1 == 0 {
			i += 4 * s
			continue
		}
		for _, h := range [4]uint64{a, b, c, d} {
			if v.may(h) {
				found[n] = uint32(i)
				n++
			}
			i += s
		}
	}
	return n, i
}

// first returns the first place from i to end, without end, where the bytes of p in mask may be in the set, or end. Eight bytes must follow each place.
func (v *sieve) first(p []byte, i, end int, mask uint64) int {
	var found places
	for i < end {
		n, next := v.sift(p[:end+7], i, 1, mask, &found)
		if n > 0 {
			return int(found[0])
		}
		i = next
	}
	return max(i, end)
}

// bucket is where grams are in the needles: as much as the processor loads at once. Of each it has eight bits of the hash, its tag, which is not 0.
type bucket struct {
	tags  [12]uint8
	next  uint32 // the bucket with more of them, 0 for none
	grams [12]gram
}

// gram is a place in a needle: in the low fromBits the place, in the others the needle. These can name the needles
// of more than three million values, the index of which would take more than 10 GiB.
type gram uint32

const fromBits = 6

func gramAt(id uint32, from int) gram { return gram(id<<fromBits | uint32(from)) }
func (g gram) id() uint32             { return uint32(g >> fromBits) }
func (g gram) from() int              { return int(g & (1<<fromBits - 1)) }

func tagOf(h uint64) uint8 { return max(uint8(h>>20), 1) }

// more is set if a bucket has a next one.
const more = 1 << 63

// match returns which grams of b may have the tag: for gram i of the first eight bit 8i is set, for the others bit 8(i-8)+4. A set bit above another one
// need not mean anything.
func (b *bucket) match(tag uint8) uint64 {
	const each = 0x0101010101010101
	lo := binary.LittleEndian.Uint64(b.tags[:8]) ^ uint64(tag)*each
	hi := uint64(binary.LittleEndian.Uint32(b.tags[8:])) ^ uint64(tag)*(each>>32) | 0xffffffff<<32
	m := (lo-each)&^lo&(0x80*each)>>7 | (hi-each>>32)&^hi&(0x80*each)>>3
	if b.next != 0 {
		m |= more
	}
	return m
}

// which returns the gram of the lowest bit of m.
func which(m uint64) int {
	i := bits.TrailingZeros64(m)
	return i>>3 + i&4<<1
}

// put adds a gram with hash h to buckets, of which the first 1<<(64-shift) are those that a hash can name.
func put(buckets []bucket, shift uint8, h uint64, g gram) []bucket {
	b := &buckets[h>>shift]
	if b.tags[len(b.tags)-1] != 0 { // full: what it has moves to a bucket behind it
		buckets = append(buckets, *b)
		b = &buckets[h>>shift]
		*b = bucket{next: uint32(len(buckets) - 1)}
	}
	i := 0
	for b.tags[i] != 0 {
		i++
	}
	b.tags[i], b.grams[i] = tagOf(h), g
	return buckets
}
