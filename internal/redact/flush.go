package redact

import (
	"bytes"
	"math"
	"sort"
)

// opening is how many characters of a live match Flush lets go. Nearly every character begins some form of some value, so that without this a prompt, or a
// number at the end of what was written, would be shown late. Three characters say next to nothing about a value of eight and more.
const opening = 3

// flush lets go of what is not part of a live match, and of the opening of one.
//
// The plan:
//  1. A live match of up to opening characters goes out. Of a longer one goes out what did before. A unit that is not complete, such as half an escape, counts as
//     one more character. Nothing goes out of the beginning of a needle shorter than minNeedle, of which an opening is too much.
//  2. Nothing is forgotten. The lanes go on with the match, and its bytes are kept to be compared, so that the rest of it is held back and masked. Otherwise a
//     value that is written one character at a time, with a Flush after each, would come out whole.
//  3. An open mask goes out too; a live match that began in it goes on behind it.
func (s *stream) flush() error {
	if err := s.arm(); err != nil {
		return err
	}
	s.shrink()
	if s.steady {
		return nil
	}
	exact, folded := s.liveExact(s.end()), s.folded.live()
	s.release(s.flushable(exact, folded))
	if len(s.masks) > 0 && s.masks[0].start < s.done {
		s.release(s.masks[0].end)
	}
	s.folded.floor = max(s.folded.floor, s.done)
	s.remember(exact, s.foldedFrom(folded))
	return nil
}

// endRecord lets go of everything. The lanes go on: of a match that ends later, what is left is masked.
func (s *stream) endRecord() error {
	if !s.steady {
		return s.flush()
	}
	if err := s.arm(); err != nil {
		return err
	}
	s.shrink()
	s.release(s.end())
	s.remember(s.live())
	return nil
}

// flushable returns the first byte that Flush holds back, for the offset and the character where the longest live matches begin: step 1 of the plan.
func (s *stream) flushable(exact int64, first int) int64 {
	exact = s.end() - int64(s.exact.x.withheld(s.buf[exact-s.base:], 0))
	f, folded, undecided := &s.folded, s.end(), 0
	if f.next < s.end() {
		undecided = 1
	}
	if n := f.x.withheld(f.text[first:], undecided); n > 0 {
		folded = f.offset(len(f.text) - n)
	}
	shown := s.end()
	if i, ok := s.over.live(); ok {
		l := &s.over.lane
		if n := l.x.withheld(l.text[i:], 0); n > 0 {
			shown = max(l.offset(len(l.text)-n), l.floor)
		}
	}
	return max(min(exact, folded, shown), s.done)
}

// withheld returns how many of the last characters of t Flush holds back. A live match begins with t; more characters may follow.
func (x *index) withheld(t []byte, more int) int {
	if len(t)+more > opening {
		return len(t)
	}
	for i := range t {
		if x.beginsShort(t[i:]) {
			return len(t) - i
		}
	}
	return 0
}

// beginsShort reports whether t is the beginning of a needle of fewer than minNeedle characters.
func (x *index) beginsShort(t []byte) bool {
	i := sort.Search(len(x.short), func(i int) bool { return bytes.Compare(x.text(x.short[i]), t) >= 0 })
	return i < len(x.short) && bytes.HasPrefix(x.text(x.short[i]), t)
}

// live returns where the longest live match of each view begins, which may be before done, or if there is none, where the view ends.
func (s *stream) live() (exact, folded int64) {
	return s.liveExact(s.end()), s.foldedFrom(s.folded.live())
}

// foldedFrom returns the offset of a character of the folded view.
func (s *stream) foldedFrom(i int) int64 {
	f := &s.folded
	if i < len(f.text) {
		return max(f.offset(i), s.base) // of what backspaces have mended the bytes may be gone
	}
	return f.next
}

// liveExact returns where the longest live match of the exact view begins, if that is before the given offset; otherwise that.
func (s *stream) liveExact(before int64) int64 {
	if s.exact.x.longest == 0 {
		return before
	}
	return s.exact.live(s.buf, s.base, s.base, before)
}

// remember keeps the bytes of live matches that went out in part: step 2 of the plan. The offsets are those of live.
func (s *stream) remember(exact, folded int64) {
	if s.keep = min(exact, folded); s.keep >= s.done {
		s.keep = math.MaxInt64
	}
}
