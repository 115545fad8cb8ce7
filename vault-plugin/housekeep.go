package vaultplugin

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	trustEvery = 30 * time.Second
	sweepEvery = 10 * time.Minute
	pruneEvery = time.Minute
)

// housekeeping remembers when each chore is due. The zero value: now.
type housekeeping struct {
	mu                  sync.Mutex
	trust, sweep, prune time.Time

	warm bool // what lists show of ended runs is in memory
}

// due reports whether a chore's time has come and sets its next one.
func (h *housekeeping) due(at *time.Time, now time.Time, every time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Before(*at) {
		return false
	}
	*at = now.Add(every)
	return true
}

// housekeep does what must not happen inside a request. The worker calls it
// about every second; it limits itself. Failures are logged and tried again.
// It holds no lock across upstream I/O, which takes at most 3 s.
func (b *backend) housekeep(ctx context.Context) {
	if _, err := b.config(ctx, b.storage); err != nil {
		return // not configured: nothing to keep
	}
	b.finishStops(ctx)
	b.warm(ctx)
	now := b.now()
	if h := &b.chores; h.due(&h.trust, now, trustEvery) {
		if err := b.refreshTrustBundle(ctx); err != nil {
			b.Logger().Warn("trust bundle not refreshed; the old one stays", "error", err)
		}
	}
	if h := &b.chores; h.due(&h.sweep, now, sweepEvery) {
		if err := b.sweepBundles(ctx, b.storage); err != nil {
			b.Logger().Warn("policy bundles not swept", "error", err)
		}
	}
	if h := &b.chores; h.due(&h.prune, now, pruneEvery) {
		if err := b.pruneRuns(ctx, b.storage); err != nil {
			b.Logger().Warn("ended runs not pruned", "error", err)
		}
		if err := b.expireProposals(ctx, b.storage); err != nil {
			b.Logger().Warn("proposals not expired", "error", err)
		}
	}
}

// warm reads ended runs ahead, once after a start, a few a second.
func (b *backend) warm(ctx context.Context) {
	b.chores.mu.Lock()
	done := b.chores.warm
	b.chores.mu.Unlock()
	if done {
		return
	}
	more, err := b.warmRuns(ctx, b.storage)
	if err != nil {
		b.Logger().Warn("ended runs not read ahead", "error", err)
		return
	}
	b.chores.mu.Lock()
	defer b.chores.mu.Unlock()
	b.chores.warm = !more
}

// finishStops logs revocations whose append failed and carries out those whose
// effect is not known to be complete, among them, after a restart, all that
// stand: the process may have died between the write and the effect.
func (b *backend) finishStops(ctx context.Context) {
	if _, _, err := b.stopped(ctx, b.storage); err != nil {
		b.Logger().Warn("revocations not loaded; nothing is issued", "error", err)
		return
	}
	b.stops.mu.Lock()
	unlogged := b.stops.unlogged
	b.stops.unlogged = nil
	owed := make([]string, 0, len(b.stops.enforce))
	for id := range b.stops.enforce {
		owed = append(owed, id)
	}
	b.stops.mu.Unlock()
	for _, e := range unlogged {
		b.logStop(ctx, b.storage, e.typ, e.body)
	}
	for _, id := range owed {
		if err := b.enforceOwed(ctx, id); err != nil {
			b.Logger().Warn("revocation not enforced yet", "id", id, "error", err)
		}
	}
}

func (b *backend) enforceOwed(ctx context.Context, id string) error {
	b.stops.mu.Lock()
	rev, ok := b.stops.enforce[id]
	b.stops.mu.Unlock()
	if !ok {
		return nil // lifted or done meanwhile
	}
	if _, _, err := b.enforce(ctx, b.storage, rev); err != nil {
		return fmt.Errorf("enforcing: %w", err)
	}
	b.stops.paid(id)
	return nil
}
