package redact

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// forget makes a Writer forget at Flush what it let go: the control of the tests below.
func forget(w *Writer) {
	w.s.keep = math.MaxInt64
	w.s.shrink()
	w.s.exact.restart(w.s.needs.exact, w.s.done)
	w.s.folded.reset(w.s.needs.folded, w.s.needs.pairs, w.s.done)
}

// drip writes text byte by byte with a Flush, and what after is, after each, and closes.
func drip(t testing.TB, set *Set, text string, after func(*Writer)) string {
	t.Helper()
	var out bytes.Buffer
	w := NewWriter(&out, set, "test")
	for i := range len(text) {
		if _, err := w.Write([]byte{text[i]}); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		after(w)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func nothing(*Writer) {}

// unmasked returns text without masks.
func unmasked(text string) string {
	for _, key := range []string{"K", "B", "S", "BIN"} {
		text = strings.ReplaceAll(text, maskOf(key), "")
	}
	return text
}

// A drain is a value that is printed in one form.
type drain struct {
	name, value, wire string
	folded            bool // found in the folded view only, and so counted in its characters
}

func drains() []drain {
	var out []drain
	for _, v := range []string{alnumValue, symbolValue, binaryValue, "pw4-Xy7!"} {
		for _, p := range formsOf([]byte(v)) {
			out = append(out, drain{p.form, v, string(p.text), p.folded})
		}
	}
	v := alnumValue
	for _, sep := range []string{" ", "\n", "-+-", "\u200b", "\x00", "\x1b[0m", "\x1b]0;title\x07", `\n`, "%0a"} {
		out = append(out, drain{"separator " + sep, v, spaced(v, sep, 1), true})
	}
	for _, format := range []string{"%%%02x", `\x%02x`, `\u%04x`, `\%03o`, "&#%d;", "&#x%02x;", "%%25%02X", "&amp;#%d;"} {
		out = append(out, drain{"escape " + format, v, percentAll(v, format), true})
	}
	return append(out, drain{"mixture", v, mixture(v), true}, drain{"upper case", v, strings.ToUpper(v), true})
}

// shown counts what is seen of a drain.
func (d drain) shown(out string) int {
	if rest := unmasked(out); d.folded {
		return len(foldDecoded([]byte(rest)))
	} else {
		return len(rest)
	}
}

// TestFlushDrains writes a value one byte at a time with a Flush after each: no more than an opening is seen of it (A23).
func TestFlushDrains(t *testing.T) {
	for _, d := range drains() {
		set := setOf(t, "K", d.value)
		out := drip(t, set, d.wire, nothing)
		if n := d.shown(out); n > opening || !strings.Contains(out, kMask) {
			t.Errorf("%s of %q: %d characters are seen: %q", d.name, d.value, n, out)
		}
	}
	t.Run("control off", func(t *testing.T) {
		for _, d := range drains() {
			out := drip(t, setOf(t, "K", d.value), d.wire, forget)
			if out != d.wire {
				t.Errorf("%s of %q: a Writer that forgets masks it: %q", d.name, d.value, out)
			}
		}
	})
}

// TestFlushShowsPrompts: up to three characters of any form are seen at once, and not the fourth.
func TestFlushShowsPrompts(t *testing.T) {
	for _, d := range drains() {
		for n := 1; n <= 4 && !d.folded; n++ {
			var out bytes.Buffer
			w := NewWriter(&out, setOf(t, "K", d.value), "test")
			if _, err := w.Write([]byte("\x01~ " + d.wire[:n])); err != nil {
				t.Fatal(err)
			}
			if out.Len() > 3 {
				t.Errorf("%q is seen without Flush", out.String())
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			want := "\x01~ "
			if n <= opening {
				want += d.wire[:n]
			}
			if out.String() != want {
				t.Errorf("%s of %q: seen are %q, want %q", d.name, d.value, out.String(), want)
			}
		}
	}
}

func TestFlushOpening(t *testing.T) {
	long := alnumValue + spaced("0123456789", "!", 1)
	for _, tt := range []struct {
		name   string
		values []string
		writes []string // with a Flush after each
		want   []string // what came out after each
	}{
		{"a prompt", []string{"K", "8080Zx9Kq2Lm"}, []string{"port 808", "0", "\r\nok"}, []string{"port 808", "port 808", "port 8080\r\nok"}},
		{"all at once", []string{"K", alnumValue}, []string{"t: " + alnumValue[:4], alnumValue[4:]}, []string{"t: ", "t: " + kMask}},
		{"opening, then the rest", []string{"K", alnumValue}, []string{alnumValue[:3], alnumValue[3:]}, []string{"ghp", "ghp" + kMask}},
		{"weak value", []string{"K", "abcd"}, []string{"x a", "b", "c", "d"}, []string{"x ", "x ", "x ", "x " + kMask}},
		{"weak value beside a strong one", []string{"K", "pq7", "B", "xpqr5678Lm"}, []string{"xp", "q", "7"}, []string{"x", "x", "x" + kMask}},
		{"half an escape", []string{"K", alnumValue}, []string{`g-h-p-\u003`, "9", "fKq2LmZx7RtVb4NwYc8TsHd3JpGe6"}, []string{"", "", kMask}},
		{"half an escape after less", []string{"K", alnumValue}, []string{`g-h-\u007`, "0_9fKq2LmZx7RtVb4NwYc8TsHd3JpGe6"}, []string{`g-h-\u007`, `g-h-\u007` + kMask}},
		{"bytes went before", []string{"K", alnumValue}, []string{"x! g-h-p-9-f-K-q-2-L-m", "-Zx7RtVb4NwYc8TsHd3JpGe6"}, []string{"x! ", "x! " + kMask}},
		{"a match begins in a mask", []string{"K", long[:34], "S", long[20:]}, []string{long[:34], long[34:37], long[37:]}, []string{kMask, kMask, kMask + "[sealed:S]"}},
		{"a long gap", []string{"K", alnumValue}, []string{"g", strings.Repeat(" ", 5000), "h", alnumValue[2:]}, []string{"g", "g" + strings.Repeat(" ", 5000), "g" + strings.Repeat(" ", 5000) + "h", "g" + strings.Repeat(" ", 5000) + "h" + kMask}},
		{"mended by a backspace", []string{"K", alnumValue}, []string{`\x67hX`, strings.Repeat(" ", 900), "\b" + alnumValue[2:]}, []string{`\x67hX`, `\x67hX` + strings.Repeat(" ", 900), `\x67hX` + strings.Repeat(" ", 900) + kMask}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			w := NewWriter(&out, setOf(t, tt.values...), "test")
			for i, text := range tt.writes {
				if _, err := w.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					if err := w.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				if out.String() != tt.want[i] {
					t.Errorf("after %q: %q, want %q", text, out.String(), tt.want[i])
				}
			}
		})
	}
}

// TestFlushThenMended: what was no beginning of a value when Flush was called is one again once a backspace has mended it.
func TestFlushThenMended(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out, setOf(t, "K", alnumValue), "test")
	for _, text := range []string{"ghX", "\b", alnumValue[2:8], alnumValue[8:12]} {
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "9fKq") {
			t.Fatalf("%q is seen", out.String())
		}
	}
	writeAll(t, w, []byte(alnumValue[12:]))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(out.String(), kMask) {
		t.Errorf("got %q", out.String())
	}
}

// TestFlushThenGrow: a new value does not make a Writer forget the openings that went out.
func TestFlushThenGrow(t *testing.T) {
	for _, d := range drains() {
		set := setOf(t, "K", d.value)
		written := 0
		out := drip(t, set, d.wire, func(*Writer) {
			if written++; written > 4 && written != 20 {
				return
			}
			if err := set.Add("B", []byte(strings.Repeat("z", written)+"0Kx9LqWvTb"), Options{AllowWeak: true}); err != nil {
				t.Fatal(err)
			}
		})
		if n := d.shown(out); n > opening || !strings.Contains(out, kMask) {
			t.Errorf("%s of %q: %d characters are seen: %q", d.name, d.value, n, out)
		}
	}
}

// TestFlushMemory: what is kept to be compared is bounded.
func TestFlushMemory(t *testing.T) {
	var out limited
	out.b = new(bytes.Buffer)
	w := NewWriter(&out, setOf(t, "K", alnumValue), "test")
	for _, text := range []string{"g", strings.Repeat(" ", 1<<10), strings.Repeat("g\b", 1<<9), strings.Repeat("gh", 1<<9)} {
		for range 1 << 10 {
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			if n := len(w.s.buf); n > maxGap+4<<10 {
				t.Fatalf("%d bytes are kept", n)
			}
		}
	}
}

// FuzzFlush: wherever Flush is called, no form of a value comes out whole, and of what one stream without Flush hides no more is seen than an opening for each
// match; that is counted in bytes, so for a value that is looked for in the exact view.
func FuzzFlush(f *testing.F) {
	seeds(f)
	set, exact := fuzzSet(f), NewSet()
	if err := exact.Add("K", []byte(symbolValue), Options{ExactOnly: true}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		for _, set := range []*Set{set, exact} {
			r := rand.New(rand.NewPCG(seed, 15))
			in := plant(set, text, r)
			var out bytes.Buffer
			w := NewWriter(&out, set, "test")
			for rest := in; len(rest) > 0; {
				n := 1 + r.IntN(min(len(rest), 9))
				if _, err := w.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				if rest = rest[n:]; r.IntN(3) > 0 {
					if err := w.Flush(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if set != exact {
				if form := survivor(set, out.Bytes()); form != "" {
					t.Fatalf("%q\n out %q\nshows %s", in, out.Bytes(), form)
				}
				continue
			}
			seen := len(in)
			for _, m := range masksOf(t, set, in) {
				seen -= int(m.end-m.start) - opening
			}
			if n := len(unmasked(out.String())); n > seen {
				t.Fatalf("%q\n out %q\nshows %d bytes, want no more than %d", in, out.Bytes(), n, seen)
			}
		}
	})
}
