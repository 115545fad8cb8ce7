package main

import (
	"io"
	"os"
)

// oneSink reports whether both streams end in the same place: one terminal, one
// file, one pipe. What the agent writes to either is read there as one text, so
// that halves of a value, one on each, would stand side by side (A11). The run
// then gives the agent one stream for both, which is redacted as one.
func oneSink(stdout, stderr io.Writer) bool {
	a, ok := stdout.(*os.File)
	b, ok2 := stderr.(*os.File)
	if !ok || !ok2 {
		return false
	}
	sa, err := a.Stat()
	if err != nil {
		return false
	}
	sb, err := b.Stat()
	if err != nil || !os.SameFile(sa, sb) {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(sa, null) // nobody reads it, and the logs keep two
}

// A lineJoin merges two recorded streams for one reader: wherever the other one
// goes on, a new line begins. Each was redacted for itself, so what ends one
// must not stand before what begins the other.
type lineJoin struct {
	to   io.Writer
	last *lineEnd // who has written last
	mid  bool     // in the middle of a line
}

// A lineEnd is one stream's way into a lineJoin.
type lineEnd struct{ join *lineJoin }

func (e *lineEnd) Write(p []byte) (int, error) {
	j := e.join
	if len(p) == 0 {
		return 0, nil
	}
	if j.last != e && j.last != nil && j.mid {
		if _, err := j.to.Write([]byte{'\n'}); err != nil {
			return 0, err
		}
	}
	j.last, j.mid = e, p[len(p)-1] != '\n'
	return j.to.Write(p)
}
