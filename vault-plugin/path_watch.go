package vaultplugin

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// maxWatch bounds a wait: the request holds Vault's state lock (R20).
const maxWatch = time.Second

// maxEvery bounds the time between two calls of a run whose host is watched for.
const maxEvery = 10 * time.Second

// watchEvery is how often a run has to call itself: four times before it would
// be closed as silent.
func (c *engineConfig) watchEvery() sealed.Duration {
	return min(c.SilentAfter/4, sealed.Duration(maxEvery))
}

// pathWatch is how a running init hears of revocations.
func (b *backend) pathWatch() []*framework.Path {
	return []*framework.Path{{
		Pattern:      runPattern + "/watch$",
		DisplayAttrs: display("watch"),
		Fields:       askField(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.op("Wait for orders", b.watchRun),
		},
		HelpSynopsis:    "Wait, at most one second, for an order or for the epoch to rise.",
		HelpDescription: "Answers continue or abort, the grants that are no longer good and the keys that may not be issued. A run that does not call is closed as silent.",
	}}
}

func (b *backend) watchRun(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	var wr sealed.WatchRequest
	r, err := b.openRunCall(ctx, req, d, untilOver, &wr, func() (sealed.RunID, string) { return wr.Run, wr.Path })
	if err != nil {
		return nil, err
	}
	came := b.now().UTC()
	timeout := time.NewTimer(min(wr.Wait.Std(), maxWatch))
	defer timeout.Stop()
	release := b.watches.next()
	for last := false; ; {
		// Both channels are taken before the state is read, so that no change
		// falls between reading and waiting.
		epoch, run := b.epochChanged(), b.runChanged(ctx, req.Storage, r.ID)
		now := b.now().UTC()
		a, err := b.orders(ctx, req.Storage, r.ID)
		if err != nil {
			return nil, err
		}
		a.Came, a.Time = came, now
		if last || a.Order != sealed.OrderContinue || a.Epoch > wr.Epoch {
			return b.answer(ctx, req.Storage, a)
		}
		select {
		case <-epoch:
		case <-run:
		case <-release:
			last = true
		case <-timeout.C: // what changed without waking anybody is told, too
			last = true
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (b *backend) runChanged(ctx context.Context, s logical.Storage, id sealed.RunID) <-chan struct{} {
	x, err := b.index(ctx, s)
	if err != nil {
		return nil // orders will fail with the same error
	}
	return x.changed(id)
}

// orders says what a run has to do now. A hard revocation that covers the run
// or a credential it holds is an order to abort at once, whether or not the
// run's row says so yet.
func (b *backend) orders(ctx context.Context, s logical.Storage, id sealed.RunID) (sealed.WatchAnswer, error) {
	a, r, cfg, err := b.order(ctx, s, id)
	if err != nil {
		return a, err
	}
	return a, b.blockedKeys(ctx, s, r, cfg.TrustDomain, &a)
}

// order is orders without the keys that are blocked.
func (b *backend) order(ctx context.Context, s logical.Storage, id sealed.RunID) (sealed.WatchAnswer, runRow, *engineConfig, error) {
	a := sealed.WatchAnswer{Run: id, Order: sealed.OrderContinue}
	cfg, err := b.config(ctx, s)
	if err != nil {
		return a, runRow{}, cfg, err
	}
	if a.Epoch, err = b.epoch(ctx, s); err != nil {
		return a, runRow{}, cfg, err
	}
	r, err := b.run(ctx, s, id)
	if err != nil {
		return a, r, cfg, err
	}
	if !r.alive() {
		a.Order, a.Reason = sealed.OrderAbort, r.State
	}
	rev, err := b.revoked(ctx, s, r.subject(cfg.TrustDomain))
	if err != nil {
		return a, r, cfg, err
	}
	if rev != nil && rev.Hard {
		a.Order, a.Reason = sealed.OrderAbort, "revocation "+rev.ID
	}
	if err := b.deadGrants(ctx, s, r, cfg.TrustDomain, &a); err != nil {
		return a, r, cfg, err
	}
	a.Every = cfg.watchEvery()
	a.Mark = markOf(a)
	return a, r, cfg, nil
}

func (b *backend) deadGrants(ctx context.Context, s logical.Storage, r runRow, trustDomain string, a *sealed.WatchAnswer) error {
	x, err := b.index(ctx, s)
	if err != nil {
		return err
	}
	for _, g := range x.grants(r.ID) {
		rev, err := b.revoked(ctx, s, g.subject(r, trustDomain))
		if err != nil {
			return err
		}
		hard := rev != nil && rev.Hard
		if hard && g.held() && a.Order == sealed.OrderContinue {
			a.Order, a.Reason = sealed.OrderAbort, "revocation "+rev.ID
		}
		if hard || !g.held() {
			a.Dead = append(a.Dead, g.ID)
		}
	}
	return nil
}

func (b *backend) blockedKeys(ctx context.Context, s logical.Storage, r runRow, trustDomain string, a *sealed.WatchAnswer) error {
	for _, k := range r.m.Keys {
		if err := b.covered(ctx, s, r.keySubject(k, trustDomain)); errors.Is(err, sealed.ErrRevoked) {
			a.Blocked = append(a.Blocked, k.Name)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// A release sends waiting calls home: the mount is being closed, or what it
// has in memory was dropped. The zero release is ready.
type release struct {
	mu sync.Mutex
	c  chan struct{}
}

// next is closed at the next release.
func (r *release) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c == nil {
		r.c = make(chan struct{})
	}
	return r.c
}

func (r *release) all() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c != nil {
		close(r.c)
		r.c = nil
	}
}
