package redact

import (
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// randomValue returns n letters and digits, the first and last of which are in no mask.
func randomValue(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	b[0], b[n-1] = 'q', 'z'
	return string(b)
}

func randomSet(t testing.TB, r *rand.Rand, n int) *Set {
	s := NewSet()
	for i := range n {
		if err := s.Add(fmt.Sprintf("KEY_%d", i), []byte(randomValue(r, 20+r.IntN(45))), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// cleanText is the log of a build: words, paths, hashes, base64, colors.
func cleanText(r *rand.Rand, n int) []byte {
	words := strings.Fields("compiling package internal test ok warning error note file line func return main build cache module download INFO DEBUG started finished in")
	var b strings.Builder
	for b.Len() < n {
		switch r.IntN(12) {
		case 0:
			fmt.Fprintf(&b, "%016x%016x%08x ", r.Uint64(), r.Uint64(), r.Uint32())
		case 1:
			fmt.Fprintf(&b, "\x1b[3%dm%s\x1b[0m ", r.IntN(8), words[r.IntN(len(words))])
		case 2:
			fmt.Fprintf(&b, "h1:%s= ", base64.RawStdEncoding.EncodeToString(fmt.Appendf(nil, "%d%d%d", r.Uint64(), r.Uint64(), r.Uint64())))
		case 3:
			fmt.Fprintf(&b, "/usr/lib/go/src/%s/%s.go:%d:%d\n", words[r.IntN(len(words))], words[r.IntN(len(words))], r.IntN(999), r.IntN(99))
		default:
			b.WriteString(words[r.IntN(len(words))])
			b.WriteByte(" \n"[r.IntN(8)/7])
		}
	}
	return []byte(b.String())
}

// BenchmarkClean measures a stream without values, in writes of 32 KiB, every value registered in all forms.
func BenchmarkClean(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		for _, size := range []int{32 << 10, 80} {
			b.Run(fmt.Sprintf("values=%d/write=%d", n, size), func(b *testing.B) {
				r := rand.New(rand.NewPCG(1, 2))
				set, text := randomSet(b, r, n), cleanText(r, 4<<20)
				w := NewWriter(io.Discard, set, "bench")
				if _, err := w.Write(nil); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				at := 0
				for b.Loop() {
					if at+size > len(text) {
						at = 0
					}
					if _, err := w.Write(text[at : at+size]); err != nil {
						b.Fatal(err)
					}
					at += size
				}
				if len(w.Counts()) != 0 {
					b.Fatalf("clean text is masked: %v", w.Counts())
				}
			})
		}
	}
}

// BenchmarkHits has a value each 4 KiB.
func BenchmarkHits(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	set, text := randomSet(b, r, 100), cleanText(r, 4<<20)[:4<<20]
	for i := 0; i+4096 < len(text); i += 4096 {
		copy(text[i:], set.vals[r.IntN(100)].value)
	}
	stir(b, set, text)
}

// BenchmarkNear has the beginning of a value each 64 bytes.
func BenchmarkNear(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	set, text := randomSet(b, r, 100), cleanText(r, 4<<20)[:4<<20]
	for i := 0; i+64 < len(text); i += 64 {
		copy(text[i:], set.vals[r.IntN(100)].value[:16])
	}
	stir(b, set, text)
}

func stir(b *testing.B, set *Set, text []byte) {
	w := NewWriter(io.Discard, set, "bench")
	b.SetBytes(32 << 10)
	for i := 0; b.Loop(); i++ {
		at := i * (32 << 10) % len(text)
		if _, err := w.Write(text[at : at+32<<10]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuild measures the automata: time and memory that stays.
func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("values=%d", n), func(b *testing.B) {
			set := randomSet(b, rand.New(rand.NewPCG(1, 2)), n)
			for b.Loop() {
				set.built = nil
				if _, err := set.compiled(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(heapOf(set)/1024, "KiB-held")
		})
	}
}

// heapOf returns the bytes of heap that the compiled set holds.
func heapOf(set *Set) float64 {
	var with, without runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&with)
	set.built = nil
	runtime.GC()
	runtime.ReadMemStats(&without)
	return float64(with.HeapAlloc) - float64(without.HeapAlloc)
}
