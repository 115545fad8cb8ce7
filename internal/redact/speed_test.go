package redact

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

func BenchmarkSpeed(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	text := cleanText(r, 64<<20)
	const size = 32 << 10
	dst := make([]byte, size)
	b.Run("memcpy", func(b *testing.B) {
		b.SetBytes(size)
		at := 0
		for b.Loop() {
			if at+size > len(text) {
				at = 0
			}
			copy(dst, text[at:at+size])
			at += size
		}
	})
	for _, n := range []int{10, 100, 1000} {
		set := randomSet(b, rand.New(rand.NewPCG(1, 2)), n)
		set.compiled()
		for _, folded := range []bool{false, true} {
			for _, size := range []int{32 << 10, 4 << 10, 80} {
				b.Run(fmt.Sprintf("values=%d/folded=%v/write=%d", n, folded, size), func(b *testing.B) {
					w := NewWriter(io.Discard, set, "bench")
					w.Write(nil)
					if !folded {
						w.s.folded.x = newIndex(nil)
					}
					b.SetBytes(int64(size))
					b.ReportAllocs()
					at := 0
					for b.Loop() {
						if at+size > len(text) {
							at = 0
						}
						w.Write(text[at : at+size])
						at += size
					}
				})
			}
		}
	}
}
