package redact

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// masksOf returns what is masked when in is one closed stream.
func masksOf(t testing.TB, set *Set, in []byte) []mask {
	t.Helper()
	s := newStream(set)
	if err := s.arm(); err != nil {
		t.Fatal(err)
	}
	s.buf = bytes.Clone(in)
	s.read(true)
	s.maskPartial()
	return s.masks
}

// covered returns which bytes of in are masked.
func covered(t testing.TB, set *Set, in []byte) []bool {
	out := make([]bool, len(in))
	for _, m := range masksOf(t, set, in) {
		for i := m.start; i < m.end; i++ {
			out[i] = true
		}
	}
	return out
}

// FuzzConservation: what comes in is what goes out and what masks hide, in order.
func FuzzConservation(f *testing.F) {
	seeds(f)
	set := fuzzSet(f)
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		in := plant(set, text, rand.New(rand.NewPCG(seed, 11)))
		var want []byte
		at := int64(0)
		for _, m := range masksOf(t, set, in) {
			want = append(append(want, in[at:m.start]...), m.best.label.mask...)
			at = m.end
		}
		want = append(want, in[at:]...)
		if got := Bytes(in, set); !bytes.Equal(got, want) {
			t.Fatalf("%q\n got %q\nwant %q", in, got, want)
		}
	})
}

// FuzzGrow: one more value never reveals what was masked without it.
func FuzzGrow(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 12))
		all := tangled(t, r)
		in := plant(all, text, r)
		some := NewSet()
		for _, e := range all.vals[:3] {
			if err := some.Add(e.key, e.value, Options{AllowWeak: true}); err != nil {
				t.Fatal(err)
			}
		}
		before, after := covered(t, some, in), covered(t, all, in)
		for i := range before {
			if before[i] && !after[i] {
				t.Fatalf("%q: byte %d shows once %q is known", in, i, all.vals[3].value)
			}
		}
	})
}

// FuzzOracle: the index finds what comparing at every place finds, among short values over few letters and among long ones, in texts that hold some.
func FuzzOracle(f *testing.F) {
	f.Add([]byte("abc12-abc"), uint64(1))
	f.Add([]byte("a b c 1 2 - a"), uint64(2))
	seeds(f)
	long := fuzzSet(f)
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 13))
		set := long
		if seed%2 != 0 {
			set = tangled(t, r)
		}
		in := bytes.ReplaceAll(bytes.ReplaceAll(plant(set, text[:min(len(text), 300)], r), []byte("\b"), nil), []byte("\r"), nil) // the oracle has no cursor
		if got, want := string(Bytes(in, set)), oracle(set, in); got != want {
			t.Fatalf("%q\n got %q\nwant %q", in, got, want)
		}
	})
}

// FuzzHoldBack: in the exact view no more is ever held than the longest needle less one byte, on periodic input too.
func FuzzHoldBack(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 14))
		period := randomValue(r, 3)
		set := NewSet()
		for key, v := range map[string]string{"K": alnumValue, "P": strings.Repeat(period, 10), "Q": strings.Repeat(period, 7) + "!"} {
			if err := set.Add(key, []byte(v), Options{AllowWeak: true, ExactOnly: true}); err != nil {
				t.Fatal(err)
			}
		}
		w := NewWriter(io.Discard, set, "test")
		in := append(plant(set, text, r), strings.Repeat(period, 60)...)
		for len(in) > 0 {
			n := 1 + r.IntN(min(len(in), 9))
			if _, err := w.Write(in[:n]); err != nil {
				t.Fatal(err)
			}
			in = in[n:]
			if held := w.s.end() - w.s.done; held >= int64(w.s.needs.exact.longest) {
				t.Fatalf("%d bytes are held, the longest needle has %d", held, w.s.needs.exact.longest)
			}
		}
	})
}

// TestBypassHistory has the ways in which other redactors were passed: those of Buildkite's agent (a needle cut by writes, one that overlaps itself, a line
// break shown otherwise, needles that are added late, a buffer without bound) and of GitLab's runner (a masked value cut by its buffer, one that follows a
// part of itself, two that overlap, the end of the log).
func TestBypassHistory(t *testing.T) {
	v := "aabQW3cVb9kLmN"
	for _, tt := range []struct{ name, in, want string }{
		{"cut", "x " + v + " y", "x " + kMask + " y"},
		{"follows a part of itself", "x a" + v, "x a" + kMask},
		{"follows all but its end", v[:13] + v, v[:13] + kMask},
		{"twice, one byte between", v + "." + v, kMask + "." + kMask},
		{"twice", v + v, kMask + kMask},
		{"at the end of the log", "x " + v, "x " + kMask},
		{"beginning at the end of the log", "x " + v[:8], "x " + kMask},
		{"two that overlap", "first1aabb" + "ccddsecond2", "[sealed:O1]"},
		{"line break as spaces", "line-one-12345   line-two-67890", "[sealed:L]"},
		{"line break as CRLF", "line-one-12345\r\nline-two-67890", "[sealed:L]"},
		{"line break doubled", "line-one-12345\n\nline-two-67890", "[sealed:L]"},
		{"line break escaped", `line-one-12345\nline-two-67890`, "[sealed:L]"},
	} {
		set := setOf(t, "K", v, "O1", "first1aabbccdd", "O2", "aabbccddsecond2", "L", "line-one-12345\nline-two-67890")
		for _, c := range cuts {
			got, _ := pass(t, set, tt.in, c.next)
			if tt.name == "two that overlap" {
				got = strings.Replace(got, "[sealed:O2]", "[sealed:O1]", 1)
			}
			if got != tt.want {
				t.Errorf("%s, %s: got %q, want %q", tt.name, c.name, got, tt.want)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	set, text := randomSet(t, r, 100), cleanText(r, 256<<10)
	for i := 0; i+8192 < len(text); i += 8192 {
		copy(text[i:], set.vals[i%100].value)
	}
	for _, size := range []int{80, 4096, 32 << 10} {
		w, at := NewWriter(io.Discard, set, "test"), 0
		write := func() {
			if _, err := w.Write(text[at : at+size]); err != nil {
				t.Fatal(err)
			}
			if at += size; at+size > len(text) {
				at = 0
			}
		}
		for range 2 * len(text) / size {
			write()
		}
		if n := testing.AllocsPerRun(len(text)/size, write); n != 0 {
			t.Errorf("%v allocations for a write of %d bytes", n, size)
		}
	}
}

// TestManyValues registers 10,000 values, and one of 1 MiB with its encodings.
func TestManyValues(t *testing.T) {
	if testing.Short() {
		t.Skip("short: 10,000 values take seconds to build")
	}
	r := rand.New(rand.NewPCG(4, 4))
	set := randomSet(t, r, 10000)
	long := randomValue(r, MaxValue)
	if err := set.Add("LONG", []byte(long), Options{}); err != nil {
		t.Fatal(err)
	}
	var in, want strings.Builder
	for _, i := range []int{0, 77, 5000, 9999} {
		fmt.Fprintf(&in, "a %s b %x c\n", set.vals[i].value, set.vals[i].value)
		fmt.Fprintf(&want, "a [sealed:KEY_%d] b [sealed:KEY_%d] c\n", i, i)
	}
	fmt.Fprintf(&in, ">%s<>%x<>%s<", long, long, long[5000:9000])
	got := string(Bytes([]byte(in.String()), set))
	want.WriteString(">[sealed:LONG]<>[sealed:LONG]<>")
	rest, ok := strings.CutPrefix(got, want.String())
	if !ok || len(rest) > 2*pieceLen+20 || !strings.Contains(rest, "[sealed:LONG]") || !strings.HasSuffix(rest, "<") {
		t.Errorf("got %.300q", got)
	}
}

// slow blocks until it is told to go on.
type slow struct{ goOn chan struct{} }

func (s slow) Write(p []byte) (int, error) {
	<-s.goOn
	return len(p), nil
}

func TestBlockingDestination(t *testing.T) {
	dst := slow{make(chan struct{})}
	w := NewWriter(dst, setOf(t, "K", alnumValue), "test")
	done := make(chan error)
	go func() {
		_, err := w.Write([]byte("some text.\n"))
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("Write did not wait: %v", err)
	case dst.goOn <- struct{}{}:
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestReaderLastBytes reads a source that ends together with its last bytes, as request bodies do.
func TestReaderLastBytes(t *testing.T) {
	long := strings.Repeat("lorem ipsum ", 20000)
	set := setOf(t, "K", alnumValue)
	for _, steady := range []bool{false, true} {
		r := NewReader(iotest.DataErrReader(strings.NewReader(long+alnumValue+long)), set, "test")
		if steady {
			r = NewSteadyReader(iotest.DataErrReader(strings.NewReader(long+alnumValue+long)), set, "test")
		}
		if got, err := io.ReadAll(r); string(got) != long+kMask+long || err != nil {
			t.Errorf("steady %v: %d bytes, %v, want %d", steady, len(got), err, 2*len(long)+len(kMask))
		}
	}
}
