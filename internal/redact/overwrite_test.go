package redact

import (
	"bytes"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// overwritten has texts that show a value on a terminal only, and what is to become of them.
var overwritten = []struct{ name, in, want string }{
	{"second half, then the first over the beginning", "####" + alnumValue[4:] + "\r" + alnumValue[:4] + "\n", "####" + alnumValue[4:] + "\r" + kMask + "\n"},
	{"the same at the end of the stream", "####" + alnumValue[4:] + "\r" + alnumValue[:4], "####" + alnumValue[4:] + "\r" + kMask},
	{"the same, then the cursor goes back", "####" + alnumValue[4:] + "\r" + alnumValue[:4] + "\rok\n", "####" + alnumValue[4:] + "\r" + kMask + "\rok\n"},
	{"the same, in three pieces", "###########" + alnumValue[11:] + "\r#####" + alnumValue[5:11] + "\r" + alnumValue[:5] + "\n",
		"###########" + alnumValue[11:] + "\r#####" + alnumValue[5:11] + "\r" + kMask + "\n"},
	{"line end of a printer", "####" + alnumValue[4:] + "\r" + alnumValue[:4] + "\r\n", "####" + alnumValue[4:] + "\r" + kMask + "\r\n"},
	{"a line between is overwritten", alnumValue[:12] + "\nthis is longer than what backspaces mend\r" + alnumValue[12:] + strings.Repeat(" ", 40) + "\n",
		alnumValue[:12] + "\nthis is longer than what backspaces mend\r" + kMask + strings.Repeat(" ", 40) + "\n"},
	{"a short one", alnumValue[:12] + "\n50%\r" + alnumValue[12:] + "\n", alnumValue[:12] + "\n50%\r" + kMask + "\n"},
	{"and what follows on the next line", "####" + alnumValue[4:20] + "\r" + alnumValue[:4] + "\n" + alnumValue[20:] + ".", "####" + alnumValue[4:20] + "\r" + kMask + "."},
	{"a letter of another script has a cell", "жжжж" + alnumValue[4:] + "\r" + alnumValue[:4] + "\n", "жжжж" + alnumValue[4:] + "\r" + kMask + "\n"},
	{"colors have none", "\x1b[31m####\x1b[0m" + alnumValue[4:] + "\r\x1b[1m" + alnumValue[:4] + "\n", "\x1b[31m####\x1b[0m" + alnumValue[4:] + "\r\x1b[1m" + kMask + "\n"},
	{"backspace on an overwritten line", "####" + alnumValue[4:] + "\rzz\b\b" + alnumValue[:4] + "\n", "####" + alnumValue[4:] + "\rzz\b\b" + kMask + "\n"},
	{"other columns", "###" + alnumValue[4:] + "\r" + alnumValue[:4] + "\n", "###" + alnumValue[4:] + "\r" + alnumValue[:4] + "\n"},
	{"progress", "10%\r20%\r30% " + alnumValue + "\rdone\n", "10%\r20%\r30% " + kMask + "\rdone\n"},
}

func TestOverwrite(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	for _, tt := range overwritten {
		for _, before := range []string{"", "some text before\n", strings.Repeat("a line of a log with port 8080\n", 3000)} {
			for _, c := range cuts {
				if got, _ := pass(t, set, before+tt.in, c.next); got != before+tt.want {
					t.Errorf("%s, %s: got %q, want %q", tt.name, c.name, got[len(before):], tt.want)
				}
			}
		}
	}
}

// TestOverwriteOff is the control of TestOverwrite: without it the texts go through.
func TestOverwriteOff(t *testing.T) {
	through := 0
	for _, tt := range overwritten {
		s := newStream(setOf(t, "K", alnumValue))
		if err := s.arm(); err != nil {
			t.Fatal(err)
		}
		s.over.lane.x = newIndex(nil)
		out, err := s.some([]byte(tt.in))
		got := string(out)
		if err == nil {
			err = s.close()
		}
		if got += string(s.out); err != nil {
			t.Fatal(err)
		}
		if got != tt.want {
			through++
		}
	}
	if want := len(overwritten) - 3; through < want { // of three the folded view is enough or nothing is wanted
		t.Errorf("%d of %d are masked without it", len(overwritten)-through, len(overwritten))
	}
}

// What a Flush lets go of is three characters at most, and the rest of the match is masked.
func TestOverwriteFlush(t *testing.T) {
	for _, tt := range overwritten[:1] {
		var b bytes.Buffer
		w := NewWriter(&b, setOf(t, "K", alnumValue), "test")
		for _, c := range []byte(tt.in) {
			if _, err := w.Write([]byte{c}); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, want := b.String(), "####"+alnumValue[4:]+"\r"+alnumValue[:3]+kMask+"\n"; got != want {
			t.Errorf("%s: got %q, want %q", tt.name, got, want)
		}
	}
}

// A value that is added while its line is overwritten is found.
func TestOverwriteAdd(t *testing.T) {
	set := setOf(t, "OTHER", "0a9b8c7d6e5f4g3h")
	var b bytes.Buffer
	w := NewWriter(&b, set, "test")
	for _, s := range []string{"before\n####" + alnumValue[4:] + "\r", alnumValue[:4] + "\n"} {
		if _, err := io.WriteString(w, s); err != nil {
			t.Fatal(err)
		}
		if err := set.Add("K", []byte(alnumValue), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if want := "before\n####" + alnumValue[4:] + "\r" + kMask + "\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

// FuzzOverwrite: what is typed over the beginning of a line that shows the end of a value is masked, however the stream is cut.
func FuzzOverwrite(f *testing.F) {
	f.Add([]byte("some text\n"), uint64(1))
	f.Add([]byte("10%\r20%\r\n\r\x1b[31m"), uint64(2))
	seeds(f)
	set := fuzzSet(f)
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 15))
		before := plant(set, text, r)
		n := 1 + r.IntN(len(alnumValue)-2)
		in := string(before) + "\n" + strings.Repeat("#", n) + alnumValue[n:] + "\r" + alnumValue[:n] + "\n"
		want, _ := pass(t, set, in, cuts[0].next)
		if strings.HasSuffix(want, "\r"+alnumValue[:n]+"\n") {
			t.Fatalf("%q\nshows the value: %q", in, want)
		}
		for _, most := range []int{1, 7, 40} {
			if got, _ := pass(t, set, in, func(left int) int { return 1 + r.IntN(min(left, most)) }); got != want {
				t.Fatalf("cut by %d: %q\n got %q\nwant %q", most, in, got, want)
			}
		}
	})
}
