package relay

import (
	"context"
	"sync"
	"time"
)

const (
	// tallyEvery is the interval between sums of repeated refusals.
	tallyEvery = 5 * time.Second
	// tallyKinds bounds the different refusals that are told apart; the rest
	// is summed under an empty address. The agent chooses the names.
	tallyKinds = 128
)

type refusal struct{ addr, reason string }

// A tally sums refusals. The zero value is ready.
type tally struct {
	mu     sync.Mutex
	counts map[refusal]int
}

// add counts a refusal, and reports it at once if it is the first of its kind.
func (t *tally) add(d Denied, report func(Denied)) {
	if report == nil {
		return
	}
	t.mu.Lock()
	if t.counts == nil {
		t.counts = make(map[refusal]int)
	}
	k := refusal{d.Addr, d.Reason}
	if _, known := t.counts[k]; !known && len(t.counts) >= tallyKinds {
		k.addr = ""
		d.Addr = ""
	}
	_, known := t.counts[k]
	if known {
		t.counts[k]++
	} else {
		t.counts[k] = 0
	}
	t.mu.Unlock()
	if !known {
		d.Count = 1
		report(d)
	}
}

// run reports sums until ctx ends, and what is left then.
func (t *tally) run(ctx context.Context, report func(Denied)) {
	if report == nil {
		return
	}
	tick := time.NewTicker(tallyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.flush(report)
		case <-ctx.Done():
			t.flush(report)
			return
		}
	}
}

func (t *tally) flush(report func(Denied)) {
	t.mu.Lock()
	var out []Denied
	for k, n := range t.counts {
		if n > 0 {
			out = append(out, Denied{Addr: k.addr, Reason: k.reason, Count: n})
			t.counts[k] = 0
		}
	}
	t.mu.Unlock()
	for _, d := range out {
		report(d)
	}
}
