package vaultplugin

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// maxWatch bounds a wait: the request holds Vault's state lock (R20).
const maxWatch = time.Second

// pathWatch is how a running init hears of revocations.
func (b *backend) pathWatch() []*framework.Path {
	return []*framework.Path{{
		Pattern:      runPattern + "/watch$",
		DisplayAttrs: display("watch"),
		Fields:       requestField(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.op("Wait for orders", b.watchRun),
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
	timeout := time.NewTimer(min(wr.Wait.Std(), maxWatch))
	defer timeout.Stop()
	for {
		// Both channels are taken before the state is read, so that no change
		// falls between reading and waiting.
		epoch, run := b.epochChanged(), b.runChanged(ctx, req.Storage, r.ID)
		a, err := b.orders(ctx, req.Storage, r.ID)
		if err != nil {
			return nil, err
		}
		if a.Order != sealed.OrderContinue || a.Epoch > wr.Epoch {
			return b.answer(ctx, req.Storage, a)
		}
		select {
		case <-epoch:
		case <-run:
		case <-timeout.C:
			return b.answer(ctx, req.Storage, a)
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
	a := sealed.WatchAnswer{Run: id, Order: sealed.OrderContinue}
	cfg, err := b.config(ctx, s)
	if err != nil {
		return a, err
	}
	if a.Epoch, err = b.epoch(ctx, s); err != nil {
		return a, err
	}
	r, err := b.run(ctx, s, id)
	if err != nil {
		return a, err
	}
	if !r.alive() {
		a.Order, a.Reason = sealed.OrderAbort, r.State
	}
	rev, err := b.revoked(ctx, s, r.subject(cfg.TrustDomain))
	if err != nil {
		return a, err
	}
	if rev != nil && rev.Hard {
		a.Order, a.Reason = sealed.OrderAbort, "revocation "+rev.ID
	}
	if err := b.deadGrants(ctx, s, r, cfg.TrustDomain, &a); err != nil {
		return a, err
	}
	return a, b.blockedKeys(ctx, s, r, cfg.TrustDomain, &a)
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
		p, err := b.profileVersion(ctx, s, k.Origin)
		if err != nil && unlessDenied(err) != nil {
			return err
		}
		sub := r.subject(trustDomain)
		sub.Key, sub.Profile, sub.Source = k.Name, k.Origin.Name, p.Keys[k.Name].Source
		if err := b.covered(ctx, s, sub); errors.Is(err, sealed.ErrRevoked) {
			a.Blocked = append(a.Blocked, k.Name)
		} else if err != nil {
			return err
		}
	}
	return nil
}
