// Command decisions measures one decision of the default policy beside other ways to come to it, on the same machine, in the same run and in turns: the same
// bundle as plain OPA is asked (a map in, a map out), the same policy in Cedar, and in plain Go.
//
// Before it measures, all of them must agree about some thousand random requests, or it fails. Figures are the best of several slices of the processor time that
// the whole process used, collection of garbage too; nothing passes or fails by them.
//
//	go run ./decisions [-rounds 12] [-slice 60ms] [-profiles 10,1000,100000]
//
// The peers are favored: OPA's map is made once, Cedar's answer has no obligations and its reasons are the ids of policies, plain Go's has no sentences.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

func main() {
	rounds := flag.Int("rounds", 12, "slices of each row")
	slice := flag.Duration("slice", 60*time.Millisecond, "length of a slice")
	profiles := flag.String("profiles", "10,1000,100000", "numbers of profiles")
	flag.Parse()
	if err := run(context.Background(), *rounds, *slice, strings.Split(*profiles, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "decisions:", err)
		os.Exit(1)
	}
}

// A row is one way to decide, measured.
type row struct {
	who      string
	kind     string // of question
	profiles int
	step     func(i int) sealed.Effect
	want     sealed.Effect // "" if the step is something else than one decision

	best   float64 // microseconds
	allocs float64
	bytes  float64
}

func run(ctx context.Context, rounds int, slice time.Duration, counts []string) error {
	e, err := newEngines(ctx)
	if err != nil {
		return err
	}
	n, err := e.agree(ctx, 3000)
	if err != nil {
		return err
	}
	fmt.Printf("agree about %d random requests: %v\n", 3000, n)
	var rows []*row
	for _, c := range counts {
		n, err := strconv.Atoi(c)
		if err != nil || n < 1 {
			return fmt.Errorf("reading -profiles: %q is no number", c)
		}
		rows = append(rows, e.rows(ctx, n)...)
	}
	rows = append(rows, e.keyRows(ctx)...)
	for _, r := range rows {
		if got := r.step(0); r.want != "" && got != r.want {
			return fmt.Errorf("%s, %s: %s, want %s", r.who, r.kind, got, r.want)
		}
		r.allocs, r.bytes = allocated(r.step)
	}
	for range rounds {
		for _, r := range rows {
			if got := r.slice(slice); r.best == 0 || got < r.best {
				r.best = got
			}
		}
	}
	return table(rows)
}

// slice runs steps for about as long as d, and returns the microseconds of one.
func (r *row) slice(d time.Duration) float64 {
	n := 0
	start := cpuTime()
	for cpuTime()-start < d {
		for range 8 {
			r.step(n)
			n++
		}
	}
	return (cpuTime() - start).Seconds() * 1e6 / float64(n)
}

// cpuTime is the processor time of this process.
func cpuTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// allocated is what one step allocates: how often and how many bytes.
func allocated(step func(int) sealed.Effect) (times, size float64) {
	const n = 200
	var before, after runtime.MemStats
	step(0)
	runtime.ReadMemStats(&before)
	for i := range n {
		step(i)
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / n, float64(after.TotalAlloc-before.TotalAlloc) / n
}

func table(rows []*row) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "question\tby\tprofiles\tµs\tbytes\tallocations\tof EvalInput(map)")
	for _, r := range rows {
		ratio := ""
		for _, b := range rows {
			if b.who == opaMap && b.kind == r.kind && b.profiles == r.profiles {
				ratio = fmt.Sprintf("%.2g", r.best/b.best)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%.3g\t%.0f\t%.0f\t%s\n", r.kind, r.who, r.profiles, r.best, r.bytes, r.allocs, ratio)
	}
	return t.Flush()
}
