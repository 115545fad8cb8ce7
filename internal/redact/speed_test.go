package redact

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cpu returns the processor time of this thread. Wall time says little on a machine that others use too.
func cpu() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// timed reports the speed in processor time.
func timed(b *testing.B, size int, step func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	// The best of many slices: what else the machine does makes some of them slow, and none fast.
	slice := max(1, min(128<<10/size, 1000))
	best, n := time.Duration(1<<62), 0
	start := cpu()
	for b.Loop() {
		step()
		if n++; n == slice {
			now := cpu()
			best, n, start = min(best, now-start), 0, now
		}
	}
	each := float64(best.Nanoseconds()) / float64(slice)
	b.ReportMetric(float64(size)*1e3/each, "best-MB/s")
	b.ReportMetric(each, "best-ns/op")
}

func writeOrFail(b *testing.B, w *Writer, p []byte) {
	if _, err := w.Write(p); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSpeed is the speed of both views and of the exact one beside memcpy, in processor time.
func BenchmarkSpeed(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	text := cleanText(r, 64<<20)
	const size = 32 << 10
	dst := make([]byte, size)
	b.Run("memcpy", func(b *testing.B) {
		at := 0
		timed(b, size, func() {
			if at+size > len(text) {
				at = 0
			}
			copy(dst, text[at:at+size])
			at += size
		})
	})
	for _, v := range []int{10, 100, 1000} {
		set := randomSet(b, rand.New(rand.NewPCG(1, 2)), v)
		if _, err := set.compiled(); err != nil {
			b.Fatal(err)
		}
		for _, folded := range []bool{false, true} {
			for _, size := range []int{32 << 10, 4 << 10, 80} {
				b.Run(fmt.Sprintf("values=%d/folded=%v/write=%d", v, folded, size), func(b *testing.B) {
					w := NewWriter(io.Discard, set, "bench")
					writeOrFail(b, w, nil)
					if !folded {
						w.s.folded.x = newIndex(nil) // the exact view only
						w.s.over.lane.x = w.s.folded.x
					}
					at := 0
					timed(b, size, func() {
						if at+size > len(text) {
							at = 0
						}
						writeOrFail(b, w, text[at:at+size])
						at += size
					})
				})
			}
		}
	}
}

// BenchmarkAdverse has texts that are made to be slow.
func BenchmarkAdverse(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	set := randomSet(b, r, 1000)
	v := func() string { return string(set.vals[r.IntN(1000)].value) }
	for name, unit := range map[string]func() string{
		"hits":      func() string { return string(cleanText(r, 4096)[:4000]) + v() },
		"near":      func() string { return string(cleanText(r, 48)[:40]) + v()[:18] },
		"halves":    func() string { s := v(); return s[:len(s)/2+4] + "!" },
		"window":    func() string { return v()[:20] },
		"spaced":    func() string { return spaced(v()[:19], " ", 1) + "#" },
		"all":       func() string { return v() + "\n" },
		"backspace": func() string { return "x\b" },
		"return":    func() string { return "x\r" },
		"returns":   func() string { return strings.Repeat("a line of text\n", 800) + strings.Repeat("x\r", 10000) },
		"progress":  func() string { return "\r 42% of 812 MB, 12.1 MB/s, 3 s left" },
		"esc":       func() string { return "\x1b[1m" },
		"percent":   func() string { return "%2" },
		"percent41": func() string { return "%41" },
		"backslash": func() string { return "\\" },
		"osc":       func() string { return "\x1b]" },
		"amp":       func() string { return "&amp" },
		"wide":      func() string { return "\uff21" },
		"nul":       func() string { return "\x00" },
		"one":       func() string { return "a" },
	} {
		var text []byte
		for len(text) < 1<<20 {
			text = append(text, unit()...)
		}
		text = text[:1<<20]
		for _, folded := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/folded=%v", name, folded), func(b *testing.B) {
				w := NewWriter(io.Discard, set, "bench")
				if writeOrFail(b, w, nil); !folded {
					w.s.folded.x = newIndex(nil)
					w.s.over.lane.x = w.s.folded.x
				}
				at := 0
				timed(b, 32<<10, func() {
					writeOrFail(b, w, text[at:at+32<<10])
					at = (at + 32<<10) % len(text)
				})
			})
		}
	}
}

// BenchmarkCompile is processor time of what BenchmarkBuild measures.
func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{100, 1000} {
		set := randomSet(b, rand.New(rand.NewPCG(1, 2)), n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			timed(b, 128<<10, func() {
				set.built = nil
				if _, err := set.compiled(); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// BenchmarkLine is a line of 80 bytes that is shown at once.
func BenchmarkLine(b *testing.B) {
	text := cleanText(rand.New(rand.NewPCG(1, 2)), 4<<20)
	for i := 79; i < len(text); i += 80 {
		text[i] = '\n'
	}
	for _, v := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("values=%d", v), func(b *testing.B) {
			w := NewWriter(io.Discard, randomSet(b, rand.New(rand.NewPCG(1, 2)), v), "bench")
			at := 0
			timed(b, 80, func() {
				writeOrFail(b, w, text[at:at+80])
				if err := w.Flush(); err != nil {
					b.Fatal(err)
				}
				at = (at + 80) % (4<<20 - 80)
			})
		})
	}
}
