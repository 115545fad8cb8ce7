package vaultplugin

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// An overlay is a second bundle that a tenant lays over the one in force. What the
// engine asks that one it asks the overlay too, apart from it: neither sees the
// other's rules or data. The two answers are combined here (sealed.Combine): the
// stronger effect wins, and obligations intersect.
//
// The guarantee is that an overlay only narrows. It holds by three rules:
//
//  1. No answer of an overlay is used but as the second argument of Combine. What
//     the base denies is denied, and the overlay is not asked about it.
//  2. An overlay that there is and that can't answer never counts as none: one that
//     is expired, errs or loops denies; where one can't be opened, or was lost with a
//     restored snapshot, nothing is decided at all (sealed.ErrUnavailable), as
//     without a bundle in force.
//  3. Whether a bundle is an overlay is in what its signer signed. No other can be
//     laid over a policy, and one that is can't be uploaded as the policy, nor as a
//     shadow. They are stored and cached apart, and looked at again when opened.
//
// A run pins its overlay with its bundle, so that an overlay which is removed still
// counts for the runs that began under it; one that comes counts at once.

// storeOverlays holds the overlays, apart from bundles that decide alone:
// <digest>/<part>.
const storeOverlays = "policy/overlay/"

// overlayRow names the overlay; it is part of policyRow. Sequence never falls, and
// outlives the overlay: it is the floor for the next one.
type overlayRow struct {
	Digest      sealed.Digest `json:"digest,omitempty"` // empty: there is none
	Sequence    uint64        `json:"sequence"`
	Expires     time.Time     `json:"expires,omitzero"`
	ActivatedAt time.Time     `json:"activated_at,omitzero"`
	Previous    sealed.Digest `json:"previous,omitempty"`
	// Awaited: a restored snapshot has lost an overlay. Until it, a newer one, or the
	// word of two persons that there is none comes, nothing is decided.
	Awaited bool `json:"awaited,omitempty"`
}

// ref is the overlay, or the zero reference.
func (r overlayRow) ref() sealed.BundleRef {
	if r.Digest == "" {
		return sealed.BundleRef{}
	}
	return sealed.BundleRef{Digest: r.Digest, Sequence: r.Sequence}
}

// there reports whether an overlay narrows, or is missed.
func (r overlayRow) there() bool { return r.Digest != "" || r.Awaited }

// rules are what decides: a bundle, and the overlay over it, which may be nil.
type rules struct{ base, overlay Bundle }

// pins name what decided, or what has to be asked again.
type pins struct{ bundle, overlay sealed.BundleRef } // overlay is zero if there is none

// Ref names the bundle without its overlay.
func (r rules) Ref() sealed.BundleRef { return r.base.Ref() }

func (r rules) pins() pins {
	p := pins{bundle: r.base.Ref()}
	if r.overlay != nil {
		p.overlay = r.overlay.Ref()
	}
	return p
}

func pinsOf(m *sealed.Manifest) pins { return pins{m.Bundle, m.Overlay} }

// expired reports whether a bundle has expired, and denies then.
func (r rules) expired(now time.Time) (no sealed.Decision, expired bool) {
	switch {
	case !now.Before(r.base.Expires()):
		return sealed.Deny(sealed.ReasonExpired, "the policy bundle has expired"), true
	case r.overlay != nil && !now.Before(r.overlay.Expires()):
		return sealed.Deny(sealed.ReasonExpired, "the overlay of the policy has expired"), true
	}
	return sealed.Decision{}, false
}

// Decide asks both and combines. For what is logged, see askAll.
func (r rules) Decide(ctx context.Context, question string, input any, at time.Time) sealed.Decision {
	d := r.base.Decide(ctx, question, input, at)
	if r.overlay == nil || d.Effect == sealed.EffectDeny {
		return d
	}
	if no, expired := r.expired(at); expired {
		return no
	}
	return sealed.Combine(d, r.overlay.Decide(ctx, question, input, at))
}

// askOverlay combines what the overlay says with the rulings that the base gave,
// and adds its events to theirs. Only what the base did not deny is asked: a denial
// stands, whatever is laid over it.
func (b *backend) askOverlay(ctx context.Context, overlay Bundle, in sealed.Input, qs []question, now time.Time, out []ruling) error {
	if overlay == nil {
		return nil
	}
	open := make([]question, 0, len(qs))
	for _, q := range qs {
		if out[q.at].Effect != sealed.EffectDeny {
			open = append(open, q)
		}
	}
	for i, d := range decideAll(ctx, overlay, in, open, now) {
		if err := b.overlaid(&out[open[i].at], overlay, d, now); err != nil {
			return err
		}
	}
	return nil
}

// overlaid combines an answer of the overlay with a ruling of the base, and adds its
// event.
func (b *backend) overlaid(at *ruling, overlay Bundle, d sealed.Decision, now time.Time) error {
	id, err := sealed.NewULID(now, b.rand)
	if err != nil {
		return fmt.Errorf("making decision id: %w", err)
	}
	at.decided = append(at.decided, at.decided[0].NewOverlay(id, overlay.Ref(), d))
	at.Decision = sealed.Combine(at.Decision, d)
	return nil
}

// currentRules returns what decides now, or sealed.ErrUnavailable when there is no
// bundle, or when it or its overlay can't be used. Expiry is the bundles' own
// business: they then deny.
func (b *backend) currentRules(ctx context.Context, s logical.Storage) (rules, error) {
	row, err := b.policyRow(ctx, s)
	if err != nil {
		return rules{}, err
	}
	base, err := b.inForce(ctx, s, row)
	if err != nil {
		return rules{}, err
	}
	if row.Overlay.Awaited && !b.mem.off.overlay {
		return rules{}, fmt.Errorf("loading policy: its overlay was lost with a restored snapshot: %w", sealed.ErrUnavailable)
	}
	overlay, err := b.overlayFor(ctx, s, row.Overlay.ref())
	return rules{base, overlay}, err
}

// pinnedRules returns what decided when a run was enqueued.
func (b *backend) pinnedRules(ctx context.Context, s logical.Storage, m *sealed.Manifest) (rules, error) {
	base, err := b.bundleByDigest(ctx, s, m.Bundle.Digest)
	if err != nil {
		return rules{}, err
	}
	overlay, err := b.overlayFor(ctx, s, m.Overlay)
	return rules{base, overlay}, err
}

// overlayFor returns a stored overlay, or nil for the zero reference. Like
// bundleByDigest it verifies again; an overlay that is not there, or is another one,
// is sealed.ErrUnavailable and never nil.
func (b *backend) overlayFor(ctx context.Context, s logical.Storage, ref sealed.BundleRef) (Bundle, error) {
	if ref.Digest == "" || b.mem.off.overlay {
		return nil, nil
	}
	bundle, err := b.nouns.bundles.get(overlayKey(ref.Digest), func() (Bundle, error) { return b.openStored(ctx, s, storeOverlays, ref.Digest) })
	if err != nil {
		return nil, fmt.Errorf("loading the overlay: %w", err)
	}
	if bundle.Ref() != ref {
		return nil, fmt.Errorf("loading the overlay: the stored one has another sequence: %w", sealed.ErrUnavailable)
	}
	return bundle, nil
}

// overlayKey is where the cache of bundles has an overlay, as shadowKey is for shadows.
func overlayKey(d sealed.Digest) string { return storeOverlays + string(d) }
