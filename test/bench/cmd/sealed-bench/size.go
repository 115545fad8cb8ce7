package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/bench"
)

const (
	sizeSection  = "size"
	sizeProfiles = 100_000
	sizeRuns     = 1_000
	sizeLeases   = 10 // of each run
	sizeWorkers  = 8
	sizeGoal     = 150 // MiB of the engine's process
	sizeChange   = 1.1 // creds to KV, after to before
)

// sizeRows fills the engine and tells what its process takes, and whether
// issuing became slower: 100,000 profiles, then 1,000 live runs with 10 leases
// each. The process is the one that serves the mounts, with Vault apart.
func sizeRows(ctx context.Context, st *stack, percent int) ([]bench.Row, error) {
	t, err := st.guests(ctx)
	if err != nil {
		return nil, err
	}
	// The runs that hold leases say nothing themselves.
	if err := t.silence(ctx); err != nil {
		return nil, err
	}
	before, read, err := t.alone(ctx, times(200, percent))
	if err != nil {
		return nil, err
	}
	profiles, runs := max(sizeProfiles*percent/100, 10), max(sizeRuns*percent/100, 2)
	if err := spread(profiles, func(i int) error {
		p := profile("bench-operators")
		p.Name = sealed.ProfileName(fmt.Sprintf("size/p%d", i))
		_, err := t.admin.WriteProfile(ctx, p)
		return err
	}); err != nil {
		return nil, fmt.Errorf("writing profiles: %w", err)
	}
	filled, again, err := t.alone(ctx, times(200, percent))
	if err != nil {
		return nil, err
	}
	if err := t.endRun(ctx); err != nil {
		return nil, err
	}
	stored, err := st.footprint()
	if err != nil {
		return nil, err
	}
	ids := make([]sealed.RunID, runs)
	if err := spread(runs, func(i int) (err error) {
		ids[i], err = t.hold(ctx, sizeLeases)
		return err
	}); err != nil {
		return nil, fmt.Errorf("making leases: %w", err)
	}
	held, err := st.footprint()
	if err != nil {
		return nil, err
	}
	var preview bench.Sample
	for range 5 {
		start := time.Now()
		if _, err := t.operator.PreviewRevocation(ctx, sealed.Revocation{Kind: sealed.RevokeKey, Target: string(keyName), Reason: "measured"}); err != nil {
			return nil, err
		}
		preview.Took(start)
		time.Sleep(time.Second) // previews are rate limited
	}
	err = spread(runs, func(i int) error { return t.operator.CloseRun(ctx, ids[i], "measured") })
	small, large := bench.Compare("", "ms", &before, "", &read), bench.Compare("", "ms", &filled, "", &again)
	row := bench.Compare(fmt.Sprintf("creds with %d profiles", profiles), "ms", &filled, "KV v2 read", &again)
	return []bench.Row{
		bench.Compare("creds, one profile", "ms", &before, "KV v2 read", &read),
		row.Want("ratio ≤ 1.1 × that", large.Ratio <= small.Ratio*sizeChange),
		stored.row("  resident memory of the engine then"),
		held.row(fmt.Sprintf("  and with %d leases of %d runs", runs*sizeLeases, runs)),
		bench.Alone("  preview of a revocation of all", "ms", &preview).Want("p50 ≤ 1 s", preview.Median() <= 1000),
	}, err
}

// alone measures one client's creds and KV reads in turns.
func (t *tenant) alone(ctx context.Context, n int) (creds, read bench.Sample, err error) {
	for i := range n {
		if i%grantsPerRun == 0 {
			if err := t.nextRun(ctx); err != nil {
				return creds, read, err
			}
		}
		r, err := t.door.call(ctx, http.MethodGet, kvMount+"/data/token", nil)
		if err != nil {
			return creds, read, err
		}
		read.Add(bench.Milliseconds(r.took))
		c, err := t.guest.creds(ctx)
		if err == nil {
			creds.Add(bench.Milliseconds(c.took))
			err = t.guest.confirm(ctx, c)
		}
		if err != nil {
			return creds, read, err
		}
	}
	return creds, read, nil
}

// hold claims a run and leaves it with so many leases.
func (t *tenant) hold(ctx context.Context, leases int) (sealed.RunID, error) {
	g, err := t.newGuest(ctx, t.door.twin())
	if err != nil {
		return "", err
	}
	defer g.door.client.CloseIdleConnections()
	for range leases {
		c, err := g.creds(ctx)
		if err == nil {
			err = g.confirm(ctx, c)
		}
		if err != nil {
			return g.run, err
		}
	}
	return g.run, nil
}

// spread calls f for 0 to n-1 from a few workers and stops at the first error.
func spread(n int, f func(i int) error) error {
	var all sync.WaitGroup
	errs := make([]error, sizeWorkers)
	for w := range sizeWorkers {
		all.Go(func() {
			for i := w; i < n && errs[w] == nil; i += sizeWorkers {
				errs[w] = f(i)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// A footprint is the resident memory of a process, in MiB.
type footprint struct{ now, peak float64 }

func (f footprint) row(what string) bench.Row {
	var s bench.Sample
	s.Add(f.now)
	return bench.Alone(fmt.Sprintf("%s (peak %.0f)", what, f.peak), "MiB", &s).Want(fmt.Sprintf("≤ %d", sizeGoal), f.now <= sizeGoal)
}

// footprint is that of the process which serves the stack's mounts.
func (s *stack) footprint() (f footprint, err error) {
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return f, err
	}
	i := slices.IndexFunc(exes, func(exe string) bool {
		to, err := os.Readlink(exe)
		return err == nil && strings.HasPrefix(to, s.dir) && filepath.Base(to) == plugin
	})
	if i < 0 {
		return f, errors.New("finding the engine's process: there is none")
	}
	pid, err := strconv.Atoi(filepath.Base(filepath.Dir(exes[i])))
	if err != nil {
		return f, err
	}
	if f.now, err = memoryOf(pid, "VmRSS"); err != nil {
		return f, err
	}
	f.peak, err = memoryOf(pid, "VmHWM")
	return f, err
}
