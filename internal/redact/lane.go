package redact

const (
	maxGap     = 64 << 10 // dropped bytes that one folded match may hold
	ghosts     = 16       // kept characters for which a broken match may still be mended by backspaces
	ghostDepth = 4        // shorter broken matches are forgotten at once
	ghostReach = 4 << 10  // and so are those that lie further back
	maxErase   = 64       // backspaces in a row
	batch      = 4 << 10
	maxOffsets = 1 << 30
)

// foldedLane looks for needles in the folded view.
//
// Its outcome is a function of the bytes alone, not of how they arrive: token decides only when it has seen enough, all limits count bytes or
// characters of the stream, and what a backspace takes back was looked at before.
type foldedLane struct {
	x     *index
	f     search
	class *[256]byte
	next  int64 // offset of the first byte not read yet
	prev  byte  // the byte before, and the one before that
	prev2 byte
	floor int64 // matches do not reach back beyond this

	// The last kept characters, and of each the offset of its first byte, counted from zero. gone characters were before text[0]; top is the most there
	// ever were.
	text []byte
	at   []uint32
	zero int64
	gone int64
	top  int64
	hits []span
}

// span is a match in offsets of the stream, of which length are characters of the needle.
type span struct {
	start, end int64
	length     int
	label      *label
}

// reset forgets everything and goes on at offset.
func (l *foldedLane) reset(x *index, offset int64) {
	l.x, l.next, l.floor, l.zero = x, offset, offset, offset
	l.text, l.at = l.text[:0], l.at[:0]
	l.gone, l.top = 0, 0
	l.f.mend = ghosts
	l.f.restart(x, 0)
}

// read reads p, whose first byte has the absolute offset base, from l.next on, and puts matches into hits. It leaves what token cannot decide yet.
func (l *foldedLane) read(p []byte, base int64, atEnd bool) {
	if l.x.longest == 0 {
		l.next = base + int64(len(p))
		return
	}
	for i := int(l.next - base); i < len(p); {
		l.room()
		j, more := l.take(p, i, base, atEnd)
		l.scan(p, base)
		if j == i && !more {
			return
		}
		l.passed(p, i, j)
		l.next = base + int64(j)
		if i = j; i < len(p) && l.class[p[i]] == erase {
			l.erase()
			l.passed(p, i, i+1)
			l.next++
			i++
		}
	}
}

// passed remembers the last bytes of p[i:j].
func (l *foldedLane) passed(p []byte, i, j int) {
	switch {
	case j-i >= 2:
		l.prev2, l.prev = p[j-2], p[j-1]
	case j-i == 1:
		l.prev2, l.prev = l.prev, p[j-1]
	}
}

// take appends kept characters until a backspace, the end of p, an undecided token or a full batch. It returns the index of the first byte it did not
// take, and whether there is something to do at once.
func (l *foldedLane) take(p []byte, i int, base int64, atEnd bool) (int, bool) {
	k, first := len(l.text), i
	room := min(cap(l.text), k+batch)
	text, at, class := l.text[:room], l.at[:room], l.class
	delta := uint32(base - l.zero)
	before := func(j int) byte { // the byte before p[j]
		switch first - j {
		case 0:
			return l.prev
		case 1:
			return l.prev2
		}
		return p[j-1]
	}
	last := len(p) // a 0 in the end may begin 0x
	if !atEnd {
		last -= l.zeros(p, i, before)
	}
	more := true
	for i < last && k < room {
		// The common case first, without a branch on kept or dropped.
		end := min(last, i+room-k)
		for ; i < end; i++ {
			c := class[p[i]]
			if c-1 < isKept-1 {
				break
			}
			text[k], at[k] = c, uint32(i)+delta
			k += int(c >> 5 & 1)
		}
		if i == end {
			continue
		}
		c := class[p[i]]
		if c == erase {
			break
		}
		if c == letterX {
			if k > 0 && text[k-1] == '0' && at[k-1] == uint32(i)+delta-1 && asciiAlnum(before(i-1)) == 0 && i+1 < len(p) && digit(p[i+1]) < 16 {
				k--
			} else {
				text[k], at[k] = 'x', uint32(i)+delta
				k++
			}
			i++
			continue
		}
		n, c := token(p[i:], before(i), atEnd)
		if n == 0 {
			more = false
			break
		}
		if c != 0 {
			text[k], at[k] = c, uint32(i)+delta
			k++
		}
		i += n
	}
	if i == last && last < len(p) {
		more = false
	}
	// Likewise a 0 at the end of a batch: it is read again with the next.
	if k == room && i < len(p) && i-1 > first && text[k-1] == '0' && at[k-1] == uint32(i)+delta-1 {
		k--
		i--
	}
	l.text, l.at = l.text[:k], l.at[:k]
	return i, more
}

// zeros returns how many bytes at the end of p, from i on, may begin the prefix of a hexadecimal number: 0 or 0x.
func (l *foldedLane) zeros(p []byte, i int, before func(int) byte) int {
	n := len(p)
	switch {
	case n-1 >= i && p[n-1] == '0' && asciiAlnum(before(n-1)) == 0:
		return 1
	case n-2 >= i && p[n-1]|0x20 == 'x' && p[n-2] == '0' && asciiAlnum(before(n-2)) == 0:
		return 2
	}
	return 0
}

// room makes room for a batch and keeps the characters that a live match, a backspace or both can reach back to.
func (l *foldedLane) room() {
	keep := l.x.longest + ghosts + maxErase
	if n := len(l.text); n > keep+batch {
		l.gone += int64(n - keep)
		l.text = append(l.text[:0], l.text[n-keep:]...)
		l.at = append(l.at[:0], l.at[n-keep:]...)
	}
	if need := len(l.text) + batch; cap(l.text) < need || cap(l.at) < need {
		l.text = append(make([]byte, 0, 2*need), l.text...)
		l.at = append(make([]uint32, 0, 2*need), l.at...)
	}
	if l.next-l.zero > maxOffsets { // what becomes 0 lies further back than any match may reach
		by := l.next - maxOffsets/2 - l.zero
		for i, o := range l.at {
			l.at[i] = uint32(max(0, int64(o)-by))
		}
		l.zero += by
	}
}

// scan looks for needles in what was taken.
func (l *foldedLane) scan(p []byte, base int64) {
	l.f.scan(l.text, l.gone)
	for _, h := range l.f.hits {
		n := &l.x.needles[h.id]
		i := int(h.start - l.gone)
		last := i + int(n.n) - 1
		if l.offset(last)-l.offset(i)-int64(last-i) > maxGap {
			continue
		}
		l.f.done = max(l.f.done, h.start+int64(n.n))
		end := l.offset(last)
		size, _ := token(p[end-base:], 'a', true)
		l.hits = append(l.hits, span{max(l.offset(i), l.floor), end + int64(size), int(n.n), &l.x.labels[n.label]})
	}
	l.f.hits = l.f.hits[:0]
	l.f.prune()
	l.top = max(l.top, l.gone+int64(len(l.text)))
}

// offset returns the offset of the first byte of character i.
func (l *foldedLane) offset(i int) int64 { return l.zero + int64(l.at[i]) }

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
	l.floor = l.hold(true)
	l.text, l.at = l.text[:n], l.at[:n]
	l.f.cut(l.gone + int64(n))
}

// live returns the index of the first character of the longest live match.
func (l *foldedLane) live() int {
	i := len(l.text)
	if l.x.longest > 0 {
		i = int(l.f.live(l.text, l.gone) - l.gone)
	}
	for i < len(l.text) && l.wide(i) { // the longer of two live matches always holds more
		i = l.x.live(l.text, i+1)
	}
	return i
}

// hold returns the offset from which on bytes may still become part of a match: those of the longest live match and, with mend, of a broken one that
// backspaces could mend.
func (l *foldedLane) hold(mend bool) int64 {
	from, i := l.next, l.live()
	if i < len(l.text) {
		from = l.offset(i)
	}
	if mend && l.x.longest > 0 {
		from = min(from, l.ghost(i))
	}
	return max(from, l.floor)
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
	for j := max(0, n-l.x.reach-ghosts); j < i && j+ghostDepth <= n; j++ {
		if l.offset(j) >= from {
			break
		}
		if !has(l.x.heads.four, (load(l.text, j)&0xffffffff)*multiplier>>l.x.heads.shift) {
			continue
		}
		if d := l.x.matched(l.text[j:]); d >= ghostDepth && j+d < n && l.mendable(j+d) {
			return l.offset(j)
		}
	}
	return from
}

// mendable reports whether backspaces may still mend what broke before character i.
func (l *foldedLane) mendable(i int) bool {
	return i > len(l.text)-ghosts && l.gone+int64(i) > l.f.done && l.next-l.offset(i-1) <= ghostReach
}
