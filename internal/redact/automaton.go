package redact

import (
	"encoding/binary"
	"slices"
	"sort"
)

// automaton is an Aho–Corasick automaton (Aho and Corasick, CACM 18(6), 1975) that takes about 10 bytes for each state. It never changes once built, so
// streams share it.
//
// The plan:
//  1. Needles are inserted in order of length. The new states of one needle have consecutive numbers, a run, so the child of a state is nearly always the next
//     number and only its label is stored. Other children are in a map.
//  2. Because of that order no needle ends inside an older run. The last state of run i is where needle i ends, and needle i is the shortest of
//     all needles that pass through its run.
//  3. Failure links are computed in order of depth.
//  4. A bit for each hash of the first four bytes of a needle lets a scan in the start state pass over text in which no needle can begin.
type automaton struct {
	label   []byte  // label[s] leads into state s
	fail    []int32 // state of the longest proper suffix
	depth   []int32
	flags   []uint8
	more    map[uint64]int32 // state<<8 | byte → child that is not state+1
	root    [256]int32
	runs    []run
	bits    []uint64 // nil if a needle is shorter than gram
	shift   uint32
	deepest int
}

// run is the states lo, lo+1, … that needle added, below state parent.
type run struct {
	lo, parent int32
	needle     pattern // without its text
}

const (
	hasNext = 1 << iota // state+1 is a child
	hasMore             // there are children in the map
	isEnd               // a needle ends here
	endsIn              // a needle ends here as a proper suffix
	isHead              // first state of a run
)

const gram = 4

// newAutomaton builds the automaton. It keeps no reference to the texts.
func newAutomaton(pats []pattern) *automaton {
	pats = slices.Clone(pats)
	slices.SortStableFunc(pats, func(a, b pattern) int { return len(a.text) - len(b.text) })
	total := 1
	for _, p := range pats {
		total += len(p.text)
	}
	a := &automaton{more: make(map[uint64]int32), label: make([]byte, 1, total), depth: make([]int32, 1, total), flags: make([]uint8, 1, total)}
	for _, p := range pats {
		a.insert(p)
	}
	a.link()
	a.filter(pats)
	return a
}

// insert adds one needle: steps 1 and 2 of the plan. A needle that is there already is ignored.
func (a *automaton) insert(p pattern) {
	s, i := int32(0), 0
	for ; i < len(p.text); i++ {
		t, ok := a.child(s, p.text[i])
		if !ok {
			break
		}
		s = t
	}
	if i == len(p.text) {
		return
	}
	lo := int32(len(a.label))
	switch {
	case s == 0:
		a.root[p.text[i]] = lo
	case lo == s+1:
		a.flags[s] |= hasNext
	default:
		a.flags[s] |= hasMore
		a.more[edge(s, p.text[i])] = lo
	}
	a.runs = append(a.runs, run{lo: lo, parent: s, needle: pattern{key: p.key, form: p.form, folded: p.folded}})
	d := a.depth[s]
	for ; i < len(p.text); i++ {
		d++
		a.label = append(a.label, p.text[i])
		a.depth = append(a.depth, d)
		a.flags = append(a.flags, hasNext)
	}
	a.flags[lo] |= isHead
	last := len(a.flags) - 1
	a.flags[last] = a.flags[last]&^hasNext | isEnd
	a.deepest = max(a.deepest, int(d))
}

// link computes the failure links: step 3.
func (a *automaton) link() {
	a.fail = make([]int32, len(a.label))
	next := make([]int32, a.deepest+2)
	for _, d := range a.depth {
		next[d+1]++
	}
	for d := 1; d < len(next); d++ {
		next[d] += next[d-1]
	}
	order := make([]int32, len(a.label))
	for s, d := range a.depth {
		order[next[d]] = int32(s)
		next[d]++
	}
	for _, s := range order[1:] {
		parent := s - 1
		if a.flags[s]&isHead != 0 {
			parent = a.runs[a.runOf(s)].parent
		}
		if parent != 0 {
			a.fail[s] = a.step(a.fail[parent], a.label[s])
		}
		if a.flags[a.fail[s]]&(isEnd|endsIn) != 0 {
			a.flags[s] |= endsIn
		}
	}
}

// filter fills the bitmap: step 4.
func (a *automaton) filter(pats []pattern) {
	if len(pats) == 0 || len(pats[0].text) < gram {
		return
	}
	log := uint32(13)
	for log < 22 && 1<<log < 64*len(pats) {
		log++
	}
	a.shift = 32 - log
	a.bits = make([]uint64, 1<<(log-6))
	for _, p := range pats {
		h := hash(binary.LittleEndian.Uint32(p.text)) >> a.shift
		a.bits[h/64] |= 1 << (h % 64)
	}
}

func hash(g uint32) uint32 { return g * 0x9E3779B1 }

func edge(s int32, c byte) uint64 { return uint64(s)<<8 | uint64(c) }

func (a *automaton) child(s int32, c byte) (int32, bool) {
	if s == 0 {
		return a.root[c], a.root[c] != 0
	}
	f := a.flags[s]
	if f&hasNext != 0 && a.label[s+1] == c {
		return s + 1, true
	}
	if f&hasMore != 0 {
		t, ok := a.more[edge(s, c)]
		return t, ok
	}
	return 0, false
}

// step returns the state after c.
func (a *automaton) step(s int32, c byte) int32 {
	for s != 0 {
		if t, ok := a.child(s, c); ok {
			return t
		}
		s = a.fail[s]
	}
	return a.root[c]
}

// skip returns the first index from i on where a needle may begin, which is at the latest where fewer than gram bytes are left.
func (a *automaton) skip(p []byte, i int) int {
	bits, shift := a.bits, a.shift&31
	for i+8 <= len(p) {
		w := binary.LittleEndian.Uint64(p[i:])
		h0, h1 := hash(uint32(w))>>shift, hash(uint32(w>>8))>>shift
		h2, h3 := hash(uint32(w>>16))>>shift, hash(uint32(w>>24))>>shift
		b0, b1 := bits[h0/64]>>(h0%64)&1, bits[h1/64]>>(h1%64)&1
		b2, b3 := bits[h2/64]>>(h2%64)&1, bits[h3/64]>>(h3%64)&1
		if b0|b1|b2|b3 == 0 {
			i += 4
			continue
		}
		switch {
		case b0 != 0:
			return i
		case b1 != 0:
			return i + 1
		case b2 != 0:
			return i + 2
		}
		return i + 3
	}
	for ; i+gram <= len(p); i++ {
		if h := hash(binary.LittleEndian.Uint32(p[i:])) >> shift; bits[h/64]>>(h%64)&1 != 0 {
			break
		}
	}
	return i
}

// alive returns how many of the last bytes are the beginning of a needle that has not ended, in state s.
func (a *automaton) alive(s int32) int {
	for s != 0 && a.flags[s]&(hasNext|hasMore) == 0 {
		s = a.fail[s]
	}
	return int(a.depth[s])
}

// longest returns the longest needle that ends in s, which must have isEnd or endsIn set, and its length.
func (a *automaton) longest(s int32) (*pattern, int) {
	for a.flags[s]&isEnd == 0 {
		s = a.fail[s]
	}
	return &a.runs[a.runOf(s)].needle, int(a.depth[s])
}

// partial returns the longest beginning of a needle that s ends in and that is so much of the needle, min(8, half), that it must not be shown. If a whole
// needle ends here, that is masked already.
func (a *automaton) partial(s int32) (*pattern, int) {
	for ; s != 0; s = a.fail[s] {
		i := a.runOf(s)
		d, n := int(a.depth[s]), a.length(i)
		if d == n {
			break
		}
		if d >= min(8, (n+1)/2) {
			return &a.runs[i].needle, d
		}
	}
	return nil, 0
}

// length returns the length of needle i.
func (a *automaton) length(i int) int {
	end := len(a.label)
	if i+1 < len(a.runs) {
		end = int(a.runs[i+1].lo)
	}
	return int(a.depth[end-1])
}

func (a *automaton) runOf(s int32) int {
	return sort.Search(len(a.runs), func(i int) bool { return a.runs[i].lo > s }) - 1
}
