package redact

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// BenchmarkFold is the folded view alone: what takes the characters, and that with the search.
func BenchmarkFold(b *testing.B) {
	text := cleanText(rand.New(rand.NewPCG(1, 2)), 1<<20)
	plain := bytes.ReplaceAll(text, []byte("\x1b["), []byte(".."))
	for name, text := range map[string][]byte{"ansi": text, "plain": plain} {
		set := randomSet(b, rand.New(rand.NewPCG(1, 2)), 10)
		n, err := set.compiled()
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/take", func(b *testing.B) {
			var l foldedLane
			l.reset(n.folded, set.pairs, 0)
			at := 0
			timed(b, 8<<10, func() {
				if at+8<<10 > len(text) {
					at = 0
				}
				l.text, l.runs, l.next = l.text[:0], l.runs[:0], 0
				l.room()
				l.buf, l.base = text[at:at+8<<10], 0
				l.take(0, false)
				at += 8 << 10
			})
		})
		b.Run(name+"/read", func(b *testing.B) {
			var l foldedLane
			l.reset(n.folded, set.pairs, 0)
			at := 0
			base := int64(0)
			timed(b, 32<<10, func() {
				if at+32<<10 > len(text) {
					at = 0
				}
				l.next = base
				l.read(text[at:at+32<<10], base, true)
				at += 32 << 10
				base += 32 << 10
			})
		})
	}
}
