package redact

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

// seeds adds streams that hold values in many forms.
func seeds(f *testing.F) {
	for i, a := range attacks() {
		if i%7 == 0 && len(a.wire) < 2000 {
			f.Add([]byte("pre "+a.wire+" post"), uint64(i))
		}
	}
	f.Add([]byte("\b\b\x1b[\x1b]\\\\u%25%&amp;#x;0x\xef\xbc"), uint64(1))
	f.Add([]byte(alnumValue[:9]+"XY\b\b\b\b"+alnumValue[7:]), uint64(2))
	f.Add([]byte(alnumValue[:5]+"X\b"+alnumValue[5:8]+"\x1b[0"), uint64(3))
}

// fuzzSet has two values that overlap in parts, and a fixed one.
func fuzzSet(f *testing.F) *Set {
	return setOf(f, "K", alnumValue, "B", alnumValue[20:]+"Zt5_w", "S", symbolValue, "BIN", binaryValue)
}

// plant puts values and parts of values, spaced or with characters typed over, into text.
func plant(set *Set, text []byte, r *rand.Rand) []byte {
	out := bytes.Clone(text[:min(len(text), 4096)])
	for range r.IntN(4) {
		v := string(set.vals[r.IntN(len(set.vals))].value)
		switch r.IntN(5) {
		case 0:
			v = spaced(v, []string{" ", "\n", "\x1b[1m", "\u200b", "X\b", `\n`}[r.IntN(6)], 1+r.IntN(5))
		case 1:
			v = v[r.IntN(len(v)):]
		case 2:
			v = v[:r.IntN(len(v))]
		case 3:
			forms := formsOf([]byte(v))
			v = string(forms[r.IntN(len(forms))].text)
		}
		at := r.IntN(len(out) + 1)
		out = append(out[:at:at], append([]byte(v), out[at:]...)...)
	}
	return out
}

// FuzzCuts: the output does not depend on how the stream is cut.
func FuzzCuts(f *testing.F) {
	seeds(f)
	set := fuzzSet(f)
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		in := string(plant(set, text, r))
		want, counts := pass(t, set, in, cuts[0].next)
		for _, most := range []int{1, 2, 7, 40} {
			got, n := pass(t, set, in, func(left int) int { return 1 + r.IntN(min(left, most)) })
			if got != want || len(n) != len(counts) {
				t.Fatalf("cut by %d: %q\n got %q %v\nwant %q %v", most, in, got, n, want, counts)
			}
		}
	})
}

// FuzzNoNeedle: no exact needle is in the output, nor a folded one in its folded view.
func FuzzNoNeedle(f *testing.F) {
	seeds(f)
	set := fuzzSet(f)
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		in := plant(set, text, rand.New(rand.NewPCG(seed, 2)))
		if survivor(set, Bytes(in, set)) != "" {
			t.Fatalf("%q\n out %q\nshows %s", in, Bytes(in, set), survivor(set, Bytes(in, set)))
		}
	})
}

// survivor returns the form of a needle that is in out. Masks may not help to complete it, so the pieces between them are looked at one by one.
func survivor(set *Set, out []byte) string {
	for _, e := range set.vals {
		out = bytes.ReplaceAll(out, []byte(maskOf(e.key)), []byte("\x01\x01\x01"))
	}
	for _, e := range set.vals {
		for _, p := range formsOf(e.value) {
			if !p.folded && bytes.Contains(out, p.text) {
				return p.form
			}
			for part := range bytes.SplitSeq(out, []byte("\x01\x01\x01")) {
				// A backspace makes another text of the folded view, which foldDecoded does not know.
				if p.folded && !bytes.Contains(out, []byte("\b")) && bytes.Contains(foldDecoded(part), p.text) {
					return p.form
				}
			}
		}
	}
	return ""
}

// TestSurvivor is the control of FuzzNoNeedle.
func TestSurvivor(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	for _, in := range []string{alnumValue, spaced(alnumValue, "\n", 1), string(reversed([]byte(alnumValue)))} {
		if survivor(set, []byte(in)) == "" {
			t.Errorf("%q is not seen as a leak", in)
		}
		if got := survivor(set, Bytes([]byte(in), set)); got != "" {
			t.Errorf("%q leaks as %s", in, got)
		}
	}
}

// FuzzOthersUnchanged: what is not masked is in the output, in order, and without values the output is the input.
func FuzzOthersUnchanged(f *testing.F) {
	seeds(f)
	set := fuzzSet(f)
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		in := plant(set, text, rand.New(rand.NewPCG(seed, 3)))
		if got := Bytes(in, NewSet()); !bytes.Equal(got, in) {
			t.Fatalf("an empty set changes %q to %q", in, got)
		}
		out, rest := string(Bytes(in, set)), string(in)
		for _, e := range set.vals {
			out = strings.ReplaceAll(out, maskOf(e.key), "\xff\xffMASK\xff\xff")
		}
		for i, part := range strings.Split(out, "\xff\xffMASK\xff\xff") {
			at := strings.Index(rest, part)
			if at < 0 || i == 0 && at != 0 {
				t.Fatalf("%q became %q: %q is not in the input there", in, out, part)
			}
			rest = rest[at+len(part):]
		}
		if !strings.Contains(out, "\xff\xffMASK\xff\xff") && rest != "" {
			t.Fatalf("lost %q", rest)
		}
	})
}

// FuzzIdempotent: redacting twice changes nothing. The values have no letters at their ends that a mask has.
func FuzzIdempotent(f *testing.F) {
	seeds(f)
	set := setOf(f, "K", "q"+alnumValue[4:]+"z", "B", "z9Xw8Vu7Ts6Rq")
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		in := plant(set, text, rand.New(rand.NewPCG(seed, 4)))
		if bytes.Contains(in, []byte("\b")) {
			t.Skip("a backspace may reach over a mask the second time")
		}
		once := Bytes(in, set)
		if twice := Bytes(once, set); !bytes.Equal(once, twice) {
			t.Fatalf("%q\n once %q\ntwice %q", in, once, twice)
		}
	})
}

// FuzzToken: a token never takes more than there is, decides the same with more bytes behind it, and looks ahead no further than its limits.
func FuzzToken(f *testing.F) {
	for _, s := range []string{`\u0041x`, `\x41`, `\101`, "%2541", "&amp;#x41;", "&amp;lt;", "\x1b[31m", "\x1b]0;t\x07", "\x1b]0;t\x1b\\", "0x4f", "\uFF21", `\u{41}`, `\U00000041`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) == 0 {
			return
		}
		n, c := token(p, false)
		if n < 0 || n > len(p) || n > 0xff && c != 0 || c != 0 && asciiAlnum(c) != c {
			t.Fatalf("token(%q) = %d, %q", p, n, c)
		}
		if n == 0 && len(p) > maxOSC+1 {
			t.Fatalf("token is undecided after %d bytes", len(p))
		}
		if n > 0 {
			if m, d := token(append(bytes.Clone(p), "41;"...), false); m != n || d != c {
				t.Fatalf("token(%q) = %d, %q; with more bytes %d, %q", p, n, c, m, d)
			}
		}
		if m, _ := token(p, true); m < 1 || m > len(p) || n > 0 && m != n {
			t.Fatalf("token(%q) at the end = %d, else %d", p, m, n)
		}
	})
}
