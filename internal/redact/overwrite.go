package redact

import (
	"bytes"
	"math"
)

const (
	lookBack = 2 << 10 // bytes before a carriage return in which its line and what it goes on from are looked for
	maxRow   = 1 << 10 // columns of a line that are followed
	restful  = 4 << 10 // bytes without a carriage return after which the next end of a line ends the work
)

// overwriter looks for needles in what a terminal shows where carriage returns overwrite lines. In the folded view, which is what is written, a carriage
// return is dropped as any white space is.
//
// Its outcome is a function of the bytes alone, as that of foldedLane, by whose means it searches.
//
// The plan:
//  1. A carriage return that no line feed follows puts it to work. Until then only that byte is looked for, and the last bytes are kept.
//  2. It then plays these again, as text up to the beginning of the line, and from there on as cells of a row.
//  3. A unit that has a cell is put where the cursor is. The text is what was before the row, and the row up to the cursor.
//  4. At the end of the row, and before the cursor goes back, what the row still shows behind the cursor follows the text. Those characters have no bytes of
//     their own: theirs may have gone out. A match masks the bytes that complete it, and none before the last carriage return.
type overwriter struct {
	lane  foldedLane
	from  int64  // where the stream began
	next  int64  // offset of the first byte not read yet
	past  []byte // the last bytes before next, lookBack of them and sometimes more
	on    bool
	back  int64  // offset of the last carriage return
	row   []byte // what the cells of the row leave in the folded view, 0 for nothing
	col   int    // where the cursor is
	first int64  // which character is the first of the row
	end   int64  // the offset behind what was put into a cell last
}

// restart forgets everything and goes on at offset, where another stream begins.
func (o *overwriter) restart(n *needles, offset int64) {
	o.from, o.next, o.past = offset, offset, o.past[:0]
	o.reset(n, offset)
}

// reset goes on at offset, which was read before or is the next, with other needles.
func (o *overwriter) reset(n *needles, offset int64) {
	o.past = o.past[:max(0, len(o.past)-int(o.next-offset))]
	o.next, o.on = offset, false
	o.lane.x, o.lane.pairs = n.folded, n.pairs
	if line := o.window()[o.lineStart():]; n.folded.longest > 0 {
		if _, found := returns(line, true); found {
			o.begin()
		}
	}
}

// read reads p, whose first byte has the absolute offset base, from next on, and puts matches into lane.hits. It leaves what cannot be decided yet.
func (o *overwriter) read(p []byte, base int64, atEnd bool) {
	if o.lane.x.longest == 0 {
		o.next = base + int64(len(p))
		return
	}
	for i := int(o.next - base); i < len(p); i = int(o.next - base) {
		n, found := 0, false
		if o.on {
			n = o.play(p[i:], o.next, atEnd)
		} else {
			n, found = returns(p[i:], atEnd)
		}
		o.remember(p[i : i+n])
		if found {
			o.begin()
		} else if n == 0 {
			break
		}
	}
	if o.on {
		if atEnd {
			o.show()
		}
		o.lane.scan()
	}
}

// returns returns how many bytes there are up to the first carriage return that no line feed follows, that included, and whether there is one. Without one it
// returns how many bytes are certain not to be one.
func returns(p []byte, atEnd bool) (n int, found bool) {
	for n < len(p) {
		i := bytes.IndexByte(p[n:], '\r')
		if i < 0 {
			return len(p), false
		}
		switch n += i; {
		case n+1 == len(p) && !atEnd:
			return n, false
		case n+1 == len(p) || p[n+1] != '\n':
			return n + 1, true
		}
		n += 2
	}
	return n, false
}

// remember takes p as read.
func (o *overwriter) remember(p []byte) {
	o.next += int64(len(p))
	if len(p) >= lookBack {
		o.past, p = o.past[:0], p[len(p)-lookBack:]
	} else if n := len(o.past) + len(p) - lookBack; n > lookBack {
		o.past = o.past[:copy(o.past, o.past[n:])]
	}
	o.past = append(o.past, p...)
}

// window returns the last bytes before next, as many as the offset alone decides.
func (o *overwriter) window() []byte { return o.past[max(0, len(o.past)-lookBack):] }

// lineStart returns where in the window the line begins. If that is not in it, the line is as good as empty.
func (o *overwriter) lineStart() int {
	w := o.window()
	if i := bytes.LastIndexByte(w, '\n'); i >= 0 {
		return i + 1
	}
	if o.next-int64(len(w)) == o.from {
		return 0
	}
	return max(0, len(w)-1)
}

// begin plays the window again: step 2 of the plan.
func (o *overwriter) begin() {
	w, start, l := o.window(), o.lineStart(), &o.lane
	base := o.next - int64(len(w))
	l.reset(l.x, l.pairs, base)
	l.floor, l.f.mend, o.end = base, 0, base
	l.room()
	each(w[:start], func(n, i int, c byte) { o.add(c, base+int64(i), n) })
	o.on, o.row, o.col, o.first, o.back = true, o.row[:0], 0, int64(len(l.text)), o.next
	o.play(w[start:], base+int64(start), true)
}

// play carries out p, whose first byte has the absolute offset at, and returns how many bytes of it it took.
func (o *overwriter) play(p []byte, at int64, atEnd bool) int {
	i := 0
	for i < len(p) && o.on {
		n, c := token(p[i:], atEnd)
		if n == 0 || p[i] == '\r' && i+1 == len(p) && !atEnd {
			break
		}
		o.step(p[i:], n, c, at+int64(i))
		i += n
	}
	o.lane.next = at + int64(i)
	return i
}

// step carries out one unit, the first n bytes of p.
func (o *overwriter) step(p []byte, n int, c byte, at int64) {
	switch b := p[0]; {
	case b == '\n':
		o.show()
		o.lane.scan()
		o.lane.room()
		o.row, o.col, o.first = o.row[:0], 0, o.lane.gone+int64(len(o.lane.text))
		o.on = at-o.back < restful
	case b == '\r':
		if len(p) > 1 && p[1] == '\n' {
			return
		}
		if o.col > 0 {
			o.show()
			o.cut(o.first)
			o.col = 0
		}
		o.back, o.lane.floor = at, at+1
	case b == '\b':
		if o.col == 0 {
			return
		}
		if o.col--; o.row[o.col] != 0 {
			o.cut(o.lane.gone + int64(len(o.lane.text)) - 1)
		}
	case c == 0 && !hasCell(b, n):
	case o.col < maxRow:
		if o.col == len(o.row) {
			o.row = append(o.row, 0)
		}
		o.row[o.col] = c
		o.col++
		o.end = at + int64(n)
		o.add(c, at, n)
	}
}

// hasCell reports whether a unit of n bytes that begins with b and leaves nothing in the folded view has a cell of its own. Control characters and what is
// no UTF-8 have none, nor have marks, joiners and tags.
func hasCell(b byte, n int) bool {
	switch {
	case b < 0x80:
		return b >= 0x20 && b != 0x7f
	case n == 1 || b == 0xCC || b == 0xCD || b == 0xE2 || b == 0xEF || b == 0xF3:
		return false
	}
	return true
}

// add appends a character to the text, 0 for none.
func (o *overwriter) add(c byte, at int64, n int) {
	if l := &o.lane; c != 0 {
		l.runs = append(l.runs, run{l.gone + int64(len(l.text)), at, uint16(n), 1, true})
		l.text = append(l.text, c)
	}
}

// show appends what the row still shows behind the cursor, as if it were of no bytes behind what was put into a cell last.
func (o *overwriter) show() {
	for _, c := range o.row[o.col:] {
		o.add(c, o.end, 0)
	}
}

// cut looks for needles in the text, then takes back the characters from the given one on.
func (o *overwriter) cut(char int64) {
	l := &o.lane
	l.scan()
	l.text = l.text[:char-l.gone]
	for len(l.runs) > 0 && l.runs[len(l.runs)-1].first >= char {
		l.runs = l.runs[:len(l.runs)-1]
	}
	l.barrier = min(l.barrier, char)
	l.f.restart(l.x, max(l.gone, char-int64(l.x.longest))) // no match that goes on begins before it
}

// live returns the index of the first character of the longest live match, and false if there is none.
func (o *overwriter) live() (int, bool) {
	if !o.on {
		return 0, false
	}
	i := o.lane.live()
	return i, i < len(o.lane.text)
}

// hold returns the offset from which on bytes may still become part of a match, the greatest number if there is none.
func (o *overwriter) hold() int64 {
	if i, ok := o.live(); ok {
		return max(o.lane.offset(i), o.lane.floor)
	}
	return math.MaxInt64
}

// wipe overwrites what it holds.
func (o *overwriter) wipe() {
	clear(o.past[:cap(o.past)])
	clear(o.row[:cap(o.row)])
	clear(o.lane.text[:cap(o.lane.text)])
}
