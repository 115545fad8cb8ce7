package vaultplugin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

func (b *backend) pathPolicy() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "policy/?",
			DisplayAttrs: display("policy"),
			Fields: map[string]*framework.FieldSchema{
				"bundle": {Type: framework.TypeString, Description: "A signed policy bundle, base64."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   b.op("Show the bundle in force.", b.policyRead),
				logical.UpdateOperation: b.op("Upload a signed bundle with a higher sequence.", b.policyWrite),
			},
			HelpSynopsis:    "The policy in force.",
			HelpDescription: "An unsigned, malformed, older or expired bundle is refused, and the one in force stays.",
		},
		{
			Pattern:      "policy/decide",
			DisplayAttrs: display("policy-decide"),
			Fields: map[string]*framework.FieldSchema{
				"input":    {Type: framework.TypeString, Description: "Input document (JSON)."},
				"question": {Type: framework.TypeString, Description: "authz (default) or approval."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Ask the policy in force without any effect.", b.policyDecide),
			},
			HelpSynopsis:    "Dry run of a decision.",
			HelpDescription: "Nothing is issued and nothing is logged. The answer is that of the bundle in force, combined with that of its overlay if there is one, at the time in the input.",
		},
		b.pathPolicyKeys(),
		b.pathPolicyBundle(),
		b.pathShadow(),
		b.pathOverlay(),
	}
}

func (b *backend) policyRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	row, err := b.policyRow(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	keys, err := loadPolicyKeys(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if row.Digest == "" && keys.Version == 0 {
		return nil, nil
	}
	out := map[string]any{
		"digest": string(row.Digest), "sequence": strconv.FormatUint(row.Sequence, 10), "previous": string(row.Previous),
		"key_ids": slices.Sorted(maps.Keys(keys.Keys)), "keys_version": keys.Version,
	}
	if row.Digest != "" {
		out["expires"], out["activated_at"] = row.Expires.UTC().Format(time.RFC3339), row.ActivatedAt.UTC().Format(time.RFC3339)
	}
	if over := row.Overlay; over.there() {
		out["overlay"], out["overlay_sequence"] = string(over.Digest), strconv.FormatUint(over.Sequence, 10)
	}
	return out, nil
}

func bundleField(d *framework.FieldData) ([]byte, error) {
	encoded := text(d, "bundle")
	if len(encoded) > base64.StdEncoding.EncodedLen(maxBundle) {
		return nil, invalid("bundle", "larger than 1 MiB")
	}
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(raw) == 0 || len(raw) > maxBundle {
		return nil, invalid("bundle", "wants base64 of at most 1 MiB")
	}
	return raw, nil
}

// rejected logs why a bundle was refused. body is what else there is to say.
func (b *backend) rejected(ctx context.Context, req *logical.Request, raw []byte, why string, body map[string]any) error {
	body["why"], body["digest"] = why, digestOfBundle(raw)
	return b.change(ctx, req, "bundle.rejected", body)
}

// policyWrite keeps the bundle in force on every refusal, and logs why.
func (b *backend) policyWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
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
	next, bundle, why, err := b.acceptBundle(ctx, req.Storage, row, raw)
	if why != "" {
		return nil, errors.Join(err, b.rejected(ctx, req, raw, why, map[string]any{}))
	}
	if err != nil {
		return nil, err
	}
	out := map[string]any{"digest": string(next.Digest), "sequence": strconv.FormatUint(next.Sequence, 10), "expires": next.Expires.UTC().Format(time.RFC3339)}
	if next.Digest == row.Digest {
		return out, nil // the same upload again
	}
	if err := storeBundle(ctx, req.Storage, next.Digest, raw); err != nil {
		return nil, err
	}
	body := map[string]any{"digest": next.Digest, "sequence": next.Sequence, "expires": next.Expires, "previous": next.Previous}
	if err := b.change(ctx, req, "bundle.activated", body); err != nil {
		return nil, err
	}
	if row.shadows(next.Digest) { // its trial is over
		if err := b.change(ctx, req, "policy.shadow_removed", map[string]any{"digest": next.Digest, "sequence": next.Sequence, "why": "activated"}); err != nil {
			return nil, err
		}
		next.Shadow, out["shadow_removed"] = nil, true
	}
	defer b.nouns.policy.drop()
	if err := put(ctx, req.Storage, storePolicy, next); err != nil {
		return nil, err
	}
	_, _ = b.nouns.bundles.get(string(next.Digest), func() (Bundle, error) { return bundle, nil })
	return out, nil
}

// acceptBundle decides whether raw may follow row. why is the constant that is
// logged when it may not; an error without why is a failure of ours.
func (b *backend) acceptBundle(ctx context.Context, s logical.Storage, row policyRow, raw []byte) (next policyRow, bundle Bundle, why string, err error) {
	bundle, why, err = b.verifyBundle(ctx, s, raw, false)
	if err != nil {
		return policyRow{}, nil, why, err
	}
	ref := bundle.Ref()
	if why, err := follows(ref, sealed.BundleRef{Digest: row.Digest, Sequence: row.Sequence}); err != nil {
		return policyRow{}, nil, why, err
	}
	next = row
	next.Digest, next.Sequence, next.Expires, next.ActivatedAt, next.Previous = ref.Digest, ref.Sequence, bundle.Expires(), b.now().UTC(), row.Digest
	return next, bundle, "", nil
}

// follows decides whether a bundle may take the place of another one, which names
// the floor. Without a digest, only the floor is left of that.
func follows(ref, floor sealed.BundleRef) (why string, err error) {
	switch {
	case ref.Sequence < floor.Sequence:
		return "older", fmt.Errorf("uploading bundle: sequence %d is below the floor %d: %w", ref.Sequence, floor.Sequence, sealed.ErrInvalid)
	case ref.Sequence > floor.Sequence || ref.Digest == floor.Digest:
		return "", nil
	case floor.Digest == "":
		return "same_sequence", fmt.Errorf("uploading bundle: sequence %d was taken before: %w", ref.Sequence, sealed.ErrInvalid)
	}
	return "same_sequence", fmt.Errorf("uploading bundle: sequence %d is in force with another digest: %w", ref.Sequence, sealed.ErrInvalid)
}

// verifyBundle makes the checks of a bundle that do not depend on the one in
// force; why is as for acceptBundle.
func (b *backend) verifyBundle(ctx context.Context, s logical.Storage, raw []byte, overlay bool) (bundle Bundle, why string, err error) {
	refuse := func(why, msg string) (Bundle, string, error) {
		return nil, why, fmt.Errorf("uploading bundle: %s: %w", msg, sealed.ErrInvalid)
	}
	keys, err := loadPolicyKeys(ctx, s)
	if err != nil {
		return nil, "", err
	}
	if len(keys.Keys) == 0 {
		return refuse("no_keys", "no policy key is configured; write config/policy-keys first")
	}
	bundle, err = b.deps.OpenBundle(ctx, raw, keys.Keys)
	if err != nil {
		return refuse("not_verified", sealed.CleanReason(err.Error()))
	}
	switch {
	case bundle.Ref().Digest != digestOfBundle(raw):
		return refuse("digest_mismatch", "the bundle has another digest than its bytes")
	case bundle.IsOverlay() && !overlay:
		return refuse("overlay", "it is an overlay, and no policy by itself")
	case overlay && !bundle.IsOverlay():
		return refuse("no_overlay", "it was not built as an overlay")
	case bundle.Ref().Sequence < 1:
		return refuse("older", "the bundle has no sequence")
	case !b.now().Before(bundle.Expires()):
		return refuse("expired", "the bundle has expired")
	}
	return bundle, "", nil
}

func (b *backend) policyDecide(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	raw := []byte(text(d, "input"))
	var input any
	var at time.Time
	question := sealed.QuestionAuthz
	switch text(d, "question") {
	case "", "authz", sealed.QuestionAuthz:
		var in sealed.Input
		if err := sealed.Decode(raw, maxDecideInput, &in); err != nil {
			return nil, err
		}
		if in.Time.IsZero() {
			in.Time = b.now().UTC()
		}
		input, at = &in, in.Time
	case "approval", sealed.QuestionApproval:
		var in sealed.ApprovalInput
		if err := sealed.Decode(raw, maxDecideInput, &in); err != nil {
			return nil, err
		}
		if in.Time.IsZero() {
			in.Time = b.now().UTC()
		}
		question, input, at = sealed.QuestionApproval, in, in.Time
	default:
		return nil, invalid("question", "wants authz or approval")
	}
	by, err := b.currentRules(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	decision, err := json.Marshal(by.Decide(ctx, question, input, at))
	if err != nil {
		return nil, fmt.Errorf("encoding decision: %w", err)
	}
	out := map[string]any{"decision": string(decision), "bundle": string(by.Ref().Digest)}
	if p := by.pins(); p.overlay.Digest != "" {
		out["overlay"] = string(p.overlay.Digest)
	}
	return out, nil
}

const maxDecideInput = 256 << 10
