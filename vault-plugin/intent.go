package vaultplugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// An intent is the result of step 1.
type intent struct {
	g       grantRow
	r       runRow
	into    envelope
	ahead   *reading // of a built-in key
	resumed bool     // g was made by an earlier call
}

// intend is step 1. On success the grant is a resumed one, or an intent that
// is marked as being minted by this call, which has to leave it.
func (b *backend) intend(ctx context.Context, s logical.Storage, c credsCall) (in intent, err error) {
	c.entry.over() // whoever has the lock may be in the log's write, and not wait for this call
	if err := b.roomForIntent(ctx, s); err != nil {
		return in, err
	}
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
	id, err := b.newGrantID()
	if err != nil {
		return in, err
	}
	if mk, _ := r.key(c.key); mk.Decision.Effect == sealed.EffectAllow { // most likely again
		in.into = envelopeFor(r, c.key, id)
	}
	g, v, err := b.draftGrant(ctx, s, r, c, id)
	if err != nil {
		return in, err
	}
	var votes []sealed.Vote
	if v.Effect == sealed.EffectRequireApproval {
		if err := c.vouched(); err != nil {
			return in, err
		}
		a, approved, err := b.approvalFor(ctx, s, r, v.bundle, v.terms, v.Decision, c.Reason)
		if err != nil {
			return in, b.deniedKey(ctx, s, r, c.key, v.Decision, err, v.decided...)
		}
		if !approved {
			return in, pending(a.ID)
		}
		votes = a.Votes
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
	if in.into == nil || g.ID != id {
		in.into = envelopeFor(r, g.Key, g.ID)
	}
	in.g, in.r = g, r
	in.ahead, err = b.readAhead(ctx, s, in)
	if err == nil {
		err = b.writeOwing(ctx, s, r, c, g, v, votes)
	}
	if err != nil {
		b.mem.leave(g.ID)
		return intent{}, err
	}
	return in, nil
}

// roomPatience is how long an issue waits for the log to fold what it holds.
const roomPatience = time.Second

// roomForIntent waits while intents come faster than the log can give them rows
// of their own, for which it needs the locks of runs.
func (b *backend) roomForIntent(ctx context.Context, s logical.Storage) error {
	l, err := b.auditLog(ctx, s)
	if err == nil {
		l.Room(ctx, roomPatience)
	}
	return err
}

// writeOwing stores what the use will owe, and then writes the intent.
func (b *backend) writeOwing(ctx context.Context, s logical.Storage, r runRow, c credsCall, g grantRow, v verdict, votes []sealed.Vote) error {
	due, err := b.oweReview(ctx, s, r, c, g, v.Decision, votes)
	if err != nil {
		return err
	}
	err = b.writeIntent(ctx, s, r, g, v, due, c.entry)
	if err != nil && !due.IsZero() {
		b.dropReview(ctx, s, g, err)
	}
	return err
}

// writeIntent makes the intent durable: its entry in the log, and its row as what
// the entry has attached, in one storage write. So there is never one without
// the other, and that write is also what consumes the approval. The entry counts
// against the run's budget, which bounds what a loop of calls can write (R23): a
// run that has used it up writes nothing here.
//
// After an error either nothing is logged, or nobody knows: then the index is
// dropped, and an intent that did become durable is found when it is read again.
// It is one that nobody is minting, and ends as such; the approval is used up.
func (b *backend) writeIntent(ctx context.Context, s logical.Storage, r runRow, g grantRow, v verdict, reviewDue time.Time, entry *arrival) error {
	if b.mem.isSpent(r.ID) {
		return errBudget
	}
	row, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("encoding grant %s: %w", g.ID, err)
	}
	body := map[string]any{
		"key": g.Key, "grant": g.ID, "approval": g.Approval, "delivery": g.Delivery, "source": g.Source, "profile": g.Profile,
		"profile_version": v.terms.key.Origin.Version, "effect": v.Effect, "reasons": codes(v.Decision),
		"pinned": r.m.Bundle.Digest, "bundle": v.bundle.Ref().Digest, "epoch": g.Epoch, "ttl": int64(g.TTL.Std() / time.Second),
	}
	if over := v.bundle.pins().overlay; over.Digest != "" {
		body["overlay"] = over.Digest
	}
	if !reviewDue.IsZero() {
		body["review_due"] = reviewDue
	}
	entry.over()
	_, err = b.record(ctx, s, withDecided(audit.Event{
		Type: "issue.intent", Run: string(r.ID), Attach: &audit.Attachment{Key: g.storageKey(), Value: row},
	}, body, v.decided)...)
	switch {
	case err == nil:
		b.note(func(x *grantIndex) { x.setRowless(g) })
		return nil
	case errors.Is(err, audit.ErrBudget):
		b.mem.spend(r.ID)
		return errBudget
	case !errors.Is(err, audit.ErrGaveUp) && !errors.Is(err, audit.ErrEvent):
		b.dropIndex()
	}
	return err
}

// killIntent ends an intent that nobody is minting any more, with an entry. An
// intent of a run that is being archived has ended before, and is here again
// because a crash came between deleting its row and that of its run.
func (b *backend) killIntent(ctx context.Context, s logical.Storage, g grantRow, then error) error {
	archived, err := s.Get(ctx, storeRunsDone+string(g.Run))
	if err != nil {
		return unavailable(err)
	}
	if archived == nil {
		if _, err := b.record(ctx, s, audit.Event{Type: "issue.failed", Run: string(g.Run), Essential: true, Body: map[string]any{
			"key": g.Key, "grant": g.ID, "source": g.Source, "what": outcomeCrashed,
		}}); err != nil {
			return err
		}
	}
	return b.killGrant(ctx, s, g, outcomeCrashed, then)
}
