package redact

import (
	"slices"
	"sort"
)

// automaton is an Aho–Corasick automaton (Aho and Corasick, CACM 18(6), 1975) that takes about 10 bytes for each state. It never changes once built, so
// it can be shared.
//
// The plan:
//  1. Needles are inserted in order of length. The new states of one needle have consecutive numbers, a run, so the child of a state is nearly always the next
//     number and only its label is stored. Other children are in a map.
//  2. Because of that order no needle ends inside an older run. The last state of run i is where needle i ends, and needle i is the shortest of
//     all needles that pass through its run.
//  3. Failure links are computed in order of depth.
//
// It is the search of [Deep], which is to find what the index of the streams may miss, and so shares nothing with it.
type automaton struct {
	label   []byte  // label[s] leads into state s
	fail    []int32 // state of the longest proper suffix
	depth   []int32
	flags   []uint8
	more    map[uint64]int32 // state<<8 | byte → child that is not state+1
	root    [256]int32
	runs    []added
	deepest int
}

// added is the states lo, lo+1, … that needle added, below state parent.
type added struct {
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
	a.runs = append(a.runs, added{lo: lo, parent: s, needle: pattern{key: p.key, form: p.form, folded: p.folded}})
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

// longest returns the longest needle that ends in s, which must have isEnd or endsIn set, and its length.
func (a *automaton) longest(s int32) (*pattern, int) {
	for a.flags[s]&isEnd == 0 {
		s = a.fail[s]
	}
	return &a.runs[a.runOf(s)].needle, int(a.depth[s])
}

func (a *automaton) runOf(s int32) int {
	return sort.Search(len(a.runs), func(i int) bool { return a.runs[i].lo > s }) - 1
}

// each calls found with the start and the length of every place where a needle ends, the longest one if several end there.
func (a *automaton) each(p []byte, found func(start, n int, needle *pattern)) {
	s := int32(0)
	for i, c := range p {
		s = a.step(s, c)
		if a.flags[s]&(isEnd|endsIn) != 0 {
			needle, n := a.longest(s)
			found(i+1-n, n, needle)
		}
	}
}
