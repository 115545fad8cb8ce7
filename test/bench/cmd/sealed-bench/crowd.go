package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"sealed.dev/sealed/test/bench"
)

const (
	crowd      = 32  // clients, each with a run and a connection of its own
	crowdGoal  = 0.4 // of the throughput of reading
	sharedGoal = 8   // entries per commit of the log
)

// crowdRows compares throughputs: 32 guests that issue at once, and the same
// connections reading from KV v2, in turns. Requests are signed; answers are not
// opened, which real clients do on machines of their own.
func (t *tenant) crowdRows(ctx context.Context, percent int, synced bool) ([]bench.Row, error) {
	guests := make([]*guest, crowd)
	for i := range guests {
		g, err := t.newGuest(ctx, t.door.twin())
		if err != nil {
			return nil, err
		}
		guests[i] = g
	}
	var issued, read, shared bench.Sample
	each := times(80, percent)
	for range 4 {
		before, err := t.logged(ctx)
		if err != nil {
			return nil, err
		}
		if err := together(guests, each, &issued, func(g *guest) error { _, err := g.ask(ctx); return err }); err != nil {
			return nil, err
		}
		after, err := t.logged(ctx)
		if err != nil {
			return nil, err
		}
		shared.Add(float64(after.entries-before.entries) / float64(after.commits-before.commits))
		if err := together(guests, 2*each, &read, func(g *guest) error {
			_, err := g.door.call(ctx, http.MethodGet, kvMount+"/data/token", nil)
			return err
		}); err != nil {
			return nil, err
		}
	}
	var errs error
	for _, g := range guests {
		errs = errors.Join(errs, t.operator.CloseRun(ctx, g.run, "measured"))
	}
	row := bench.Compare("creds, 32 clients", "req/s", &issued, "KV v2 read, 32 clients", &read)
	if !synced {
		row = row.Want("ratio ≥ 0.4", row.Ratio >= crowdGoal)
	}
	return []bench.Row{
		row,
		bench.Alone("  log entries per commit", "entries", &shared).Want("p50 > 8", shared.Median() > sharedGoal),
	}, errs
}

// together lets every guest do f so many times, and adds the calls per second
// of all.
func together(guests []*guest, each int, s *bench.Sample, f func(*guest) error) error {
	var all sync.WaitGroup
	errs := make([]error, len(guests))
	start := time.Now()
	for i, g := range guests {
		all.Go(func() {
			for range each {
				if errs[i] = f(g); errs[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	s.Add(float64(len(guests)*each) / time.Since(start).Seconds())
	return errors.Join(errs...)
}

// A logSize is what the log of the guest mount holds, and in how many writes it
// was committed since the engine started.
type logSize struct{ entries, commits int }

func (t *tenant) logged(ctx context.Context) (n logSize, err error) {
	data, err := t.root.Read(ctx, guestMount+"/log/checkpoint", nil)
	if err != nil {
		return n, err
	}
	head, _ := data["checkpoint"].(string)
	lines := strings.Split(head, "\n")
	if len(lines) < 3 {
		return n, errors.New("reading the log's checkpoint: malformed")
	}
	if n.entries, err = strconv.Atoi(lines[1]); err != nil {
		return n, fmt.Errorf("reading the log's checkpoint: %w", err)
	}
	if n.commits, err = strconv.Atoi(fmt.Sprint(data["commits"])); err != nil {
		return n, fmt.Errorf("reading the log's commits: %w", err)
	}
	return n, nil
}
