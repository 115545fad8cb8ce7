package redact

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
)

const (
	defaultDepth  = 3
	defaultBudget = 64 << 20
)

// Deep redacts what is to be stored: all of it is at hand, and there is time. It looks for the forms that a [Writer] looks for, by a search of its own, so
// that one finds what the other may miss, and for more:
//
//   - what a terminal would show: carriage returns, backspaces and cursor movement in a line are carried out;
//   - encodings within encodings: base64, base32, hex, percent escapes, gzip and zlib, to a depth of three, with every alignment;
//   - what only counts as a whole: octal and binary dumps, base58, ASCII85, atbash, and the SHA-256 of a value;
//   - a value of 12 bytes and more of which every byte was changed by the same XOR or by the same addition;
//   - where Detectors are given, what looks like a credential or like personal data, without being known.
//
// A hit in a decoded text masks all of the text it was decoded from. The zero value works, with the limits of its fields' comments. A Deep may be used by
// several goroutines.
type Deep struct {
	Depth     int // encodings within each other; 0 means 3
	Budget    int // bytes that are decoded for each text; 0 means 64 MiB
	Detectors []Detector
}

// Report is what Deep found.
type Report struct {
	Counts []Count
	// Exhausted says that there was more to decode than the budget allows, so that a value may be left in it.
	Exhausted bool
}

// Redact returns p with masks, in memory of its own, and what they hide. The stream of the counts is name. It fails with ErrWiped if the set is nil or wiped.
func (d Deep) Redact(p []byte, set *Set, name string) ([]byte, Report, error) {
	a, err := set.thorough()
	if err != nil {
		return nil, Report{}, fmt.Errorf("redacting %s: %w", name, err)
	}
	run := deepRun{a: a, left: d.Budget, depth: d.Depth}
	if run.left == 0 {
		run.left = defaultBudget
	}
	if run.depth == 0 {
		run.depth = defaultDepth
	}
	sum := make(map[Count]int)
	for range maxPasses {
		out, counts := d.pass(&run, p, set, name)
		add(sum, counts)
		if p = out; len(counts) == 0 || run.exhausted {
			break
		}
	}
	return p, Report{Counts: sorted(sum), Exhausted: run.exhausted}, nil
}

const maxPasses = 4

// pass masks what is found at once.
func (d Deep) pass(run *deepRun, p []byte, set *Set, name string) ([]byte, []Count) {
	s := newStream(set)
	s.buf = bytes.Clone(p)
	run.search(p, 0, func(start, end, n int, l *label) { s.found(span{int64(start), int64(end), n, l}) })
	for _, det := range d.Detectors {
		for _, h := range det.Find(p) {
			s.found(span{int64(h[0]), int64(h[1]), h[1] - h[0], &label{key: det.name, form: FormDetected, mask: maskOf(det.name)}})
		}
	}
	s.release(s.end())
	return append([]byte{}, s.out...), s.report(name)
}

// thorough are the automata of Deep. They never change.
type thorough struct {
	gen                    uint64
	exact, folded          *automaton
	changedXOR, changedAdd *automaton
}

// thorough returns the automata of the current generation and builds them if they are not there yet.
func (s *Set) thorough() (*thorough, error) {
	if s == nil {
		return nil, ErrWiped
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wiped {
		return nil, ErrWiped
	}
	if s.deep == nil || s.deep.gen != s.gen.Load() {
		s.deep = thoroughOf(s.vals)
		s.deep.gen = s.gen.Load()
	}
	return s.deep, nil
}

const minChanged = 12

func thoroughOf(vals []entry) *thorough {
	var exact, folded, xor, sum []pattern
	for _, e := range vals {
		for _, p := range append(formsOf(e.value), rareForms(e.value)...) {
			if p.key = e.key; p.folded {
				folded = append(folded, p)
			} else {
				exact = append(exact, p)
			}
		}
		if len(e.value) >= minChanged && !weak(e.value) {
			xor = append(xor, pattern{key: e.key, form: formXOR, text: differences(e.value, byXOR)})
			sum = append(sum, pattern{key: e.key, form: formShifted, text: differences(e.value, byAdd)})
		}
	}
	return &thorough{exact: newAutomaton(exact), folded: newAutomaton(folded), changedXOR: newAutomaton(xor), changedAdd: newAutomaton(sum)}
}

const (
	byXOR = false
	byAdd = true
)

// differences returns how each byte differs from the one before it. That is the same however all of them were changed.
func differences(p []byte, add bool) []byte {
	out := make([]byte, max(0, len(p)-1))
	for i := range out {
		if out[i] = p[i+1] ^ p[i]; add {
			out[i] = p[i+1] - p[i]
		}
	}
	return out
}

// deepRun is one call of Deep.
type deepRun struct {
	a         *thorough
	left      int
	depth     int
	exhausted bool
}

// search looks for values in p, which was decoded level times.
func (d *deepRun) search(p []byte, level int, found func(start, end, n int, l *label)) {
	d.a.exact.each(p, func(start, n int, needle *pattern) { found(start, start+n, n, labelOf(needle)) })
	for _, v := range viewsOf(p) {
		d.a.folded.each(v.text, func(start, n int, needle *pattern) {
			lo, hi := v.at[start].start, v.at[start].end
			for _, o := range v.at[start : start+n] {
				lo, hi = min(lo, o.start), max(hi, o.end)
			}
			if hi-lo-n <= maxGap {
				found(lo, hi, n, labelOf(needle))
			}
		})
	}
	d.changed(p, found)
	if level >= d.depth {
		return
	}
	var hits [][2]int
	for _, b := range blobsOf(p) {
		// What a run has shown by itself is not to take its neighbors along. Should they hide more, another pass finds that.
		if b.joined && slices.ContainsFunc(hits, func(h [2]int) bool { return b.start <= h[0] && h[1] <= b.end }) {
			continue
		}
		decoded := b.decode(p, &d.left)
		if d.left <= 0 {
			d.exhausted = true
			return
		}
		for _, text := range decoded {
			d.search(text, level+1, func(_, _, n int, l *label) {
				hits = append(hits, [2]int{b.start, b.end})
				found(b.start, b.end, n, &label{key: l.key, form: formNested, mask: l.mask})
			})
		}
	}
}

// changed looks for values of which every byte was changed in the same way.
func (d *deepRun) changed(p []byte, found func(start, end, n int, l *label)) {
	d.a.changedXOR.each(differences(p, byXOR), func(start, n int, needle *pattern) { found(start, start+n+1, n+1, labelOf(needle)) })
	d.a.changedAdd.each(differences(p, byAdd), func(start, n int, needle *pattern) { found(start, start+n+1, n+1, labelOf(needle)) })
}

func labelOf(p *pattern) *label {
	return &label{key: p.key, form: p.form, folded: p.folded, mask: maskOf(p.key)}
}

// Missed compares the lanes: it returns what Deep finds in the output of a Writer, Reader or JSON. Anything there is an incident. The text between two masks is
// looked at by itself, so that no mask completes a value.
func (d Deep) Missed(output []byte, set *Set, name string) ([]Count, error) {
	d.Detectors = nil
	sum := make(map[Count]int)
	maskText := regexp.MustCompile(`\[sealed:[A-Za-z0-9_.-]{1,64}\]`)
	for _, part := range maskText.Split(string(output), -1) {
		_, r, err := d.Redact([]byte(part), set, name)
		if err != nil {
			return nil, err
		}
		add(sum, r.Counts)
	}
	return sorted(sum), nil
}
