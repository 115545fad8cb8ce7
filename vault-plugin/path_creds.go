package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// pathCreds is where credentials are issued. Vault makes the lease id from
// the path, so that all leases of a run share the prefix runs/<id>/creds/.
func (b *backend) pathCreds() []*framework.Path {
	fields := requestField()
	fields["key"] = &framework.FieldSchema{Type: framework.TypeString, Description: "Name of the key."}
	return []*framework.Path{{
		Pattern:      runPattern + `/creds/(?P<key>[A-Z][A-Z0-9_]{0,63})$`,
		DisplayAttrs: display("creds"),
		Fields:       fields,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Summary: "Issue one credential to a claimed run", Callback: b.issuePath,
				ForwardPerformanceStandby: true, ForwardPerformanceSecondary: true,
			},
		},
		HelpSynopsis:    "Issue one credential, sealed to the run's key, under a lease.",
		HelpDescription: "The answer holds HPKE ciphertext only. The same idempotency resumes the same grant. 428 means that a person has to say yes first; the message ends with the approval's id.",
	}}
}

func (b *backend) issuePath(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	var cr sealed.CredsRequest
	r, err := b.openRunCall(ctx, req, d, whileClaimed, &cr, func() (sealed.RunID, string) { return cr.Run, cr.Path })
	if err != nil {
		return nil, b.edge(err)
	}
	if n := len(cr.Idempotency); n < 16 || n > 64 {
		return nil, b.edge(invalid("idempotency", "wants 16 to 64 characters"))
	}
	name, err := sealed.ParseKeyName(text(d, "key"))
	if err != nil {
		return nil, b.edge(err)
	}
	g, err := b.issue(ctx, req.Storage, r.ID, name, cr)
	if err != nil {
		return nil, b.edge(err)
	}
	resp, err := b.leased(ctx, req.Storage, g)
	if err != nil {
		return nil, b.edge(err)
	}
	return resp, nil
}

// leased puts a grant into the answer that Vault will lease.
func (b *backend) leased(ctx context.Context, s logical.Storage, g grantRow) (*logical.Response, error) {
	now := b.now().UTC()
	ttl := min(g.TTL.Std(), g.Ends.Sub(now)).Truncate(time.Second)
	if ttl < time.Second {
		return nil, errRefused
	}
	data, err := b.answer(ctx, s, sealed.CredsAnswer{
		Run: g.Run, Grant: g.ID, Key: g.Key, Delivery: g.Delivery, Bindings: g.Bindings, Ciphertext: g.Ciphertext,
		AllowWeak: g.AllowWeak, TTL: int64(ttl / time.Second), Expires: now.Add(ttl), Epoch: g.Epoch, Renewable: true,
	})
	if err != nil {
		return nil, err
	}
	resp := b.Secret(secretType).Response(data, map[string]any{"run": string(g.Run), "grant": string(g.ID), "attempt": fmt.Sprint(g.Attempt)})
	resp.Secret.TTL, resp.Secret.MaxTTL, resp.Secret.Renewable = ttl, g.Ends.Sub(now), true
	return resp, nil
}

// issue takes a grant from nothing to returned:
//
//  1. under the run's lock: resume a grant of the same idempotency; else
//     check revocations, decide again, find the approval, log issue.intent,
//     write the intent. That write is also what consumes the approval. It
//     comes after the entry: a crash between them leaves an entry about an
//     intent that came to nothing, never a grant that the log does not know.
//  2. without the lock: prepare and mint at the source.
//  3. under the lock again: the run must still be alive, the intent still an
//     intent, and no revocation may have come; else undo.
func (b *backend) issue(ctx context.Context, s logical.Storage, run sealed.RunID, name sealed.KeyName, cr sealed.CredsRequest) (grantRow, error) {
	g, resumed, err := b.intend(ctx, s, run, name, cr)
	if err != nil || resumed {
		return g, err
	}
	done, err := b.mintAndSettle(ctx, s, g)
	b.mem.leave(g.ID)
	if err != nil {
		b.worker.wake() // only now: the worker pays nothing for a grant that is being minted
	}
	return done, err
}

func (b *backend) mintAndSettle(ctx context.Context, s logical.Storage, g grantRow) (grantRow, error) {
	g, minted, err := b.mint(ctx, s, g)
	if err != nil {
		return grantRow{}, b.failGrant(ctx, s, g, err)
	}
	defer minted.Value.Destroy()
	done, err := b.settleGrant(ctx, s, g, minted)
	if err != nil {
		if minted.Handle != "" {
			g.Handle = minted.Handle
		}
		return grantRow{}, b.failGrant(ctx, s, g, err)
	}
	return done, nil
}

// intend is step 1. On success without resumed the grant is marked as being
// minted by this call, and the caller has to leave it.
func (b *backend) intend(ctx context.Context, s logical.Storage, run sealed.RunID, name sealed.KeyName, cr sealed.CredsRequest) (g grantRow, resumed bool, err error) {
	defer b.lockRun(run)()
	r, err := b.run(ctx, s, run)
	if err != nil {
		return g, false, err
	}
	if !r.alive() {
		return g, false, errRefused
	}
	if g, ok, err := b.resume(ctx, s, r, name, cr); ok || err != nil {
		return g, true, err
	}
	g, v, err := b.draftGrant(ctx, s, r, name, cr)
	if err != nil {
		return g, false, err
	}
	if v.Effect == sealed.EffectRequireApproval {
		a, approved, err := b.approvalFor(ctx, s, r, v.bundle, v.terms, v.Decision, cr.Reason)
		if err != nil {
			return g, false, b.deniedKey(ctx, s, r, name, v.Decision, err)
		}
		if !approved {
			return g, false, pending(a.ID)
		}
		if !b.mem.off.consume {
			g.ID, g.Approval = sealed.GrantID(a.ID), a.ID
		}
		if ends := g.CreatedAt.Add(time.Duration(a.object.TTL) * time.Second); ends.Before(g.Ends) {
			g.Ends = ends
		}
	}
	if !b.mem.enter(g.ID) {
		return g, false, fmt.Errorf("the credential is being issued: %w", sealed.ErrConflict)
	}
	if err := b.writeIntent(ctx, s, r, g, v); err != nil {
		b.mem.leave(g.ID)
		return g, false, err
	}
	return g, false, nil
}

// pending answers 428 and names the approval.
func pending(id sealed.ApprovalID) error {
	return logical.CodedError(http.StatusPreconditionRequired, "approval required: "+string(id))
}

// draftGrant decides and drafts the grant. Its effect is allow or require_approval.
func (b *backend) draftGrant(ctx context.Context, s logical.Storage, r runRow, name sealed.KeyName, cr sealed.CredsRequest) (grantRow, verdict, error) {
	// The epoch is read before everything that a revocation could change.
	epoch, err := b.epoch(ctx, s)
	if err != nil {
		return grantRow{}, verdict{}, err
	}
	v, err := b.decideAgain(ctx, s, phaseIssue, r, name, cr.Reason)
	if err != nil {
		return grantRow{}, v, err
	}
	if v.Effect != sealed.EffectAllow && v.Effect != sealed.EffectRequireApproval {
		return grantRow{}, v, b.deniedKey(ctx, s, r, name, v.Decision, sealed.ErrDenied)
	}
	if !cr.Delivery.Stronger(v.terms.delivery) {
		return grantRow{}, v, b.deniedKey(ctx, s, r, name, sealed.Deny("delivery_too_weak", ""), sealed.ErrDenied)
	}
	_, src, err := b.source(ctx, s, v.terms.spec.Source)
	if err != nil {
		return grantRow{}, v, err
	}
	now := b.now().UTC()
	id, err := sealed.NewULID(now, b.rand)
	if err != nil {
		return grantRow{}, v, fmt.Errorf("making grant id: %w", err)
	}
	k := v.terms
	g := grantRow{
		ID: sealed.GrantID(id), Run: r.ID, Key: name, Idempotency: cr.Idempotency, Profile: k.profile.Name,
		Source: k.spec.Source, Ref: k.spec.Ref, Revocable: src.Revocable(), Delivery: cr.Delivery, Bindings: k.bindings,
		AllowWeak: k.spec.AllowWeak, TTL: sealed.Duration(k.ttl), Ends: now.Add(b.longest(k.maxTTL)), State: grantIntent,
		Epoch: epoch, CreatedAt: now, ChangedAt: now,
	}
	if err := b.coveredGrant(ctx, s, r, g); err != nil {
		return grantRow{}, v, b.deniedKey(ctx, s, r, name, sealed.Deny(sealed.ReasonRevoked, ""), err)
	}
	return g, v, nil
}

// longest is a lifetime cut to what the mount allows.
func (b *backend) longest(d time.Duration) time.Duration {
	if limit := b.System().MaxLeaseTTL(); limit > 0 {
		return min(d, limit)
	}
	return d
}

// coveredGrant returns sealed.ErrRevoked if a revocation covers the grant.
func (b *backend) coveredGrant(ctx context.Context, s logical.Storage, r runRow, g grantRow) error {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return err
	}
	return b.covered(ctx, s, g.subject(r, cfg.TrustDomain))
}

// deniedKey logs a denial and returns the one answer to every denial (F23).
// Another error passes through.
func (b *backend) deniedKey(ctx context.Context, s logical.Storage, r runRow, name sealed.KeyName, d sealed.Decision, cause error) error {
	if !errors.Is(cause, sealed.ErrDenied) && !errors.Is(cause, sealed.ErrRevoked) {
		return cause
	}
	_, err := b.record(ctx, s, audit.Event{Type: "policy.denied", Run: string(r.ID), Body: map[string]any{
		"key": name, "reasons": codes(d), "pinned": r.m.Bundle.Digest,
	}})
	if err != nil && !errors.Is(err, audit.ErrBudget) {
		return err
	}
	return errRefused
}

func codes(d sealed.Decision) []string {
	out := []string{}
	for _, r := range d.Reasons {
		out = append(out, r.Code)
	}
	return out
}

// writeIntent logs the intent and then stores it. The entry counts against the
// run's budget, which bounds what a loop of calls can write (R23).
func (b *backend) writeIntent(ctx context.Context, s logical.Storage, r runRow, g grantRow, v verdict) error {
	_, err := b.record(ctx, s, audit.Event{Type: "issue.intent", Run: string(r.ID), Body: map[string]any{
		"key": g.Key, "grant": g.ID, "approval": g.Approval, "delivery": g.Delivery, "source": g.Source, "profile": g.Profile,
		"profile_version": v.terms.profile.Version, "effect": v.Effect, "reasons": codes(v.Decision),
		"pinned": r.m.Bundle.Digest, "bundle": v.bundle.Ref().Digest, "epoch": g.Epoch, "ttl": int64(g.TTL.Std() / time.Second),
	}})
	if errors.Is(err, audit.ErrBudget) {
		return errBudget
	}
	if err != nil {
		return err
	}
	return b.saveGrant(ctx, s, g)
}

// errBudget tells a run that it has used up its entries in the log.
var errBudget = logical.CodedError(http.StatusTooManyRequests, "the run has used up its entries in the log")
