package vaultplugin

import (
	"context"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// refusedPerMinute bounds the entries about refused calls on one run.
const refusedPerMinute = 5

// askField is requestField of a call that is a read in Vault, with the request in
// its query. Of every write Vault asks the plug-in first whether the object
// exists, which costs a call of the plug-in; so what is called most is a read.
// Nothing in a request is secret, and one is good for its caller's token only.
func askField() map[string]*framework.FieldSchema {
	fields := requestField()
	fields["request"].Query = true
	return fields
}

// requestField is the one field of every call after the claim.
func requestField() map[string]*framework.FieldSchema {
	return runFields(map[string]*framework.FieldSchema{
		"request": {Type: framework.TypeString, Description: "The request, signed by the run key: one JSON document with payload and signature."},
	})
}

// Whoever may call for a run, by its state.
var (
	whileClaimed = []string{sealed.RunClaimed}
	untilOver    = []string{sealed.RunClaimed, sealed.RunAborted}
)

// openRunCall opens a call that init makes after the claim (R03). Three things
// have to agree with what was bound at claim: the Vault token (by accessor),
// the SPIFFE ID behind it, and the run key that signed. The document repeats
// run and path, so that it can't be replayed on another one. v points to the
// document; where returns its run and path. Every failure is errRefused.
func (b *backend) openRunCall(ctx context.Context, req *logical.Request, d *framework.FieldData, states []string, v any, where func() (sealed.RunID, string)) (runRow, error) {
	r, err := b.pathRun(ctx, req, d)
	if err != nil {
		return r, err
	}
	return r, b.admit(ctx, req, r, states, b.checkDocument(req, d, r, v, where))
}

// admit asks Vault who calls, unless checkDocument has found a fault already,
// and logs a refusal.
func (b *backend) admit(ctx context.Context, req *logical.Request, r runRow, states []string, what string) error {
	if what == "" {
		var err error
		if what, err = b.checkCaller(ctx, req, r); err != nil {
			return err
		}
	}
	if what == "" && !slices.Contains(states, r.State) {
		what = "state"
	}
	if what == "" {
		b.mem.see(r.ID, b.now())
		return nil
	}
	return b.refuseCall(ctx, req.Storage, r, what)
}

// checkDocument checks everything about a call that the request itself and the
// run's row can tell.
func (b *backend) checkDocument(req *logical.Request, d *framework.FieldData, r runRow, v any, where func() (sealed.RunID, string)) (what string) {
	if r.Claim == nil {
		return "unclaimed"
	}
	switch {
	case b.mem.off.binding:
	case req.EntityID != r.Claim.EntityID:
		return "spiffe_id"
	case req.ClientTokenAccessor == "" || req.ClientTokenAccessor != r.Claim.Accessor:
		return "accessor"
	}
	key, err := parseRunKey(r.Claim.RunKey)
	if err != nil {
		return "run_key"
	}
	var signed sealed.Signed
	if sealed.Decode([]byte(text(d, "request")), 2*sealed.MaxDocument, &signed) != nil {
		return "malformed"
	}
	if signed.Open(sealed.DomainRequest, key, v) != nil {
		return "signature"
	}
	if run, path := where(); run != r.ID || path != req.Path {
		return "path"
	}
	return ""
}

// checkCaller checks what only Vault's identity store can tell.
func (b *backend) checkCaller(ctx context.Context, req *logical.Request, r runRow) (what string, err error) {
	spiffeID, err := b.knownAgent(ctx, req)
	if err != nil && unlessDenied(err) != nil {
		return "", err
	}
	if !b.mem.off.binding && (err != nil || spiffeID != r.Claim.SPIFFEID) {
		return "spiffe_id", nil
	}
	return "", nil
}

// refuseCall logs a refused call, a few per minute and run.
func (b *backend) refuseCall(ctx context.Context, s logical.Storage, r runRow, what string) error {
	n := b.mem.count("refused/"+string(r.ID), b.now())
	if n > refusedPerMinute {
		return errRefused
	}
	// Not an entry of the run: a stranger's calls must not use up its budget.
	if _, err := b.record(ctx, s, audit.Event{Type: "call.refused", Essential: true, Body: map[string]any{
		"on": r.ID, "what": what, "more": n == refusedPerMinute,
	}}); err != nil {
		return err
	}
	return errRefused
}
