package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/bench"
)

const (
	hosts       = 50
	runsPerHost = 20
	watchGoal   = 0.02 // of the calls of this kind that the engine can answer
)

// watchRows tells what it costs that 1,000 live runs on 50 hosts hear of orders
// within a second: the calls that the hosts make, one each at a time that waits
// in the engine, against those that the engine answers when nobody waits.
func (t *tenant) watchRows(ctx context.Context, percent int) ([]bench.Row, error) {
	// The runs of this measurement say nothing themselves.
	if err := t.silence(ctx); err != nil {
		return nil, err
	}
	each := max(2, runsPerHost*percent/100)
	crews := make([]sealed.HostWatchRequest, hosts)
	for i := range crews {
		for range each {
			g, err := t.newGuest(ctx, t.door)
			if err != nil {
				return nil, err
			}
			crews[i].Runs = append(crews[i].Runs, g.run)
		}
	}
	r, err := t.operator.Revocations(ctx)
	if err != nil {
		return nil, err
	}
	for _, rev := range r {
		for i := range crews {
			crews[i].Epoch = max(crews[i].Epoch, rev.Epoch)
		}
	}
	// As sealed-init does: with the token of a run, each host over a connection of its own.
	doors := make([]*door, hosts)
	for i := range doors {
		doors[i] = t.door.twin()
	}
	var idle, busy bench.Sample
	for range 3 {
		n, err := watching(ctx, doors, crews, sealed.Duration(time.Second), 3*time.Second)
		if err != nil {
			return nil, err
		}
		idle.Add(n)
		if n, err = watching(ctx, doors, crews[:crowd], 0, time.Second); err != nil {
			return nil, err
		}
		busy.Add(n)
	}
	var errs error
	for _, c := range crews {
		for _, id := range c.Runs {
			errs = errors.Join(errs, t.operator.CloseRun(ctx, id, "measured"))
		}
	}
	row := bench.Compare(fmt.Sprintf("watch of %d runs on %d hosts", hosts*each, hosts), "req/s", &idle, "as many as it answers", &busy)
	return []bench.Row{row.Want("ratio ≤ 0.02", row.Ratio <= watchGoal)}, errs
}

// silence lets runs live that say nothing.
func (t *tenant) silence(ctx context.Context) error {
	return t.writes(ctx, write{guestMount + "/config", map[string]any{"silent_after": "1h"}})
}

// watching lets every host watch for so long, and returns the calls per second
// of all.
func watching(ctx context.Context, doors []*door, crews []sealed.HostWatchRequest, wait sealed.Duration, long time.Duration) (float64, error) {
	var all sync.WaitGroup
	var calls atomic.Int64
	errs := make([]error, len(crews))
	start := time.Now()
	for i, r := range crews {
		r.Wait = wait
		doc, err := json.Marshal(r)
		if err != nil {
			return 0, fmt.Errorf("encoding watch: %w", err)
		}
		path := guestMount + "/watch?" + url.Values{"watch": {string(doc)}}.Encode()
		all.Go(func() {
			for time.Since(start) < long {
				if _, errs[i] = doors[i].call(ctx, http.MethodGet, path, nil); errs[i] != nil {
					return
				}
				calls.Add(1)
			}
		})
	}
	all.Wait()
	return float64(calls.Load()) / time.Since(start).Seconds(), errors.Join(errs...)
}
