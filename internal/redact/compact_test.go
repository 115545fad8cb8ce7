package redact

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"
)

// anyProcessor makes set do without what only some processors have.
func anyProcessor(t testing.TB, set *Set) *Set {
	n, err := set.compiled()
	if err != nil {
		t.Fatal(err)
	}
	n.pairs.wide = nil
	for _, x := range []*index{n.exact, n.folded} {
		for i := range x.classes {
			x.classes[i].wide = false
		}
	}
	return set
}

// foldBoth folds p in both ways, and checks that neither writes where it may not.
func foldBoth(t testing.TB, table *pairTable, p []byte, end int) (int, []byte) {
	t.Helper()
	type result struct {
		i    int
		text []byte
	}
	var results []result
	const before = 3 // characters that are there already
	for _, fold := range []func(text []byte, k int, p []byte, i, end int) (int, int){table.fold, table.foldPairs} {
		text := bytes.Repeat([]byte{0xAA}, before+end+8+32)
		i, k := fold(text[:before+end+8], before, p, 0, end)
		if !bytes.Equal(text[:before], []byte("\xAA\xAA\xAA")) || !bytes.Equal(text[before+end+8:], bytes.Repeat([]byte{0xAA}, 32)) {
			t.Fatalf("%q, %d: writes outside: %q", p, end, text)
		}
		results = append(results, result{i, text[before:k]})
	}
	if a, b := results[0], results[1]; a.i != b.i || !bytes.Equal(a.text, b.text) {
		t.Fatalf("%q, %d: 16 at once read %d, %q; else %d, %q", p, end, a.i, a.text, b.i, b.text)
	}
	return results[0].i, results[0].text
}

// Every byte is kept, dropped and special at every place of a block as the definition says.
func TestCompactEveryByteEverywhere(t *testing.T) {
	table := newPairTable()
	if canCompact() && table.wide == nil {
		t.Fatal("the classes of bytes do not fit the tables any more: see halves")
	}
	for c := range 256 {
		for at := range 48 {
			p := bytes.Repeat([]byte("aB-9"), 12)
			p[at] = byte(c)
			i, text := foldBoth(t, table, p, len(p))
			want := foldPlain(p)
			if k := kindOf(byte(c)); k == escape || k == erase {
				if want = foldPlain(p[:at]); i != at {
					t.Fatalf("byte %#x at %d: stops at %d", c, at, i)
				}
			}
			if !bytes.Equal(text, want) {
				t.Fatalf("byte %#x at %d: %q, want %q", c, at, text, want)
			}
		}
	}
	t.Run("control off", func(t *testing.T) {
		if table.wide == nil {
			t.Skip("this processor has no 16 at once")
		}
		table.wide.keepLow[3] ^= 1 // that a digit 3 is kept
		p := bytes.Repeat([]byte("3"), 16)
		_, k := table.fold(make([]byte, 24), 0, p, 0, 16)
		if k == 16 {
			t.Error("a wrong table makes no difference")
		}
	})
}

// keptOf counts each byte at each place as the definition says.
func TestKeptOf(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for round := range 1 << 16 {
		var p [8]byte
		binary.LittleEndian.PutUint64(p[:], r.Uint64())
		p[round>>8%8] = byte(round)
		want := int64(0)
		for _, c := range p {
			if kindOf(c) >= isKept {
				want++
			}
		}
		if got := keptOf(binary.LittleEndian.Uint64(p[:])); got != want {
			t.Fatalf("%q: %d, want %d", p, got, want)
		}
	}
}

// FuzzCompact: 16 bytes at once leave what two at once leave.
func FuzzCompact(f *testing.F) {
	table := newPairTable()
	for i := range 40 {
		f.Add(bytes.Repeat([]byte("Ab1 \x1b[\n%&é"), 5)[i:], uint16(16+i))
	}
	f.Fuzz(func(t *testing.T, p []byte, n uint16) {
		foldBoth(t, table, p, min(len(p), int(n)))
	})
}

// FuzzSkip: what tells where a gram may be says the same in both ways, and passes over no place where one is.
func FuzzSkip(f *testing.F) {
	f.Add([]byte("some text ghp_9fKq2LmZx7RtVb4NwYc8 and more of it, as there would be"), uint16(0), uint64(1))
	f.Add(bytes.Repeat([]byte("x"), 100), uint16(3), uint64(2))
	f.Fuzz(func(t *testing.T, p []byte, at uint16, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 21))
		set := setOf(t, "A", randomValue(r, 20+r.IntN(9)), "B", randomValue(r, 8+r.IntN(8)), "C", "q7"+alnumValue)
		n, err := set.compiled()
		if err != nil {
			t.Fatal(err)
		}
		p = plant(set, p, r)
		for _, x := range []*index{n.exact, n.folded} {
			for _, c := range x.classes {
				i := min(int(at), len(p))
				got := c.skip(p, i)
				plain := c
				plain.wide = false
				if want := plain.skip(p, i); got != want {
					t.Fatalf("%q from %d by %d: %d, want %d", p, i, c.s, got, want)
				}
				for ; i < got; i += c.s {
					if c.may(c.hash(binary.LittleEndian.Uint64(p[i:]))) {
						t.Fatalf("%q: passes over %d", p, i)
					}
				}
			}
		}
	})
}

// A processor without either finds the same.
func TestAnyProcessorFindsTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	values := []string{"K", alnumValue, "S", symbolValue, "BIN", binaryValue, "PEM", pemValue, "W", "k9Xw8Vu7Ts"}
	set, plain := setOf(t, values...), anyProcessor(t, setOf(t, values...))
	in := cleanText(r, 1<<20)
	for _, a := range attacks() {
		in = append(append(in, cleanText(r, 40)...), a.wire...)
	}
	got, want := Bytes(in, set), Bytes(in, plain)
	if !bytes.Equal(got, want) || bytes.Equal(got, in) {
		t.Error("the outputs differ, or nothing is masked")
	}
	w := NewWriter(io.Discard, plain, "test")
	if writeAll(t, w, in); w.s.folded.pairs.wide != nil {
		t.Error("the control does not hold")
	}
}

func writeAll(t testing.TB, w *Writer, p []byte) {
	t.Helper()
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
}
