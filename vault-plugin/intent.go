package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// An intent is the result of step 1.
type intent struct {
	g       grantRow
	r       runRow
	ahead   *reading // of a built-in key
	resumed bool     // g was made by an earlier call
}

// intend is step 1. On success the grant is a resumed one, or an intent that
// is marked as being minted by this call, which has to leave it.
func (b *backend) intend(ctx context.Context, s logical.Storage, c credsCall) (in intent, err error) {
	c.entry.over() // whoever has the lock may be in the log's write, and not wait for this call
	defer b.lockRun(c.Run)()
	c.entry.comes()
	r, err := b.run(ctx, s, c.Run)
	if err != nil {
		return in, err
	}
	if !r.alive() {
		return in, errRefused
	}
	if g, ok, err := b.resume(ctx, s, r, c); ok || err != nil {
		return intent{g: g, resumed: true}, err
	}
	g, v, err := b.draftGrant(ctx, s, r, c)
	if err != nil {
		return in, err
	}
	if v.Effect == sealed.EffectRequireApproval {
		if err := c.vouched(); err != nil {
			return in, err
		}
		a, approved, err := b.approvalFor(ctx, s, r, v.bundle, v.terms, v.Decision, c.Reason)
		if err != nil {
			return in, b.deniedKey(ctx, s, r, c.key, v.Decision, err)
		}
		if !approved {
			return in, pending(a.ID)
		}
		if !b.mem.off.consume {
			g.ID, g.Approval = sealed.GrantID(a.ID), a.ID
		}
		if ends := g.CreatedAt.Add(time.Duration(a.object.TTL) * time.Second); ends.Before(g.Ends) {
			g.Ends = ends
		}
	}
	if !b.mem.enter(g.ID) {
		return in, fmt.Errorf("the credential is being issued: %w", sealed.ErrConflict)
	}
	ahead, err := b.readAhead(ctx, s, r, g)
	if err == nil {
		err = b.writeIntent(ctx, s, r, g, v, c.entry)
	}
	if err != nil {
		b.mem.leave(g.ID)
		return in, err
	}
	return intent{g: g, r: r, ahead: ahead}, nil
}

// writeIntent logs the intent and stores it, both at the same time. The entry
// counts against the run's budget, which bounds what a loop of calls can write
// (R23): a run that has used it up writes nothing here.
//
// If the entry fails, the row is taken away again: nothing was minted, and the
// approval is as it was. If that fails too, the row is an intent that nobody is
// minting. If the row fails, nobody knows whether it is there, and the entry is.
func (b *backend) writeIntent(ctx context.Context, s logical.Storage, r runRow, g grantRow, v verdict, entry *arrival) error {
	if b.mem.isSpent(r.ID) {
		return errBudget
	}
	var rowErr error
	var writing sync.WaitGroup
	writing.Go(func() { rowErr = b.saveGrant(ctx, s, g) })
	err := b.logIntent(ctx, s, r, g, v, entry)
	writing.Wait()
	if err == nil {
		return rowErr
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	if derr := b.deleteGrant(undo, s, g); derr != nil {
		b.Logger().Warn("taking back an intent that was not logged", "run", g.Run, "grant", g.ID, "error", derr)
	}
	return err
}

// undoLimit bounds taking back an intent, when its call may be over already.
const undoLimit = 5 * time.Second

func (b *backend) logIntent(ctx context.Context, s logical.Storage, r runRow, g grantRow, v verdict, entry *arrival) error {
	entry.over()
	_, err := b.record(ctx, s, audit.Event{Type: "issue.intent", Run: string(r.ID), Body: map[string]any{
		"key": g.Key, "grant": g.ID, "approval": g.Approval, "delivery": g.Delivery, "source": g.Source, "profile": g.Profile,
		"profile_version": v.terms.key.Origin.Version, "effect": v.Effect, "reasons": codes(v.Decision),
		"pinned": r.m.Bundle.Digest, "bundle": v.bundle.Ref().Digest, "epoch": g.Epoch, "ttl": int64(g.TTL.Std() / time.Second),
	}})
	if errors.Is(err, audit.ErrBudget) {
		b.mem.spend(r.ID)
		return errBudget
	}
	return err
}

// killIntent ends an intent that nobody is minting any more. The entry comes
// first: the one about the intent was written beside the row, and may be lost.
func (b *backend) killIntent(ctx context.Context, s logical.Storage, g grantRow, then error) error {
	if b.mem.off.ended {
		return b.killGrant(ctx, s, g, outcomeCrashed, then)
	}
	if _, err := b.record(ctx, s, audit.Event{Type: "issue.failed", Run: string(g.Run), Essential: true, Body: map[string]any{
		"key": g.Key, "grant": g.ID, "source": g.Source, "what": outcomeCrashed,
	}}); err != nil {
		return err
	}
	return b.killGrant(ctx, s, g, outcomeCrashed, then)
}
