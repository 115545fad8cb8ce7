package vaultplugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// A shadow is a bundle on trial: whenever the bundle in force is asked about the
// keys of a run, or about a vote that is cast, the shadow is asked the very same
// afterwards, and its answer is logged beside the verdict. It decides nothing.
//
// The guarantee is one of structure: the answers of a shadow go into events that
// are marked and into nothing else. Whatever goes wrong with it, an answer that is
// late, a panic, a bundle that can't be opened, is an event that says so or none,
// and never an error of the call. What it may cost a call is shadowLimit for each
// time that a bundle in force is asked.
//
// Not guaranteed is an event for every verdict: there is none while the bundle is
// being opened after a restart, while earlier calls are still stuck in it, and
// where the log has no room (shadow_dropped in the entry).

const (
	// storeShadows holds the bundles on trial, apart from those that may decide:
	// <digest>/<part>.
	storeShadows = "policy/shadow/"
	// shadowLimit bounds what a call waits for the shadow.
	shadowLimit = 20 * time.Millisecond
	// maxOverdue bounds evaluations that nobody waits for any more; with as many,
	// the shadow is not asked.
	maxOverdue = 4
	// shadowRetry is when a shadow that could not be opened is tried again.
	shadowRetry = 30 * time.Second
)

// shadowRow names the bundle on trial. It is part of policyRow.
type shadowRow struct {
	Digest   sealed.Digest `json:"digest"`
	Sequence uint64        `json:"sequence"`
	Expires  time.Time     `json:"expires"`
	Since    time.Time     `json:"since"`
	By       string        `json:"by"`
}

// shadows reports whether d is on trial.
func (r policyRow) shadows(d sealed.Digest) bool { return r.Shadow != nil && r.Shadow.Digest == d }

// trials is what a mount remembers of its shadow; the bundle itself is among the
// others in nounCaches, so that it is forgotten with them. The zero value is ready.
type trials struct {
	mu      sync.Mutex
	opening bool
	failed  time.Time // when the shadow could not be opened

	overdue atomic.Int32
	wait    time.Duration // 0: shadowLimit; tests on a busy machine wait longer
}

// A trial is a shadow that one call asks. Nil: there is none.
type trial struct {
	bundle Bundle
	left   time.Duration // that the call may still wait for it
}

// onTrial returns the shadow for a call, or nil.
func (b *backend) onTrial(ctx context.Context, s logical.Storage, now time.Time) *trial {
	row, err := b.policyRow(ctx, s)
	if err != nil || row.Shadow == nil || !now.Before(row.Shadow.Expires) {
		return nil
	}
	bundle, err := b.nouns.bundles.get(shadowKey(row.Shadow.Digest), func() (Bundle, error) { return nil, errNotOpen })
	if err != nil {
		b.openShadow(ctx, s, row.Shadow.Digest)
		return nil
	}
	return &trial{bundle: bundle, left: cmp.Or(b.policy.trials.wait, shadowLimit)}
}

var errNotOpen = errors.New("not opened yet")

// shadowKey is where the cache of bundles has a shadow: no digest is spelled so,
// and what decides is looked up by digest.
func shadowKey(d sealed.Digest) string { return storeShadows + string(d) }

// shadowBundle returns the shadow, verified again against the policy keys of now.
func (b *backend) shadowBundle(ctx context.Context, s logical.Storage, d sealed.Digest) (Bundle, error) {
	return b.nouns.bundles.get(shadowKey(d), func() (Bundle, error) { return b.openStored(ctx, s, storeShadows, d) })
}

// openShadow opens the shadow beside the call, which does not wait for it.
func (b *backend) openShadow(ctx context.Context, s logical.Storage, d sealed.Digest) {
	t := &b.policy.trials
	t.mu.Lock()
	defer t.mu.Unlock()
	now := b.now()
	if age := now.Sub(t.failed); t.opening || age >= 0 && age < shadowRetry {
		return
	}
	t.opening = true
	ctx = context.WithoutCancel(ctx)
	go func() {
		err := errNotOpen
		defer func() {
			if recover() != nil || err != nil {
				b.Logger().Warn("the shadow can't be opened, and is not asked", "error", err)
			}
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.opening = false; err != nil {
				t.failed = now
			}
		}()
		_, err = b.shadowBundle(ctx, s, d)
	}()
}

// askShadow adds to the rulings what the shadow says to the same questions.
func (b *backend) askShadow(ctx context.Context, t *trial, in sealed.Input, qs []question, now time.Time, out []ruling) {
	beside := make([]*ruling, len(qs))
	for i, q := range qs {
		beside[i] = &out[q.at]
	}
	b.shadowed(ctx, t, now, beside, func(ctx context.Context) []sealed.Decision { return decideAll(ctx, t.bundle, in, qs, now) })
}

// shadowed adds to each of the rulings what the shadow answers; ask asks it.
func (b *backend) shadowed(ctx context.Context, t *trial, now time.Time, beside []*ruling, ask func(context.Context) []sealed.Decision) {
	begun := time.Now()
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.left)
	answers := b.policy.trials.ask(own, len(beside), ask)
	cancel()
	t.left -= time.Since(begun)
	for i, d := range answers {
		id, err := sealed.NewULID(now, b.rand)
		at := beside[i]
		if err != nil || len(at.decided) == 0 {
			continue
		}
		at.decided = append(at.decided, at.decided[0].NewShadow(id, t.bundle.Ref(), d)) // beside the bundle it would replace, not its overlay
	}
}

// ask returns an answer to each of n questions, or none at all. It does not wait
// longer than ctx lasts.
func (t *trials) ask(ctx context.Context, n int, shadow func(context.Context) []sealed.Decision) []sealed.Decision {
	if t.overdue.Load() >= maxOverdue {
		return nil
	}
	if ctx.Err() != nil {
		return insteadOf(n, sealed.ReasonTimeout)
	}
	answers := make(chan []sealed.Decision, 1)
	var settled atomic.Bool // by whoever is first: the answers, or the end of the wait
	go func() {
		answers <- shadowAnswers(ctx, n, shadow)
		if !settled.CompareAndSwap(false, true) {
			t.overdue.Add(-1)
		}
	}()
	select {
	case ds := <-answers:
		return ds
	case <-ctx.Done():
		if !settled.CompareAndSwap(false, true) {
			return <-answers // in the same moment
		}
		t.overdue.Add(1)
		return insteadOf(n, sealed.ReasonTimeout)
	}
}

// shadowAnswers asks, and takes nothing for granted.
func shadowAnswers(ctx context.Context, n int, shadow func(context.Context) []sealed.Decision) (ds []sealed.Decision) {
	defer func() {
		if recover() != nil {
			ds = insteadOf(n, sealed.ReasonError)
		}
	}()
	ds = shadow(ctx)
	for i, d := range ds {
		switch d.Effect {
		case sealed.EffectDeny, sealed.EffectRequireApproval, sealed.EffectAllow:
		default:
			ds[i] = sealed.Deny(sealed.ReasonShape, "the shadow's answer is not a decision")
		}
	}
	return ds
}

// insteadOf is what is logged for answers that there are none of.
func insteadOf(n int, reason string) []sealed.Decision {
	out := make([]sealed.Decision, n)
	for i := range out {
		out[i] = sealed.Deny(reason, "the shadow did not answer")
	}
	return out
}

// sweepShadows deletes what is stored of bundles that are not on trial.
func sweepShadows(ctx context.Context, s logical.Storage, row policyRow) error {
	names, err := s.List(ctx, storeShadows)
	if err != nil {
		return fmt.Errorf("listing shadows: %w", err)
	}
	for _, name := range names {
		if row.shadows(sealed.Digest(strings.TrimSuffix(name, "/"))) {
			continue
		}
		if err := deleteAll(ctx, s, storeShadows+name); err != nil {
			return err
		}
	}
	return nil
}
