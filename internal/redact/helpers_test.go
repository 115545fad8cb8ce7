package redact

import (
	"bytes"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// The values of the tests. None is a real credential.
const (
	alnumValue  = "ghp_9fKq2LmZx7RtVb4NwYc8TsHd3JpGe6"
	symbolValue = `p@"s/w+r%d'<&>4\2 $x#9!`
	binaryValue = "\x00\xff\xfeNUL\x00and\nbreak\x80\x81Qz7"
)

var pemValue = "-----BEGIN RSA PRIVATE KEY-----\n" +
	"MIIEowIBAAKCAQEAtq3KzvZ1mYx0pQwErTyUiOpAsDfGhJkLzXcVbNm1234567Q\n" +
	"b9K2hYt6RfWq8ZsXe4DcVr5TgBnHy7UjMkIlOpLqAzWsXeDcRfVtGbYhNuJm0P\n" +
	"x1Z2c3V4b5N6m7Q8w9E0rTtYyUuIiOoPpAaSsDdFfGgHhJjKkLlZzXxCcVvBb3\n" +
	"-----END RSA PRIVATE KEY-----\n"

// cuts are the ways in which a stream arrives.
var cuts = []struct {
	name string
	next func(left int) int
}{
	{"one write", func(left int) int { return left }},
	{"byte by byte", func(int) int { return 1 }},
	{"random", func(left int) int { return 1 + rand.IntN(min(left, 17)) }},
}

// setOf returns a set of pairs of key and value, weak ones too.
func setOf(t testing.TB, pairs ...string) *Set {
	t.Helper()
	s := NewSet()
	for i := 0; i < len(pairs); i += 2 {
		if err := s.Add(pairs[i], []byte(pairs[i+1]), Options{AllowWeak: true}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// pass sends in through a Writer in the given cuts.
func pass(t testing.TB, set *Set, in string, next func(int) int) (string, []Count) {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b, set, "test")
	for rest := in; rest != ""; {
		n := next(len(rest))
		if m, err := io.WriteString(w, rest[:n]); err != nil || m != n {
			t.Fatalf("Write = %d, %v", m, err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), w.Counts()
}

// shows returns the first piece of wire of n bytes that is in out and has at least four letters or digits: the measure of a leak in these tests.
func shows(out, wire string, n int) string {
	for i := 0; i+n <= len(wire); i++ {
		if p := wire[i : i+n]; len(foldPlain([]byte(p))) >= 4 && strings.Contains(out, p) {
			return p
		}
	}
	return ""
}

// spaced puts sep after every n bytes of s.
func spaced(s, sep string, n int) string {
	var b strings.Builder
	for i, c := range []byte(s) {
		if i > 0 && i%n == 0 {
			b.WriteString(sep)
		}
		b.WriteByte(c)
	}
	return b.String()
}
