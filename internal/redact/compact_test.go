package redact

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"slices"
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
		x.heads.eight.wide = false
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

// FuzzSift: what tells where a gram may be says the same in both ways, names each such place once and passes over none.
func FuzzSift(f *testing.F) {
	f.Add([]byte("some text ghp_9fKq2LmZx7RtVb4NwYc8 and more of it, as there would be"), uint16(0), uint64(1))
	f.Add(bytes.Repeat([]byte("x"), 100), uint16(3), uint64(2))
	f.Add(bytes.Repeat([]byte(alnumValue), 100), uint16(1), uint64(3))
	f.Fuzz(func(t *testing.T, p []byte, at uint16, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 21))
		set := setOf(t, "A", randomValue(r, 20+r.IntN(9)), "B", randomValue(r, 8+r.IntN(8)), "C", "q7"+alnumValue)
		n, err := set.compiled()
		if err != nil {
			t.Fatal(err)
		}
		p = plant(set, p, r)
		for _, x := range []*index{n.exact, n.folded} {
			for _, c := range append(x.classes, class{sieve: x.heads.eight, q: 8, s: 1, mask: ^uint64(0)}) {
				plain := c
				plain.wide = false
				i := min(int(at), len(p))
				got, want := siftAll(t, &c, p, i), siftAll(t, &plain, p, i)
				if !slices.Equal(got, want) {
					t.Fatalf("%q from %d by %d: %d, want %d", p, i, c.s, got, want)
				}
				var each []int
				for ; i+c.q <= len(p); i += c.s {
					if c.may(c.hash(load(p, i))) {
						each = append(each, i)
					}
				}
				if !slices.Equal(got, each) {
					t.Fatalf("%q: %d, one by one %d", p, got, each)
				}
			}
		}
	})
}

// siftAll returns all places from i on that pass the sieve of c, and checks that each step gets on.
func siftAll(t *testing.T, c *class, p []byte, i int) (all []int) {
	for i+c.q <= len(p) {
		var found places
		n, next := c.sift(p, i, &found)
		if next <= i || (next-i)%c.s != 0 {
			t.Fatalf("from %d by %d: goes on at %d", i, c.s, next)
		}
		for _, at := range found[:n] {
			all = append(all, int(at))
		}
		i = next
	}
	return all
}

// Every gram that was put into buckets is found by its hash, however many are in one, and a tag that is not there matches nothing but by chance.
func TestBuckets(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	const shift = 62 // four of them
	buckets, hashes := make([]bucket, 4), make([]uint64, 200)
	for id := range hashes {
		if hashes[id] = r.Uint64(); id%3 == 1 {
			hashes[id] = hashes[id-1]
		}
		buckets = put(buckets, shift, hashes[id], gramAt(uint32(id), id%40))
	}
	held := func(h uint64) (ids []uint32) {
		for b := &buckets[h>>shift]; ; b = &buckets[b.next] {
			for m := b.match(tagOf(h)) &^ more; m != 0; m &= m - 1 {
				g := b.grams[which(m)]
				if g.from() != int(g.id())%40 {
					t.Fatalf("gram %d from %d", g.id(), g.from())
				}
				ids = append(ids, g.id())
			}
			if b.next == 0 {
				return ids
			}
		}
	}
	for id, h := range hashes {
		if !slices.Contains(held(h), uint32(id)) {
			t.Fatalf("gram %d is lost", id)
		}
		if n := len(held(h ^ 0xff<<20)); n > 20 {
			t.Errorf("a tag that is not there matches %d grams", n)
		}
	}
}

// What shortCSI takes at once is what controlLen takes byte by byte.
func TestShortCSI(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	taken := 0
	for range 1 << 16 {
		p := []byte("\x1b[31;0m x~")
		for range r.IntN(4) {
			p[2+r.IntN(8)] = byte(r.Uint32())
		}
		want := 1
		for i, c := range p[2:] {
			if c < 0x20 || c > 0x3f {
				if c >= 0x40 && c <= 0x7e {
					want = i + 3
				}
				break
			}
		}
		if got := shortCSI(binary.LittleEndian.Uint64(p[2:])); got != want && (got != 0 || want != 1) && want <= 10 {
			t.Fatalf("%q: %d, want %d", p, got, want)
		}
		if controlLen(p) > 1 {
			taken++
		}
	}
	if taken == 0 {
		t.Error("none is a control sequence")
	}
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
