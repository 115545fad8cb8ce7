package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	sourceLimit = 3 * time.Second // of every call to a source
	weakBelow   = 8               // bytes; a shorter value can't be redacted safely
)

var errWeak = errors.New("the value is too short to be redacted; allow_weak accepts it")

// resume answers a repeated call with the grant that the first one made. ok is
// false when there is none. A grant that nobody is minting any more, or that
// is dead, stays what it is: nothing is minted twice, and an approval that it
// consumed is used up (E22).
func (b *backend) resume(ctx context.Context, s logical.Storage, r runRow, name sealed.KeyName, cr sealed.CredsRequest) (grantRow, bool, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return grantRow{}, false, err
	}
	grants := x.grants(r.ID)
	i := slices.IndexFunc(grants, func(g grantRow) bool { return g.Key == name && g.Idempotency == cr.Idempotency })
	if i < 0 {
		return grantRow{}, false, nil
	}
	g := grants[i]
	switch {
	case b.mem.minting(g.ID):
		return g, true, fmt.Errorf("the credential is being issued: %w", sealed.ErrConflict)
	case g.State == grantIntent:
		return g, true, b.killGrant(ctx, s, g, outcomeCrashed, errRefused)
	case g.State == grantDead, g.Delivery != cr.Delivery, !b.now().Before(g.Ends):
		return g, true, errRefused
	}
	if err := b.coveredGrant(ctx, s, r, g); err != nil {
		return g, true, b.deniedKey(ctx, s, r, name, sealed.Deny(sealed.ReasonRevoked, ""), err)
	}
	g.Attempt++
	g.State, g.Lease, g.ChangedAt = grantReturned, "", b.now().UTC()
	return g, true, b.saveGrant(ctx, s, g)
}

// mint is step 2 of issue. It returns the row with the handle under which the
// source will find what it made.
func (b *backend) mint(ctx context.Context, s logical.Storage, g grantRow) (grantRow, Minted, error) {
	_, src, err := b.source(ctx, s, g.Source)
	if err != nil {
		return g, Minted{}, err
	}
	limited, cancel := context.WithTimeout(ctx, sourceLimit)
	defer cancel()
	handle, err := src.Prepare(limited, g.Ref)
	if err != nil {
		return g, Minted{}, err
	}
	if handle != "" {
		g.Handle = handle
		if err := b.updateIntent(ctx, s, g); err != nil {
			return g, Minted{}, err
		}
	}
	minting, cancelMint := context.WithTimeout(ctx, sourceLimit)
	defer cancelMint()
	m, err := src.Mint(minting, g.Ref, handle)
	if err != nil {
		return g, Minted{}, err
	}
	if m.Value == nil {
		return g, Minted{}, errors.New("the source gave no value")
	}
	return g, m, nil
}

// updateIntent stores the handle before anything is created under it.
func (b *backend) updateIntent(ctx context.Context, s logical.Storage, g grantRow) error {
	defer b.lockRun(g.Run)()
	if err := b.stillIntended(ctx, s, g); err != nil {
		return err
	}
	return b.saveGrant(ctx, s, g)
}

// stillIntended fails when the run or the intent ended meanwhile. The caller
// holds the run's lock.
func (b *backend) stillIntended(ctx context.Context, s logical.Storage, g grantRow) error {
	now, _, err := b.grant(ctx, s, g.Run, g.ID)
	if err != nil {
		return err
	}
	if now.State != grantIntent {
		return fmt.Errorf("the grant ended while it was being made: %w", sealed.ErrRevoked)
	}
	return nil
}

// settleGrant is step 3 of issue. Revocations are read after the mint: one
// that was acknowledged before this read is seen here, one that comes later
// finds the row, or refuses the confirmation (F11, R09).
func (b *backend) settleGrant(ctx context.Context, s logical.Storage, g grantRow, m Minted) (grantRow, error) {
	defer b.lockRun(g.Run)()
	if err := b.stillIntended(ctx, s, g); err != nil && !b.mem.off.recheck {
		return g, err
	}
	r, err := b.run(ctx, s, g.Run)
	if err != nil {
		return g, err
	}
	epoch, err := b.epoch(ctx, s)
	if err != nil {
		return g, err
	}
	if err := b.coveredGrant(ctx, s, r, g); err != nil && !b.mem.off.recheck {
		return g, err
	}
	if err := m.Value.Reveal(func(v []byte) error {
		if len(v) == 0 || (len(v) < weakBelow && !g.AllowWeak) {
			return errWeak
		}
		return nil
	}); err != nil {
		return g, err
	}
	g.Ciphertext, err = secret.Seal(r.Claim.HPKEKey, secret.Context{Run: string(g.Run), Grant: string(g.ID), Key: string(g.Key)}, m.Value)
	if err != nil {
		return g, err
	}
	now := b.now().UTC()
	if m.Handle != "" {
		g.Handle = m.Handle
	}
	if m.TTL > 0 {
		g.TTL = min(g.TTL, sealed.Duration(m.TTL))
		if ends := now.Add(max(m.TTL, m.Max)); ends.Before(g.Ends) {
			g.Ends = ends
		}
		g.Renewable = m.Max > 0
	}
	g.State, g.Attempt, g.Epoch, g.ChangedAt = grantReturned, 1, epoch, now
	return g, b.saveGrant(ctx, s, g)
}

// failGrant ends a grant that could not be issued, undoes what the source may
// have made, and answers that the key is unavailable. The cause goes to the
// log by its kind only: a source's error text is not ours.
func (b *backend) failGrant(ctx context.Context, s logical.Storage, g grantRow, cause error) error {
	unlock := b.lockRun(g.Run)
	err := b.killGrant(ctx, s, g, outcomeFailed, nil)
	unlock()
	what, answer := failure(cause)
	if _, lerr := b.record(ctx, s, audit.Event{Type: "issue.failed", Run: string(g.Run), Essential: true, Body: map[string]any{
		"key": g.Key, "grant": g.ID, "source": g.Source, "what": what,
	}}); lerr != nil {
		err = errors.Join(err, lerr)
	}
	if err != nil {
		b.Logger().Error("ending a failed grant", "run", g.Run, "grant", g.ID, "error", err)
	}
	return answer
}

// failure names the kind of a failure and what the caller is told.
func failure(cause error) (what string, answer error) {
	switch {
	case errors.Is(cause, sealed.ErrRevoked), errors.Is(cause, sealed.ErrDenied):
		return "revoked", errRefused
	case errors.Is(cause, errWeak):
		return "weak_value", fmt.Errorf("issuing: %w: %w", sealed.ErrInvalid, errWeak)
	case errors.Is(cause, context.DeadlineExceeded):
		return "timeout", fmt.Errorf("issuing: the source did not answer in time: %w", sealed.ErrUnavailable)
	}
	return "source", fmt.Errorf("issuing: the source can't give the value: %w", sealed.ErrUnavailable)
}

// killGrant stores a grant as dead and returns then, or the error of storing.
// The caller holds the run's lock. The row keeps the handle that is owed to
// the source; the worker pays.
func (b *backend) killGrant(ctx context.Context, s logical.Storage, g grantRow, outcome string, then error) error {
	if err := b.saveGrant(ctx, s, g.dead(b.now().UTC(), outcome)); err != nil {
		return err
	}
	b.worker.wake()
	return then
}
