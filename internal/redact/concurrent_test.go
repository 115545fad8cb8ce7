package redact

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// TestLargeCuts compares cuts of streams that are longer than every buffer and history, thick with backspaces, control sequences, broken values and gaps.
func TestLargeCuts(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 9))
		set := setOf(t, "K", alnumValue, "B", alnumValue[20:]+"Zt5_w", "P", strings.Repeat("ab7", 20), "PEM", pemValue)
		var in []byte
		for len(in) < 300<<10 {
			switch r.IntN(14) {
			case 0:
				in = append(in, strings.Repeat("\b", r.IntN(80))...)
			case 1:
				in = append(in, strings.Repeat(" ", r.IntN(9000))...)
			case 2:
				in = append(in, strings.Repeat("ab7", r.IntN(40))...)
			case 3:
				in = append(in, "\x1b]0;title"...)
			default:
				in = append(plant(set, []byte("some text 0x "), r), in...)
				in = append(in, plant(set, cleanText(r, 50), r)...)
			}
		}
		want, counts := pass(t, set, string(in), cuts[0].next)
		if len(counts) == 0 {
			t.Fatal("nothing masked")
		}
		for _, most := range []int{1, 100, 5000, 70000} {
			if got, _ := pass(t, set, string(in), func(left int) int { return 1 + r.IntN(min(left, most)) }); got != want {
				i := 0
				for ; i < min(len(got), len(want)) && got[i] == want[i]; i++ {
				}
				t.Errorf("seed %d, cut by %d, differs at %d:\n got …%q\nwant …%q", seed, most, i, got[max(0, i-80):min(len(got), i+80)], want[max(0, i-80):min(len(want), i+80)])
			}
		}
	}
}

// TestConcurrent grows a set while writers use it, and shares a writer. Each value must be masked once its Add has returned.
func TestConcurrent(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	var b bytes.Buffer
	shared := NewWriter(&b, set, "shared")
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 5))
			w := NewWriter(io.Discard, set, "own")
			for j := range 5 {
				v := randomValue(r, 30)
				if err := set.Add(fmt.Sprintf("K_%d_%d", i, j), []byte(v), Options{}); err != nil {
					t.Error(err)
				}
				for _, dst := range []io.Writer{w, shared} {
					if _, err := io.WriteString(dst, "<"+v+">"); err != nil {
						t.Error(err)
					}
				}
			}
			if err := w.Close(); err != nil || len(w.Counts()) != 5 {
				t.Errorf("Close = %v, %d keys masked", err, len(w.Counts()))
			}
		})
	}
	group.Wait()
	if err := shared.Close(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "<[sealed:K_"); n != 20 || len(shared.Counts()) != 20 {
		t.Errorf("%d masks: %q", n, b.String())
	}
}
