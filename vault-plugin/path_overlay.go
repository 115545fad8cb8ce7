package vaultplugin

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// pathOverlay lays a bundle over the one in force, and takes it away. An overlay
// that replaces another one is vouched for by its signature, as a policy is; to take
// one away without any signature widens, and takes a second person.
func (b *backend) pathOverlay() *framework.Path {
	return &framework.Path{
		Pattern:      "policy/overlay$",
		DisplayAttrs: display("policy-overlay"),
		Fields: map[string]*framework.FieldSchema{
			"bundle": {Type: framework.TypeString, Description: "A signed policy bundle, base64."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   b.op("Show the overlay.", b.overlayRead),
			logical.UpdateOperation: b.op("Lay a signed bundle over the policy in force.", b.overlayWrite),
			logical.DeleteOperation: b.op("Take the overlay away, with a second person.", b.overlayDelete),
		},
		HelpSynopsis:    "A second bundle that is asked the same as the one in force, and can only narrow what that one says.",
		HelpDescription: "The bundle is checked as for policy, against a floor of sequences of its own, which stays when the overlay is removed. Removing it widens: it becomes a proposal (proposals/overlay). One that is expired denies everything, and where one can't be opened nothing is decided.",
	}
}

func (b *backend) overlayRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	row, err := b.policyRow(ctx, req.Storage)
	if err != nil || row.Overlay == (overlayRow{}) {
		return nil, err
	}
	over := row.Overlay
	state := "in_force"
	switch {
	case over.Awaited:
		state = "awaited"
	case over.Digest == "":
		state = "removed"
	case !b.now().Before(over.Expires):
		state = "expired"
	default:
		if _, err := b.overlayFor(ctx, req.Storage, over.ref()); err != nil {
			state = "unusable"
		}
	}
	return over.answer(state), nil
}

func (r overlayRow) answer(state string) map[string]any {
	out := map[string]any{
		"digest": string(r.Digest), "sequence": strconv.FormatUint(r.Sequence, 10), "previous": string(r.Previous), "state": state,
	}
	if r.Digest != "" {
		out["expires"], out["activated_at"] = r.Expires.UTC().Format(time.RFC3339), r.ActivatedAt.UTC().Format(time.RFC3339)
	}
	return out
}

// overlayWrite keeps the overlay that there is on every refusal, and logs why.
func (b *backend) overlayWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
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
	bundle, why, err := b.acceptOverlay(ctx, req.Storage, row, raw)
	if why != "" {
		return nil, errors.Join(err, b.rejected(ctx, req, raw, why, map[string]any{"as": "overlay"}))
	}
	if err != nil {
		return nil, err
	}
	ref, was := bundle.Ref(), row.Overlay
	if ref == was.ref() {
		return was.answer("in_force"), nil // the same again
	}
	if err := storeParts(ctx, req.Storage, storeOverlays, ref.Digest, raw); err != nil {
		return nil, err
	}
	row.Overlay = overlayRow{
		Digest: ref.Digest, Sequence: ref.Sequence, Expires: bundle.Expires(), ActivatedAt: b.now().UTC(), Previous: cmp.Or(was.Digest, was.Previous),
	}
	body := map[string]any{"digest": ref.Digest, "sequence": ref.Sequence, "expires": bundle.Expires(), "previous": was.Digest}
	if err := b.change(ctx, req, "overlay.activated", body); err != nil {
		return nil, err
	}
	defer b.nouns.policy.drop()
	if err := put(ctx, req.Storage, storePolicy, row); err != nil {
		return nil, err
	}
	_, _ = b.nouns.bundles.get(overlayKey(ref.Digest), func() (Bundle, error) { return bundle, nil })
	return row.Overlay.answer("in_force"), nil
}

// acceptOverlay decides whether raw may be the next overlay; why is as for
// acceptBundle.
func (b *backend) acceptOverlay(ctx context.Context, s logical.Storage, row policyRow, raw []byte) (bundle Bundle, why string, err error) {
	bundle, why, err = b.verifyBundle(ctx, s, raw, true)
	if err != nil {
		return nil, why, err
	}
	ref := bundle.Ref()
	why, err = follows(ref, sealed.BundleRef{Digest: row.Overlay.Digest, Sequence: row.Overlay.Sequence})
	return bundle, why, err
}

func (b *backend) overlayDelete(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	return b.removeOverlay(ctx, req, nil)
}

// removeOverlay takes the overlay away; its sequence stays as the floor, and its
// bytes for the runs that have pinned it.
func (b *backend) removeOverlay(ctx context.Context, req *logical.Request, yes *consent) (map[string]any, error) {
	b.policy.changing.Lock()
	defer b.policy.changing.Unlock()
	row, err := b.policyRow(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	was := row.Overlay
	if !was.there() && yes == nil {
		return nil, nil
	}
	w := widening{kind: sealed.ProposalOverlay, before: overlayText(was), widens: []string{"overlay"}, deletes: true}
	if answer, err := b.gate(ctx, req, w, yes); answer != nil || err != nil {
		return answer, err
	}
	body := map[string]any{"digest": was.Digest, "sequence": was.Sequence}
	if err := b.change(ctx, req, "overlay.removed", yes.sign(body)); err != nil {
		return nil, err
	}
	row.Overlay = overlayRow{Sequence: was.Sequence, Previous: cmp.Or(was.Digest, was.Previous)}
	defer b.nouns.policy.drop()
	return nil, put(ctx, req.Storage, storePolicy, row)
}

// overlayText is what a second person is shown of an overlay; none is empty.
func overlayText(r overlayRow) string {
	if !r.there() {
		return ""
	}
	return textOf(map[string]overlayRow{"overlay": r})
}
