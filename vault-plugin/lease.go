package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// secretType is the type of lease that grants live under.
const secretType = "sealed_grant"

// grantSecret describes the leases. Vault calls Renew and Revoke without a
// caller: they look at grant and run only.
func (b *backend) grantSecret() *framework.Secret {
	return &framework.Secret{
		Type: secretType,
		Fields: map[string]*framework.FieldSchema{
			"answer": {Type: framework.TypeString, Description: "The signed answer; the value in it is HPKE ciphertext for the run's key."},
		},
		Renew:  b.renewLease,
		Revoke: b.revokeLease,
	}
}

// leaseOf returns what a lease is for. Its internal data was written by
// leased and came back through Vault.
func leaseOf(req *logical.Request) (run sealed.RunID, id sealed.GrantID, attempt int, err error) {
	if req.Secret == nil {
		return "", "", 0, fmt.Errorf("reading lease: no secret: %w", sealed.ErrInvalid)
	}
	data := req.Secret.InternalData
	r, _ := data["run"].(string)
	g, _ := data["grant"].(string)
	a, _ := data["attempt"].(string)
	if attempt, err = strconv.Atoi(a); err != nil || g == "" {
		return "", "", 0, fmt.Errorf("reading lease: malformed internal data: %w", sealed.ErrInvalid)
	}
	run, err = sealed.ParseRunID(r)
	return run, sealed.GrantID(g), attempt, err
}

// renewLease prolongs a confirmed grant of a live run, never beyond its end
// and never under a standing revocation, soft or hard. It returns no data.
func (b *backend) renewLease(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	run, id, attempt, err := leaseOf(req)
	if err != nil {
		return nil, b.edge(err)
	}
	g, r, err := b.grant(ctx, req.Storage, run, id)
	if err != nil {
		if unlessDenied(err) == nil {
			err = errRefused
		}
		return nil, b.edge(err)
	}
	if !r.alive() || g.State != grantConfirmed || g.Attempt != attempt {
		return nil, b.edge(errRefused)
	}
	if err := b.coveredGrant(ctx, req.Storage, r, g); err != nil {
		return nil, b.edge(err)
	}
	upstream, err := b.renewAtSource(ctx, req.Storage, g)
	if err != nil {
		return nil, b.edge(err)
	}
	left := g.Ends.Sub(b.now()).Truncate(time.Second)
	if min(left, upstream) < time.Second {
		return nil, b.edge(errRefused) // a TTL of 0 would mean Vault's default
	}
	secret := *req.Secret
	secret.TTL, secret.MaxTTL = min(g.TTL.Std(), left, upstream), left
	return &logical.Response{Secret: &secret}, nil
}

// revokeLease ends a grant. It is idempotent, works after the run's rows are
// gone, ignores leases of an earlier attempt of the same grant, and calls
// nobody: Vault's state lock is held (R20). The worker revokes at the source.
func (b *backend) revokeLease(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	run, id, attempt, err := leaseOf(req)
	if err != nil {
		return nil, b.edge(err)
	}
	defer b.lockRun(run)()
	g, _, err := b.grant(ctx, req.Storage, run, id)
	switch {
	case errors.Is(err, sealed.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, b.edge(err)
	case g.State == grantDead || g.Attempt != attempt:
		return nil, nil
	}
	return nil, b.edge(b.killGrant(ctx, req.Storage, g, outcomeLease, nil))
}
