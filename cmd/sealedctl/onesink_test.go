package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestOneSink(t *testing.T) {
	open := func(path string) *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	closed := open(a)
	_ = closed.Close()
	for name, tt := range map[string]struct {
		stdout, stderr io.Writer
		want           bool
	}{
		"one file":       {open(a), open(a), true},
		"one descriptor": {w, w, true},
		"two files":      {open(a), open(b), false},
		"pipe and file":  {w, open(a), false},
		"null":           {open(os.DevNull), open(os.DevNull), false},
		"buffers":        {&bytes.Buffer{}, &bytes.Buffer{}, false},
		"closed":         {closed, open(a), false},
	} {
		if got := oneSink(tt.stdout, tt.stderr); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The end of one log and the beginning of the other do not join (A11).
func TestLineJoin(t *testing.T) {
	var out bytes.Buffer
	join := &lineJoin{to: &out}
	stdout, stderr := &lineEnd{join}, &lineEnd{join}
	for _, w := range []struct {
		to   io.Writer
		text string
	}{{stdout, "one\nfirst half "}, {stdout, "goes on"}, {stderr, ""}, {stderr, "second half\n"}, {stdout, "two\n"}, {stderr, "three"}} {
		if n, err := io.WriteString(w.to, w.text); err != nil || n != len(w.text) {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if got, want := out.String(), "one\nfirst half goes on\nsecond half\ntwo\nthree"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
