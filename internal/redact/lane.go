package redact

import (
	"encoding/binary"
	"sort"
)

const (
	maxGap     = 64 << 10 // dropped bytes that one folded match may hold
	ghosts     = 16       // kept characters for which a broken match may still be mended by backspaces
	ghostDepth = 4        // shorter broken matches are forgotten at once
	ghostReach = 4 << 10  // and so are those that lie further back
	maxErase   = 64       // backspaces in a row
	batch      = 8 << 10
	runBytes   = 512 // in a run at most
)

// foldedLane looks for needles in the folded view.
//
// Its outcome is a function of the bytes alone, not of how they arrive: token decides only when it has seen enough, all limits count bytes or
// characters of the stream, and what a backspace takes back was looked at before.
//
// The plan:
//  1. Two bytes at a time, a table tells which characters they leave, how many, and whether there is more to it. Only then token reads them.
//  2. Where the characters came from is not kept for each of them, but for runs of bytes that step 1 read, and for each token. The place of a
//     character is found by counting back from the end of its run.
//  3. The characters are searched like the bytes of the exact view.
type foldedLane struct {
	x     *index
	f     search
	pairs *pairTable
	next  int64 // offset of the first byte not read yet
	floor int64 // matches do not reach back beyond this
	buf   []byte
	base  int64 // offset of buf[0]

	// The last kept characters and their runs. gone characters were before text[0]; top is the most there ever were.
	text []byte
	runs []run
	gone int64
	top  int64
	hits []span
	// No match begins with a character before barrier: it would hold too many dropped bytes.
	barrier int64
}

// run is size bytes from the offset start on, which left kept characters, the first of which is first. Unless it is a token, each of those is one byte.
type run struct {
	first, start int64
	size, kept   uint16
	token        bool
}

// last is the character after those of the run, and end the offset after its bytes.
func (r *run) last() int64 { return r.first + int64(r.kept) }
func (r *run) end() int64  { return r.start + int64(r.size) }

// span is a match in offsets of the stream, of which length are characters of the needle.
type span struct {
	start, end int64
	length     int
	label      *label
}

// reset forgets everything and goes on at offset.
func (l *foldedLane) reset(x *index, pairs *pairTable, offset int64) {
	l.x, l.pairs, l.next, l.floor = x, pairs, offset, offset
	l.text, l.runs = l.text[:0], l.runs[:0]
	l.gone, l.top, l.barrier = 0, 0, 0
	l.f.mend = ghosts
	l.f.restart(x, 0)
}

// read reads p, whose first byte has the absolute offset base, from l.next on, and puts matches into hits. It leaves what token cannot decide yet.
func (l *foldedLane) read(p []byte, base int64, atEnd bool) {
	l.buf, l.base = p, base
	if l.x.longest == 0 {
		l.next = base + int64(len(p))
		return
	}
	for i := int(l.next - base); i < len(p); {
		l.room()
		j, undecided := l.take(i, atEnd)
		l.next = base + int64(j)
		l.scan()
		if undecided {
			return
		}
		if i = j; i < len(p) && p[i] == '\b' {
			l.erase()
			i++
			l.next++
		}
	}
}

// take appends kept characters until a backspace, the end of buf, an undecided token or a full batch. It returns the index of the first byte it did not
// take, and whether that cannot be decided yet.
func (l *foldedLane) take(i int, atEnd bool) (next int, undecided bool) {
	p, k := l.buf, len(l.text)
	room := min(cap(l.text), k+batch)
	text := l.text[:room]
	for i < len(p) && k+runBytes <= room {
		from, first := i, k
		if i, k = l.pairs.fold(text, k, p, i, min(len(p), i+runBytes)); k > first {
			l.ran(first, k, from, i)
		}
		for i < len(p) && k+runBytes <= room && l.pairs.special(p[i]) {
			if p[i] == '\b' {
				l.text = l.text[:k]
				return i, false
			}
			n, c := token(p[i:], atEnd)
			if n == 0 {
				l.text = l.text[:k]
				return i, true
			}
			if c != 0 {
				text[k] = c
				l.runs = append(l.runs, run{l.gone + int64(k), l.base + int64(i), uint16(n), 1, true})
				k++
			}
			i += n
		}
	}
	l.text = l.text[:k]
	return i, false
}

// ran adds a run that is no token, in indexes of text and buf, or makes the last one longer.
func (l *foldedLane) ran(first, last, start, end int) {
	at, from := l.gone+int64(first), l.base+int64(start)
	if n := len(l.runs) - 1; n >= 0 {
		r := &l.runs[n]
		if r.end() == from && r.last() == at && int(r.size)+end-start <= runBytes && !r.token {
			r.size, r.kept = r.size+uint16(end-start), r.kept+uint16(last-first)
			return
		}
	}
	l.runs = append(l.runs, run{at, from, uint16(end - start), uint16(last - first), false})
}

// room makes room for a batch and keeps the characters that a live match, a backspace or both can reach back to.
func (l *foldedLane) room() {
	keep := l.x.longest + ghosts + maxErase
	if n := len(l.text); n > keep+batch {
		l.gone += int64(n - keep)
		l.text = append(l.text[:0], l.text[n-keep:]...)
		r := 0
		for r < len(l.runs) && l.runs[r].last() <= l.gone {
			r++
		}
		l.runs = append(l.runs[:0], l.runs[r:]...)
	}
	if need := len(l.text) + batch; cap(l.text) < need {
		l.text = append(make([]byte, 0, 2*need), l.text...)
	}
}

// scan looks for needles in what was taken.
func (l *foldedLane) scan() {
	l.f.scan(l.text, l.gone)
	for _, h := range l.f.hits {
		n := &l.x.needles[h.id]
		i := int(h.start - l.gone)
		last := i + int(n.n) - 1
		start, _ := l.place(i)
		end, size := l.place(last)
		if h.start < l.barrier || end-start-int64(last-i) > maxGap {
			continue
		}
		l.f.done = max(l.f.done, h.start+int64(n.n))
		l.hits = append(l.hits, span{max(start, l.floor), end + size, int(n.n), &l.x.labels[n.label]})
	}
	l.f.hits = l.f.hits[:0]
	l.f.prune()
	l.top = max(l.top, l.gone+int64(len(l.text)))
}

// place returns the offset of character i and how many bytes it takes. Of one that has left the buffer it returns where the buffer begins, and no bytes.
func (l *foldedLane) place(i int) (offset, size int64) {
	at := l.gone + int64(i)
	run := &l.runs[len(l.runs)-1] // most are asked for at the end
	if run.first > at {
		run = &l.runs[max(0, sort.Search(len(l.runs), func(i int) bool { return l.runs[i].first > at })-1)]
	}
	if run.token {
		return run.start, int64(run.size)
	}
	left, o := run.last()-at, run.end()-l.base
	for o >= 8 && run.size >= 8 { // eight bytes at a time, as long as it is not among them
		n := keptOf(binary.LittleEndian.Uint64(l.buf[o-8:]))
		if n >= left || l.base+o-8 < run.start {
			break
		}
		left, o = left-n, o-8
	}
	for o--; o >= 0; o-- {
		if asciiAlnum(l.buf[o]) != 0 {
			if left--; left == 0 {
				return l.base + o, 1
			}
		}
	}
	return l.base, 0
}

// offset returns the offset of the first byte of character i.
func (l *foldedLane) offset(i int) int64 {
	offset, _ := l.place(i)
	return offset
}

// wide reports whether the characters from i on hold more dropped bytes than a match may.
func (l *foldedLane) wide(i int) bool {
	return l.next-l.offset(i)-int64(len(l.text)-i) > maxGap
}

// erase takes back the last character.
func (l *foldedLane) erase() {
	n := len(l.text) - 1
	if n < 0 || l.gone+int64(n) < l.top-maxErase {
		return
	}
	l.floor = l.hold()
	l.text = l.text[:n]
	for r := len(l.runs) - 1; r >= 0 && l.runs[r].first >= l.gone+int64(n); r-- {
		l.runs = l.runs[:r]
	}
	l.f.cut(l.gone + int64(n))
}

// live returns the index of the first character of the longest live match.
func (l *foldedLane) live() int {
	if l.x.longest == 0 {
		return len(l.text)
	}
	i := int(l.f.live(l.text, l.gone, l.barrier, l.f.end) - l.gone)
	for i < len(l.text) && l.wide(i) { // the longer of two live matches always holds more
		l.barrier = l.gone + int64(i) + 1
		i = int(l.f.live(l.text, l.gone, l.barrier, l.f.end) - l.gone)
	}
	return i
}

// hold returns the offset from which on bytes may still become part of a match: those of the longest live match and of a broken one that backspaces could
// mend.
func (l *foldedLane) hold() int64 {
	if l.x.longest == 0 {
		return max(l.next, l.floor)
	}
	from, i := l.next, 0
	if len(l.f.open) == 0 {
		i = l.held()
		l.f.quiet = max(l.f.quiet, l.gone+int64(i))
		if i == len(l.text) || !l.wide(i) {
			if i < len(l.text) {
				from = l.offset(i)
			}
			return max(from, l.floor)
		}
	}
	if i = l.live(); i < len(l.text) {
		from = l.offset(i)
	}
	return max(min(from, l.ghost(i)), l.floor)
}

// held returns the index of the first character of a live match or of a broken one that could be mended, whichever comes first, as long as no candidate is
// open: what live and ghost say together, in one pass.
func (l *foldedLane) held() int {
	text, h := l.text, &l.x.heads
	n := len(text)
	tail := int(max(l.barrier-l.gone, l.f.quiet-l.gone, int64(n-l.x.reach), 0)) // no live match begins before it
	j, near := max(0, n-l.x.reach-ghosts), n-ghosts-7                           // as in ghost
	for j = h.eight.first(text, j, near, eight); j < near; j = h.eight.first(text, j+1, near, eight) {
		if l.keeps(j, tail) {
			return j
		}
	}
	for j = h.four.first(text, j, n-7, four); j < n-7; j = h.four.first(text, j+1, n-7, four) {
		if l.keeps(j, tail) {
			return j
		}
	}
	for ; j+ghostDepth <= n; j++ {
		if h.may(load(text, j), ghostDepth) && l.keeps(j, tail) {
			return j
		}
	}
	return l.x.live(text, max(j, tail), n)
}

// keeps reports whether at character j a match begins that is live, unless j is before tail, or broken and may be mended.
func (l *foldedLane) keeps(j, tail int) bool {
	d := l.x.matched(l.text[j:])
	if j+d == len(l.text) {
		return j >= tail && l.x.begins(l.text[j:])
	}
	return d >= ghostDepth && l.mendable(j+d)
}

// ghost returns the offset of the first broken match before character i that could be mended.
func (l *foldedLane) ghost(i int) int64 {
	from, n := l.next, len(l.text)
	for _, c := range l.f.open {
		if c.upto < l.f.end && c.start >= l.gone {
			if o := l.offset(int(c.start - l.gone)); o < from && l.mendable(int(c.upto-l.gone)) {
				from = o
			}
		}
	}
	j, near := max(0, n-l.x.reach-ghosts), min(i, n-ghosts-7) // what begins before near and can be mended agrees in eight characters
	for j = l.x.heads.eight.first(l.text, j, near, eight); j < near; j = l.x.heads.eight.first(l.text, j+1, near, eight) {
		if l.broken(j) {
			return min(from, l.offset(j))
		}
	}
	for ; j < i && j+ghostDepth <= n; j++ {
		if l.x.heads.may(load(l.text, j), ghostDepth) && l.broken(j) {
			return min(from, l.offset(j))
		}
	}
	return from
}

// broken reports whether at character j a match begins that is broken and may be mended.
func (l *foldedLane) broken(j int) bool {
	d := l.x.matched(l.text[j:])
	return d >= ghostDepth && j+d < len(l.text) && l.mendable(j+d)
}

// mendable reports whether backspaces may still mend what broke before character i.
func (l *foldedLane) mendable(i int) bool {
	return i > len(l.text)-ghosts && l.gone+int64(i) > l.f.done && l.next-l.offset(i-1) <= ghostReach
}
