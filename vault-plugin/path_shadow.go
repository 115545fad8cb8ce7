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

// pathShadow puts a bundle on trial. It needs no second person: a shadow can
// neither allow nor deny anything.
func (b *backend) pathShadow() *framework.Path {
	return &framework.Path{
		Pattern:      "policy/shadow$",
		DisplayAttrs: display("policy-shadow"),
		Fields: map[string]*framework.FieldSchema{
			"bundle": {Type: framework.TypeString, Description: "A signed policy bundle, base64."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   b.op("Show the bundle on trial.", b.shadowRead),
			logical.UpdateOperation: b.op("Put a signed bundle on trial.", b.shadowWrite),
			logical.DeleteOperation: b.op("End the trial.", b.shadowDelete),
		},
		HelpSynopsis:    "A bundle that is asked and logged beside the one in force, and decides nothing.",
		HelpDescription: "The bundle is checked as for policy, but its sequence is not compared with that in force and does not become the floor. Its answers are in the log's decisions, marked shadow. An expired one is not asked.",
	}
}

func (b *backend) shadowRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	row, err := b.policyRow(ctx, req.Storage)
	if err != nil || row.Shadow == nil {
		return nil, err
	}
	state := "asked"
	if _, err := b.shadowBundle(ctx, req.Storage, row.Shadow.Digest); err != nil {
		state = "unusable"
	}
	if !b.now().Before(row.Shadow.Expires) {
		state = "expired"
	}
	return row.Shadow.answer(state), nil
}

func (r shadowRow) answer(state string) map[string]any {
	return map[string]any{
		"digest": string(r.Digest), "sequence": strconv.FormatUint(r.Sequence, 10), "by": r.By, "state": state,
		"expires": r.Expires.UTC().Format(time.RFC3339), "since": r.Since.UTC().Format(time.RFC3339),
	}
}

// shadowWrite keeps the shadow that there is on every refusal, and logs why.
func (b *backend) shadowWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	raw, err := bundleField(d)
	if err != nil {
		return nil, err
	}
	b.policy.changing.Lock()
	defer b.policy.changing.Unlock()
	row, err := b.policyRow(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	bundle, why, err := b.verifyBundle(ctx, req.Storage, raw, false)
	if err == nil && bundle.Ref().Digest == row.Digest {
		why, err = "in_force", fmt.Errorf("uploading bundle: it is in force already: %w", sealed.ErrInvalid)
	}
	if why != "" {
		return nil, errors.Join(err, b.rejected(ctx, req, raw, why, map[string]any{"as": "shadow"}))
	}
	if err != nil {
		return nil, err
	}
	ref := bundle.Ref()
	if row.shadows(ref.Digest) {
		return row.Shadow.answer("asked"), nil // the same again
	}
	next := shadowRow{Digest: ref.Digest, Sequence: ref.Sequence, Expires: bundle.Expires(), Since: b.now().UTC(), By: b.actor(req)}
	if err := storeParts(ctx, req.Storage, storeShadows, ref.Digest, raw); err != nil {
		return nil, err
	}
	body := map[string]any{"digest": next.Digest, "sequence": next.Sequence, "expires": next.Expires}
	if row.Shadow != nil {
		body["replaced"] = row.Shadow.Digest
	}
	if err := b.change(ctx, req, "policy.shadow_set", body); err != nil {
		return nil, err
	}
	if err := b.putShadow(ctx, req.Storage, row, &next); err != nil {
		return nil, err
	}
	_, _ = b.nouns.bundles.get(shadowKey(ref.Digest), func() (Bundle, error) { return bundle, nil })
	return next.answer("asked"), nil
}

func (b *backend) shadowDelete(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	b.policy.changing.Lock()
	defer b.policy.changing.Unlock()
	row, err := b.policyRow(ctx, req.Storage)
	if err != nil || row.Shadow == nil {
		return nil, err
	}
	body := map[string]any{"digest": row.Shadow.Digest, "sequence": row.Shadow.Sequence, "why": "removed"}
	if err := b.change(ctx, req, "policy.shadow_removed", body); err != nil {
		return nil, err
	}
	return nil, b.putShadow(ctx, req.Storage, row, nil)
}

// putShadow writes what is on trial, and then deletes what is not. The row is what
// counts: what is left behind by a failure, sweepBundles deletes.
func (b *backend) putShadow(ctx context.Context, s logical.Storage, row policyRow, next *shadowRow) error {
	row.Shadow = next
	err := put(ctx, s, storePolicy, row)
	b.nouns.policy.drop()
	if err != nil {
		return err
	}
	if err := sweepShadows(ctx, s, row); err != nil {
		b.Logger().Warn("earlier shadow not deleted yet", "error", err)
	}
	return nil
}
