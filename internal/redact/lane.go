package redact

const (
	maxGap     = 64 << 10 // dropped bytes that one folded match may hold
	ghosts     = 16       // kept characters for which a broken match may still be mended by backspaces
	ghostDepth = gram     // shorter broken matches are forgotten at once
	ghostReach = 4 << 10  // and so are those that lie further back
	maxErase   = 64       // backspaces in a row
	batch      = 4 << 10
)

// hit receives a match: it covers the bytes from start to end, of which length are characters of the needle.
type hit func(start, end int64, length int, p *pattern)

// exactLane looks for needles in the bytes themselves. It has always read everything there is.
type exactLane struct {
	a *automaton
	s int32
}

// read feeds p[i:], whose first byte has the absolute offset at. p[:i] is not looked at.
func (l *exactLane) read(p []byte, i int, at int64, found hit) {
	a, lo, lim := l.a, i, 0
	if a.deepest == 0 {
		return
	}
	at -= int64(i)
	s := l.s
	for i < len(p) {
		if s == 0 && a.bits != nil {
			if i = a.skip(p, i); i == len(p) {
				break
			}
			lim = i + gram
		}
		s = a.step(s, p[i])
		i++
		if a.flags[s]&(isEnd|endsIn) != 0 {
			pat, n := a.longest(s)
			found(at+int64(i-n), at+int64(i), n, pat)
		}
		// Back to skipping, as soon as what is alive is so short that skip would find it again.
		if d := int(a.depth[s]); d < gram && i-d >= lo && i >= lim && a.bits != nil {
			i -= d
			s = 0
		}
	}
	l.s = s
}

// foldedLane looks for needles in the folded view.
//
// Its outcome is a function of the bytes alone, not of how they arrive: token decides only when it has seen enough, and all limits count bytes or
// characters of the stream.
type foldedLane struct {
	a     *automaton
	class *[256]byte
	next  int64 // offset of the first byte not read yet
	prev  byte  // the byte before
	floor int64 // matches do not reach back beyond this

	// The last kept characters: the character, its bytes (offset<<8 | length), and the state after it. A state of a depth below gram is
	// not exact, as scan skips. gone characters were before text[0]; top is the most there ever were.
	text  []byte
	at    []uint64
	state []int32
	gone  int64
	top   int64
	s     int32
	clean int64 // index of the character after the last match; before it nothing needs mending
}

// reset forgets everything and goes on at offset.
func (l *foldedLane) reset(a *automaton, offset int64) {
	l.a, l.next, l.floor = a, offset, offset
	l.text, l.at, l.state = l.text[:0], l.at[:0], l.state[:0]
	l.gone, l.top, l.clean, l.s = 0, 0, 0, 0
}

// read reads p, whose first byte has the absolute offset base, from l.next on. It leaves what token cannot decide yet.
func (l *foldedLane) read(p []byte, base int64, atEnd bool, found hit) {
	if l.a.deepest == 0 {
		l.next = base + int64(len(p))
		return
	}
	for i := int(l.next - base); i < len(p); {
		l.room()
		lo := len(l.text)
		j, more := l.take(p, i, base, atEnd)
		l.scan(lo, found)
		stop := j == i && !more
		if j > i {
			l.prev = p[j-1]
		}
		i, l.next = j, base+int64(j)
		if stop {
			return
		}
		if i < len(p) && l.class[p[i]] == erase {
			l.erase()
			l.prev = p[i]
			i++
			l.next++
		}
	}
}

// take appends kept characters until a backspace, the end of p, an undecided token or a full batch. It returns the index of the first byte it did not
// take, and whether there is something to do at once.
func (l *foldedLane) take(p []byte, i int, base int64, atEnd bool) (int, bool) {
	k := len(l.text)
	room := min(cap(l.text), k+batch)
	text, at, class := l.text[:room], l.at[:room], l.class
	more := true
loop:
	for i < len(p) && k < room {
		// The common case first, without a branch on kept or dropped.
		end := min(len(p), i+room-k)
		for ; i < end; i++ {
			c := class[p[i]]
			if c-1 < isKept-1 {
				break
			}
			text[k], at[k] = c, uint64(base+int64(i))<<8|1
			k += int(c >> 5 & 1)
		}
		if i == end {
			continue
		}
		prev := l.prev
		if i > int(l.next-base) {
			prev = p[i-1]
		}
		if class[p[i]] == erase {
			break
		}
		n, c := token(p[i:], prev, atEnd)
		if n == 0 {
			more = false
			break loop
		}
		if c != 0 {
			text[k], at[k] = c, uint64(base+int64(i))<<8|uint64(n)
			k++
		}
		i += n
	}
	l.text, l.at, l.state = l.text[:k], l.at[:k], l.state[:k]
	return i, more
}

// room makes room for a batch and keeps the characters that a live match, a backspace or both can reach back to.
func (l *foldedLane) room() {
	keep := l.a.deepest + ghosts + maxErase
	if n := len(l.text); n > keep+batch {
		l.gone += int64(n - keep)
		l.text = append(l.text[:0], l.text[n-keep:]...)
		l.at = append(l.at[:0], l.at[n-keep:]...)
		l.state = append(l.state[:0], l.state[n-keep:]...)
	}
	if need := len(l.text) + batch; cap(l.text) < need || cap(l.at) < need || cap(l.state) < need {
		need *= 2
		l.text = append(make([]byte, 0, need), l.text...)
		l.at = append(make([]uint64, 0, need), l.at...)
		l.state = append(make([]int32, 0, need), l.state...)
	}
}

// scan runs the automaton over text[lo:].
func (l *foldedLane) scan(lo int, found hit) {
	a, text, i, lim := l.a, l.text, lo, 0
	known := lo // states before this stay: a second pass, after falling back to skip, sees only what is alive later
	for i < len(text) {
		if l.s == 0 && a.bits != nil {
			j := a.skip(text, i)
			if j > known {
				clear(l.state[known:j])
				known = j
			}
			if i = j; i == len(text) {
				break
			}
			lim = i + gram
		}
		l.narrow(i, int64(l.at[i]>>8))
		l.s = a.step(l.s, text[i])
		if i++; i > known {
			l.state[i-1] = l.s
			known = i
		}
		if a.flags[l.s]&(isEnd|endsIn) != 0 {
			pat, n := a.longest(l.s)
			found(max(l.start(i, n), l.floor), l.end(i), n, pat)
			l.clean = l.gone + int64(i)
		}
		if d := int(a.depth[l.s]); d < gram && i-d >= lo && i >= lim && a.bits != nil {
			i -= d
			l.s = 0
		}
	}
	l.top = max(l.top, l.gone+int64(len(text)))
}

// start returns the offset of the first of the n characters before index i, and end that of the first byte after the character before i.
func (l *foldedLane) start(i, n int) int64 { return int64(l.at[i-n] >> 8) }

func (l *foldedLane) end(i int) int64 { return int64(l.at[i-1]>>8) + int64(l.at[i-1]&0xff) }

// narrow gives up live matches that would hold more than maxGap dropped bytes once a character at offset follows the character before index i. The longer of
// two live matches always holds more, so it is enough to look at the longest.
func (l *foldedLane) narrow(i int, offset int64) {
	for l.s != 0 {
		d := int(l.a.depth[l.s])
		if offset-l.start(i, d)-int64(d) <= maxGap {
			return
		}
		l.s = l.a.fail[l.s]
	}
}

// erase takes back the last character.
func (l *foldedLane) erase() {
	n := len(l.text) - 1
	if n < 0 || l.gone+int64(n) < l.top-maxErase {
		return
	}
	l.floor = l.hold(true)
	l.text, l.at, l.state = l.text[:n], l.at[:n], l.state[:n]
	// A short state may be stale: skip has looked ahead at characters that are gone now. What is alive then lies within the last characters.
	l.s = 0
	if n > 0 && l.a.depth[l.state[n-1]] >= gram {
		l.s = l.state[n-1]
		return
	}
	for i := max(0, n-gram+1); i < n; i++ {
		l.narrow(i, int64(l.at[i]>>8))
		l.s = l.a.step(l.s, l.text[i])
	}
}

// hold returns the offset from which on bytes may still become part of a match: those of the longest live match and, with mend, of a broken one that
// backspaces could mend.
func (l *foldedLane) hold(mend bool) int64 {
	n, from := len(l.text), l.next
	l.narrow(n, l.next)
	if d := l.a.alive(l.s); d > 0 {
		from = l.start(n, d)
	}
	for i := n; mend && i > 0 && i > n-ghosts && l.gone+int64(i) > l.clean; i-- {
		s := l.state[i-1]
		if s > 0 && l.a.depth[s] >= ghostDepth && l.next-int64(l.at[i-1]>>8) <= ghostReach {
			from = min(from, l.start(i, int(l.a.depth[s])))
		}
	}
	return max(from, l.floor)
}
