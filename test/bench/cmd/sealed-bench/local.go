package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/bench"
)

// decisionGoal is what one decision of the default policy may take, and
// runGoal what those for all keys of a run may.
const (
	decisionGoal = 40  // microseconds
	runGoal      = 600 // microseconds
	runKeys      = 50
)

func decisionRows(ctx context.Context, percent int) ([]bench.Row, error) {
	var rows []bench.Row
	for _, effect := range []sealed.Effect{sealed.EffectAllow, sealed.EffectDeny} {
		d, err := bench.NewDecider(ctx, effect)
		if err != nil {
			return nil, err
		}
		var s, allocs bench.Sample
		for range times(2000, percent) {
			start := time.Now()
			_ = d.Decide(ctx)
			s.Add(float64(time.Since(start)) / float64(time.Microsecond))
		}
		allocs.Add(allocations(func() { _ = d.Decide(ctx) }))
		row := bench.Alone("decision in process, "+string(effect), "µs", &s)
		if effect == sealed.EffectAllow {
			row = row.Want("p50 ≤ 40 µs", s.Median() <= decisionGoal)
		}
		rows = append(rows, row, bench.Alone("  allocations", "count", &allocs))
	}
	d, err := bench.NewDecider(ctx, sealed.EffectAllow)
	if err != nil {
		return nil, err
	}
	var all bench.Sample
	for range times(200, percent) {
		start := time.Now()
		_ = d.DecideAll(ctx, runKeys)
		all.Add(float64(time.Since(start)) / float64(time.Microsecond))
	}
	return append(rows, bench.Alone("50 keys of a run, 8 kinds", "µs", &all).Want("p50 ≤ 600 µs", all.Median() <= runGoal)), nil
}

// allocations is the mean number of f's allocations. Other goroutines must be
// idle.
func allocations(f func()) float64 {
	const n = 200
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return math.Round(float64(after.Mallocs-before.Mallocs) / n)
}

// redactionRows compares speeds: the higher, the better. Against other redactors, see test/bench/peers.
func redactionRows(percent int) ([]bench.Row, error) {
	var rows []bench.Row
	for _, c := range []struct {
		what      string
		values    int
		exactOnly bool
		goal      float64 // of memcpy
	}{
		{"redaction, 10 values, exact view", 10, true, 0.2},
		{"redaction, 1,000 values, exact view", 1000, true, 0.15},
		{"redaction, 100 values, both views", 100, false, 0.05},
		{"redaction, 1,000 values, both views", 1000, false, 0.05},
	} {
		r, err := bench.NewRedaction(c.values, c.exactOnly)
		if err != nil {
			return nil, err
		}
		var redacted, copied, replaced bench.Sample
		for range times(50, percent) {
			if err := errors.Join(
				speed(&redacted, 256, r.Redact),
				speed(&copied, 4096, func() error { r.Copy(); return nil }),
			); err != nil {
				return nil, err
			}
		}
		row := bench.Compare(c.what, "MB/s", &redacted, "memcpy", &copied)
		rows = append(rows, row.Want(fmt.Sprintf("ratio ≥ %v", c.goal), row.Ratio >= c.goal))
		if c.values != 100 {
			continue
		}
		for range times(10, percent) {
			if err := speed(&replaced, 8, func() error { r.Replace(); return nil }); err != nil {
				return nil, err
			}
		}
		loop := bench.Compare(c.what, "MB/s", &redacted, "bytes.ReplaceAll loop, raw form only", &replaced)
		rows = append(rows, loop.Want("ratio ≥ 1", loop.Ratio >= 1))
	}
	return rows, nil
}

// speed measures many writes at once: a single copy is too short for the clock.
func speed(s *bench.Sample, writes int, f func() error) error {
	start := time.Now()
	for range writes {
		if err := f(); err != nil {
			return err
		}
	}
	s.Add(float64(writes*bench.WriteSize) / 1e6 / time.Since(start).Seconds())
	return nil
}

func auditRows(ctx context.Context, percent int) ([]bench.Row, error) {
	dir, err := os.MkdirTemp("", "sealed-bench-log-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var rows []bench.Row
	for _, writers := range []int{1, 16, 64} {
		s, sync, err := appends(ctx, dir, writers, times(1000, percent))
		if err != nil {
			return nil, err
		}
		row := bench.Compare(name("log append", writers), "µs/entry", s, "fdatasync of the same bytes, each", sync)
		switch writers {
		case 1:
			row = row.Want("ratio ≤ 1.3", row.Ratio <= 1.3)
		case 64:
			row = row.Want("ratio ≤ 0.1", row.Ratio <= 0.1)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func name(what string, writers int) string {
	if writers == 1 {
		return what + ", 1 writer"
	}
	return what + ", " + map[int]string{16: "16", 64: "64"}[writers] + " writers"
}

// appends measures rounds in which each writer appends once, in turns with
// bare syncs. A measurement is the time per entry.
func appends(ctx context.Context, dir string, writers, rounds int) (appended, synced *bench.Sample, err error) {
	l, err := bench.OpenAuditLog(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	appended, synced = new(bench.Sample), new(bench.Sample)
	event := bench.Event()
	micro := func(start time.Time) float64 { return float64(time.Since(start)) / float64(time.Microsecond) }
	for range max(rounds/writers, 10) {
		errs := make([]error, writers)
		var wg sync.WaitGroup
		start := time.Now()
		for i := range writers {
			wg.Go(func() { _, errs[i] = l.Append(ctx, event) })
		}
		wg.Wait()
		appended.Add(micro(start) / float64(writers))
		if err := errors.Join(errs...); err != nil {
			return nil, nil, err
		}
		start = time.Now()
		if err := l.Sync(); err != nil {
			return nil, nil, err
		}
		synced.Add(micro(start))
	}
	return appended, synced, nil
}
