package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	sourceLimit = 3 * time.Second // of every call to a source
	mintLimit   = 4 * time.Second // of all calls of one issue: Vault can't be sealed meanwhile (R20)
	weakBelow   = 8               // bytes; a shorter value can't be redacted safely
)

// errCaller is the cause when Vault does not vouch for the caller.
var errCaller = errors.New("the caller was refused")

var errWeak = errors.New("the value is too short to be redacted; allow_weak accepts it")

// resume answers a repeated call with the grant that the first one made. ok is
// false when there is none. A grant that nobody is minting any more, or that
// is dead, stays what it is: nothing is minted twice, and an approval that it
// consumed is used up (E22).
func (b *backend) resume(ctx context.Context, s logical.Storage, r runRow, c credsCall) (grantRow, bool, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return grantRow{}, false, err
	}
	g, ok := x.askedGrant(r.ID, c.key, c.Idempotency)
	if !ok {
		return grantRow{}, false, nil
	}
	if err := c.vouched(); err != nil {
		return grantRow{}, true, err
	}
	switch {
	case b.mem.minting(g.ID):
		return g, true, fmt.Errorf("the credential is being issued: %w", sealed.ErrConflict)
	case g.State == grantIntent:
		return g, true, b.killIntent(ctx, s, g, errRefused)
	case g.State == grantDead, g.Delivery != c.Delivery, !b.now().Before(g.Ends):
		return g, true, errRefused
	}
	if err := b.coveredGrant(ctx, s, r, g); err != nil {
		return g, true, b.deniedKey(ctx, s, r, c.key, sealed.Deny(sealed.ReasonRevoked, ""), err)
	}
	g.Attempt++
	g.State, g.Lease, g.ChangedAt = grantReturned, "", b.now().UTC()
	return g, true, b.saveGrant(ctx, s, g)
}

// A parcel is a minted credential, sealed to the run; the value is wiped.
type parcel struct {
	ciphertext string
	ttl        time.Duration        // 0: the source sets no limit
	max        time.Duration        // see Minted
	version    sealed.SourceVersion // at the source
}

// An envelope is a sealer for one grant that is being made while the key is
// decided and the value asked for: most of the work of sealing needs neither.
type envelope func() (*secret.Sealer, error)

func envelopeFor(r runRow, key sealed.KeyName, id sealed.GrantID) envelope {
	var s *secret.Sealer
	made := beside(func() (err error) {
		s, err = secret.NewSealer(r.Claim.HPKEKey, secret.Context{Run: string(r.ID), Grant: string(id), Key: string(key)})
		return err
	})
	return func() (*secret.Sealer, error) { err := made(); return s, err }
}

// parcelOf seals what was minted, and destroys it.
func parcelOf(g grantRow, m Minted, into envelope) (p parcel, err error) {
	if m.Value == nil {
		return p, errors.New("the source gave no value")
	}
	defer m.Value.Destroy()
	if err := m.Value.Reveal(func(v []byte) error {
		if len(v) == 0 || (len(v) < weakBelow && !g.AllowWeak) {
			return errWeak
		}
		return nil
	}); err != nil {
		return p, err
	}
	p.ttl, p.max, p.version = m.TTL, m.Max, m.Version
	s, err := into()
	if err != nil {
		return p, err
	}
	p.ciphertext, err = s.Seal(m.Value)
	return p, err
}

// A reading is the value of the mount's own store, being read and sealed while
// the intent is written.
type reading struct {
	done chan struct{} // closed when p and err are set
	p    parcel
	err  error
}

// readAhead begins to read the value of a built-in key; nil for any other
// source, of which nobody asks anything before the intent is durable. Reading
// the own store leaves nothing that could come to nothing: the ciphertext is
// used only after the write of the intent was acknowledged, else it is dropped.
func (b *backend) readAhead(ctx context.Context, s logical.Storage, in intent) (*reading, error) {
	g := in.g
	_, src, err := b.source(ctx, s, g.Source)
	if err != nil {
		return nil, err
	}
	if _, own := src.(builtinSource); !own {
		return nil, nil
	}
	ahead := &reading{done: make(chan struct{})}
	go func() {
		defer close(ahead.done)
		limited, cancel := context.WithTimeout(ctx, sourceLimit)
		defer cancel()
		m, err := src.Mint(limited, g.Ref, "")
		if err != nil {
			ahead.err = err
			return
		}
		ahead.p, ahead.err = parcelOf(g, m, in.into)
	}()
	return ahead, nil
}

// mint is step 2 of issue. It returns the row with the handle under which the
// source will find what it made, also with an error.
func (b *backend) mint(ctx context.Context, s logical.Storage, in intent) (grantRow, parcel, error) {
	g := in.g
	if in.ahead != nil {
		<-in.ahead.done
		return g, in.ahead.p, in.ahead.err
	}
	_, src, err := b.source(ctx, s, g.Source)
	if err != nil {
		return g, parcel{}, err
	}
	ctx, cancelAll := context.WithTimeout(ctx, mintLimit)
	defer cancelAll()
	limited, cancel := context.WithTimeout(ctx, sourceLimit)
	defer cancel()
	handle, err := src.Prepare(limited, g.Ref)
	if err != nil {
		return g, parcel{}, err
	}
	if handle != "" {
		g.Handle = handle
		if err := b.updateIntent(ctx, s, g); err != nil {
			return g, parcel{}, err
		}
	}
	minting, cancelMint := context.WithTimeout(ctx, sourceLimit)
	defer cancelMint()
	m, err := src.Mint(minting, g.Ref, handle)
	if err != nil {
		return g, parcel{}, err
	}
	if m.Handle != "" {
		g.Handle = m.Handle
	}
	p, err := parcelOf(g, m, in.into)
	return g, p, err
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
func (b *backend) settleGrant(ctx context.Context, s logical.Storage, g grantRow, p parcel) (grantRow, error) {
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
	now := b.now().UTC()
	if p.ttl > 0 {
		g.TTL = min(g.TTL, sealed.Duration(p.ttl))
		if ends := now.Add(max(p.ttl, p.max)); ends.Before(g.Ends) {
			g.Ends = ends
		}
		g.Renewable = p.max > 0
	}
	g.Ciphertext, g.Version = p.ciphertext, p.version
	g.State, g.Attempt, g.Epoch, g.ChangedAt = grantReturned, 1, epoch, now
	return g, b.keepReturned(ctx, s, g)
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
	case errors.Is(cause, errCaller):
		return "caller", errRefused
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
