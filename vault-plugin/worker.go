package vaultplugin

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

const (
	tickEvery      = time.Second
	payInParallel  = 8
	maxBackoff     = 5 * time.Minute
	alarmAfter     = 6                // failed revocations at a source
	archiveAfter   = 30 * time.Second // since the end of a run
	archivePerTick = 20
	wallGrace      = time.Minute
)

// A worker does, outside of requests, what nobody waits for: it ends what is
// silent, expired or unconfirmed, revokes at sources what is owed, and moves
// ended runs aside. All that it needs is in the index, so a tick of an idle
// mount reads no storage. It may be killed at any time: what it owes is in
// storage.
type worker struct {
	b    *backend
	kick chan struct{}

	mu      sync.Mutex
	cancel  context.CancelFunc
	running sync.WaitGroup
	debts   map[sealed.GrantID]debt
}

// A debt is a revocation that a source still has to carry out.
type debt struct {
	tries  int
	next   time.Time
	paying bool
}

func newWorker(b *backend) *worker {
	return &worker{b: b, kick: make(chan struct{}, 1), debts: make(map[sealed.GrantID]debt)}
}

// start starts the worker unless it runs.
func (w *worker) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	// What calls sources is apart, so that one that hangs delays nothing else.
	for _, loop := range []func(context.Context){w.keepTime, w.keepPaying, w.keepSources} {
		w.running.Go(func() { loop(ctx) })
	}
}

// stop ends the worker and waits for it.
func (w *worker) stop() {
	w.mu.Lock()
	cancel := w.cancel
	w.cancel = nil
	w.mu.Unlock()
	if cancel != nil {
		cancel()
		w.running.Wait()
	}
}

// soon runs f apart from the call that wants it. stop waits for it, if the
// worker was running.
func (w *worker) soon(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel == nil {
		go f()
		return
	}
	w.running.Go(f)
}

// wake makes the worker pay now. It never blocks.
func (w *worker) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *worker) keepTime(ctx context.Context) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if w.b.layout.ready(ctx, w.b, w.b.storage) != nil {
				continue // requests say why
			}
			w.tick(ctx, w.b.storage)
			w.b.housekeep(ctx)
		}
	}
}

func (w *worker) keepPaying(ctx context.Context) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-w.kick:
		}
		if w.b.layout.ready(ctx, w.b, w.b.storage) == nil {
			w.pay(ctx, w.b.storage, "")
		}
	}
}

// tick looks at every live run once.
func (w *worker) tick(ctx context.Context, s logical.Storage) {
	b := w.b
	cfg, err := b.config(ctx, s)
	if err != nil {
		return // not configured yet, or storage is away: nothing was issued
	}
	x, err := b.index(ctx, s)
	if err != nil {
		b.Logger().Warn("worker: loading runs", "error", err)
		return
	}
	b.recordOwed(ctx, s)
	archived := 0
	for _, r := range x.list() {
		if ctx.Err() != nil {
			return
		}
		err := w.tend(ctx, s, cfg, r)
		if err == nil && r.over() && archived < archivePerTick {
			var done bool
			if done, err = b.archive(ctx, s, r.ID); done {
				archived++
			}
		}
		if err != nil && !errors.Is(err, sealed.ErrConflict) {
			b.Logger().Warn("worker: tending a run", "run", r.ID, "error", err)
		}
	}
	for _, a := range x.listApprovals(func(a approvalRow) bool { return a.state(x, b.now()) != a.State }) {
		if err := b.expireApproval(ctx, s, a.ID); err != nil {
			b.Logger().Warn("worker: expiring an approval", "approval", a.ID, "error", err)
		}
	}
}

// tend ends a run that is due, and its grants that are.
func (w *worker) tend(ctx context.Context, s logical.Storage, cfg *engineConfig, r runRow) error {
	state, reason := w.due(cfg, r)
	if state != "" {
		still := func(r runRow) bool { again, _ := w.due(cfg, r); return again == state }
		if _, err := w.b.endRun(ctx, s, r.ID, state, "engine", reason, still); err != nil {
			return err
		}
		w.b.mem.forget(r.ID)
	}
	return w.b.endGrants(ctx, s, cfg, r.ID)
}

// due says into which state a run has to be moved now, and why.
func (w *worker) due(cfg *engineConfig, r runRow) (state, reason string) {
	now := w.b.now()
	wall := r.m.Sandbox.WallTime.Std() + wallGrace
	switch r.State {
	case sealed.RunEnqueued:
		if identified(r.m.Mode) && !now.Before(r.TicketExpires) {
			return sealed.RunExpired, "ticket"
		}
		if !identified(r.m.Mode) && now.Sub(r.m.CreatedAt) > wall {
			return sealed.RunClosed, "wall_time"
		}
	case sealed.RunClaimed:
		if w.b.mem.silentFor(r.ID, now) > cfg.SilentAfter.Std() {
			return sealed.RunClosed, "silent"
		}
		if now.Sub(r.Claim.At) > wall {
			return sealed.RunAborted, "wall_time"
		}
	case sealed.RunAborted:
		if r.Claim == nil || w.b.mem.silentFor(r.ID, now) > cfg.SilentAfter.Std() {
			return sealed.RunClosed, "aborted"
		}
	}
	return "", ""
}

// pay revokes at the sources what is owed, of one run or of all.
func (w *worker) pay(ctx context.Context, s logical.Storage, run sealed.RunID) {
	w.payWithin(ctx, ctx, s, run)
}

// payWithin calls no source after limit has ended.
func (w *worker) payWithin(ctx, limit context.Context, s logical.Storage, run sealed.RunID) {
	x, err := w.b.index(ctx, s)
	if err != nil {
		return
	}
	slots := make(chan struct{}, payInParallel)
	var all sync.WaitGroup
	for _, r := range x.list() {
		if run != "" && r.ID != run {
			continue
		}
		for _, g := range x.grants(r.ID) {
			if !g.owed() || w.b.mem.minting(g.ID) {
				continue
			}
			select {
			case slots <- struct{}{}:
			case <-limit.Done():
			}
			if limit.Err() != nil {
				break // the next round pays
			}
			if !w.take(g.ID, run != "") {
				<-slots
				continue
			}
			all.Go(func() {
				defer func() { <-slots }()
				w.payOne(ctx, limit, s, g)
			})
		}
	}
	all.Wait()
}

// settle pays what one run owes, before its last answer, as far as the sources
// take no longer than one call may: the request holds Vault's state lock.
func (w *worker) settle(ctx context.Context, s logical.Storage, run sealed.RunID) {
	limit, cancel := context.WithTimeout(ctx, sourceLimit)
	defer cancel()
	w.payWithin(ctx, limit, s, run)
}

// take reserves a debt that is due, or any that nobody is paying if now is set.
func (w *worker) take(id sealed.GrantID, now bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.debts[id]
	if d.paying || (!now && w.b.now().Before(d.next)) {
		return false
	}
	d.paying = true
	w.debts[id] = d
	return true
}

func (w *worker) payOne(ctx, limit context.Context, s logical.Storage, g grantRow) {
	limited, cancel := context.WithTimeout(limit, sourceLimit)
	defer cancel()
	_, src, err := w.b.source(ctx, s, g.Source)
	if err == nil {
		err = src.Revoke(limited, g.Handle)
	}
	if err == nil {
		err = w.b.undone(ctx, s, g)
	}
	w.mu.Lock()
	d := w.debts[g.ID]
	if err == nil {
		delete(w.debts, g.ID)
		w.mu.Unlock()
		return
	}
	d.paying = false
	d.tries++
	d.next = w.b.now().Add(min(time.Second<<min(d.tries, 10), maxBackoff))
	w.debts[g.ID] = d
	w.mu.Unlock()
	w.b.Logger().Warn("worker: revoking at the source", "run", g.Run, "grant", g.ID, "source", g.Source, "tries", d.tries)
	if d.tries == alarmAfter {
		w.b.recordSoon(ctx, s, audit.Event{Type: "lease.irrevocable", Run: string(g.Run), Essential: true, Body: map[string]any{
			"key": g.Key, "grant": g.ID, "source": g.Source, "tries": d.tries,
		}})
	}
}

// undone logs and stores that the source has revoked.
func (b *backend) undone(ctx context.Context, s logical.Storage, g grantRow) error {
	defer b.lockRun(g.Run)()
	if _, err := b.record(ctx, s, audit.Event{Type: "lease.revoked", Run: string(g.Run), Essential: true, Body: map[string]any{
		"key": g.Key, "grant": g.ID, "source": g.Source, "outcome": g.Outcome,
	}}); err != nil {
		return err
	}
	g.Undone, g.Ciphertext = true, ""
	return b.saveGrant(ctx, s, g)
}
