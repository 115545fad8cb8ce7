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
	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// pathCreds is where credentials are issued. Vault makes the lease id from
// the path, so that all leases of a run share the prefix runs/<id>/creds/.
func (b *backend) pathCreds() []*framework.Path {
	fields := askField()
	fields["key"] = &framework.FieldSchema{Type: framework.TypeString, Description: "Name of the key."}
	return []*framework.Path{{
		Pattern:      runPattern + `/creds/(?P<key>[A-Z][A-Z0-9_]{0,63})$`,
		DisplayAttrs: display("creds"),
		Fields:       fields,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Summary: "Issue one credential to a claimed run", Callback: b.issuePath,
				ForwardPerformanceStandby: true, ForwardPerformanceSecondary: true,
			},
		},
		HelpSynopsis:    "Issue one credential, sealed to the run's key, under a lease.",
		HelpDescription: "The answer holds HPKE ciphertext only. The same idempotency resumes the same grant. 428 means that a person has to say yes first; the message ends with the approval's id.",
	}}
}

// A credsCall is one call of creds.
type credsCall struct {
	sealed.CredsRequest
	key    sealed.KeyName
	look   *lookup      // of the requester
	caller func() error // waits until it is certain who calls
	entry  *arrival     // of issue.intent in the log
}

// vouched waits until Vault has vouched for the caller. From then on other
// entries than the intent's may be logged.
func (c credsCall) vouched() error {
	c.entry.over()
	return c.caller()
}

func (b *backend) issuePath(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	deepen(len(req.Path))
	entry := b.journal.expect()
	defer entry.over()
	var cr sealed.CredsRequest
	r, err := b.pathRun(ctx, req, d)
	if err != nil {
		return nil, b.edge(err)
	}
	what := b.checkDocument(req, d, r, &cr, func() (sealed.RunID, string) { return cr.Run, cr.Path })
	if what != "" {
		entry.over()
		return nil, b.edge(b.admit(ctx, req, r, whileClaimed, what))
	}
	// Whoever signed has the run key. Vault is asked about the caller and the
	// requester beside the rest; see issue for what waits for the answers.
	caller := beside(func() error { return b.admit(ctx, req, r, whileClaimed, "") })
	resp, err := b.issueCall(ctx, req, d, credsCall{CredsRequest: cr, look: b.lookUp(ctx, req.Storage, r), caller: caller, entry: entry})
	if cerr := caller(); cerr != nil {
		return nil, b.edge(cerr)
	}
	if err != nil {
		return nil, b.edge(err)
	}
	return resp, nil
}

// deepen makes the goroutine's stack large enough for the evaluation of a
// policy, once and while there is little on it to move. Each request comes on a
// new goroutine; growing step by step below the evaluator took a fifth of the
// engine's processor time.
//
//go:noinline
func deepen(i int) byte {
	var room [100 << 10]byte
	return room[i%len(room)]
}

// beside runs f apart. The function that it returns waits for f's result, and
// may be called more than once.
func beside(f func() error) (wait func() error) {
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = f()
	}()
	return func() error { <-done; return err }
}

func (b *backend) issueCall(ctx context.Context, req *logical.Request, d *framework.FieldData, c credsCall) (resp *logical.Response, err error) {
	if n := len(c.Idempotency); n < 16 || n > 64 {
		return nil, invalid("idempotency", "wants 16 to 64 characters")
	}
	if c.key, err = sealed.ParseKeyName(text(d, "key")); err != nil {
		return nil, err
	}
	g, err := b.issue(ctx, req.Storage, c)
	if err != nil {
		return nil, err
	}
	return b.leased(ctx, req.Storage, g)
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
//     check revocations, decide again, find the approval, and log issue.intent
//     with the intent's row attached. That is one write: it is durable before
//     anything is minted, it consumes the approval, and a crash leaves all of it
//     or nothing. An intent that nobody mints after that is ended by the worker,
//     with an entry.
//  2. without the lock: prepare and mint at the source. The value of a
//     built-in key was read during the write.
//  3. under the lock again: the run must still be alive, the intent still an
//     intent, and no revocation may have come; else undo.
//
// Vault's word about the caller comes in during step 1. Nothing but the intent
// and the reading of a built-in key happens before it is there: no source is
// asked, nothing is answered or resumed, no denial is logged, nobody is asked
// for a yes.
func (b *backend) issue(ctx context.Context, s logical.Storage, c credsCall) (grantRow, error) {
	in, err := b.intend(ctx, s, c)
	if err != nil || in.resumed {
		return in.g, err
	}
	done, err := b.mintAndSettle(ctx, s, c, in)
	b.mem.leave(in.g.ID)
	if err != nil {
		b.worker.wake() // only now: the worker pays nothing for a grant that is being minted
	}
	return done, err
}

func (b *backend) mintAndSettle(ctx context.Context, s logical.Storage, c credsCall, in intent) (grantRow, error) {
	if err := c.caller(); err != nil {
		return grantRow{}, b.failGrant(ctx, s, in.g, fmt.Errorf("%w: %w", errCaller, err))
	}
	g, p, err := b.mint(ctx, s, in)
	if err != nil {
		return grantRow{}, b.failGrant(ctx, s, g, err)
	}
	done, err := b.settleGrant(ctx, s, g, p)
	if err != nil {
		return grantRow{}, b.failGrant(ctx, s, g, err)
	}
	return done, nil
}

// pending answers 428 and names the approval.
func pending(id sealed.ApprovalID) error {
	return logical.CodedError(http.StatusPreconditionRequired, "approval required: "+string(id))
}

// newGrantID draws the id of a grant that needs no approval.
func (b *backend) newGrantID() (sealed.GrantID, error) {
	id, err := sealed.NewULID(b.now().UTC(), b.rand)
	if err != nil {
		return "", fmt.Errorf("making grant id: %w", err)
	}
	return sealed.GrantID(id), nil
}

// draftGrant decides and drafts the grant. Its effect is allow or require_approval.
func (b *backend) draftGrant(ctx context.Context, s logical.Storage, r runRow, c credsCall, id sealed.GrantID) (grantRow, verdict, error) {
	var v verdict
	deny := func(d sealed.Decision, cause error) error {
		if err := c.vouched(); err != nil {
			return err
		}
		return b.deniedKey(ctx, s, r, c.key, d, cause, v.decided...)
	}
	// The epoch is read before everything that a revocation could change.
	epoch, err := b.epoch(ctx, s)
	if err != nil {
		return grantRow{}, verdict{}, err
	}
	v, err = b.decideAgain(ctx, s, phaseIssue, r, c.key, c.Reason, c.look)
	if err != nil {
		return grantRow{}, v, err
	}
	if v.Effect != sealed.EffectAllow && v.Effect != sealed.EffectRequireApproval {
		return grantRow{}, v, deny(v.Decision, sealed.ErrDenied)
	}
	if v.Obligations.Review.Within > 0 {
		if err := b.mayOwe(ctx, s, r); err != nil {
			return grantRow{}, v, deny(sealed.Deny(reasonReview, ""), err)
		}
	}
	if !c.Delivery.Stronger(v.terms.delivery) {
		return grantRow{}, v, deny(sealed.Deny(reasonDelivery, ""), sealed.ErrDenied)
	}
	_, src, err := b.source(ctx, s, v.terms.spec.Source)
	if err != nil {
		return grantRow{}, v, err
	}
	now := b.now().UTC()
	k := v.terms
	mk, _ := r.key(c.key)
	g := grantRow{
		ID: id, Run: r.ID, Key: c.key, Idempotency: c.Idempotency, Profile: k.key.Origin.Name,
		Source: k.spec.Source, Ref: pinnedRef(mk, k.spec.Ref), Revocable: src.Revocable(), Delivery: c.Delivery, Bindings: k.bindings,
		AllowWeak: k.spec.AllowWeak, TTL: sealed.Duration(k.ttl), Ends: now.Add(b.longest(k.maxTTL)), State: grantIntent,
		Epoch: epoch, CreatedAt: now, ChangedAt: now,
	}
	if err := b.coveredGrant(ctx, s, r, g); err != nil {
		return grantRow{}, v, deny(sealed.Deny(sealed.ReasonRevoked, ""), err)
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

// deniedKey logs a denial, with what was asked for it, and returns the one answer to every denial (F23).
// Another error passes through.
func (b *backend) deniedKey(ctx context.Context, s logical.Storage, r runRow, name sealed.KeyName, d sealed.Decision, cause error, decided ...decisionlog.Event) error {
	if !errors.Is(cause, sealed.ErrDenied) && !errors.Is(cause, sealed.ErrRevoked) {
		return cause
	}
	_, err := b.record(ctx, s, withDecided(audit.Event{Type: "policy.denied", Run: string(r.ID)}, map[string]any{
		"key": name, "reasons": codes(d), "pinned": r.m.Bundle.Digest,
	}, decided)...)
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

// errBudget tells a run that it has used up its entries in the log.
var errBudget = logical.CodedError(http.StatusTooManyRequests, "the run has used up its entries in the log")
