package vaultplugin

import (
	"context"
	"encoding/base64"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// pathPolicyBundle gives a bundle back to those who check what it decided. A
// bundle is no secret: it says who may have what, and is signed.
func (b *backend) pathPolicyBundle() *framework.Path {
	return &framework.Path{
		Pattern:      "policy/bundle/(?P<digest>[0-9a-f]{64})$",
		DisplayAttrs: display("policy-bundle"),
		Fields: map[string]*framework.FieldSchema{
			"digest": {Type: framework.TypeString, Description: "SHA-256 of the bundle, hex."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.op("Read a stored bundle.", b.policyBundle),
		},
		HelpSynopsis:    "A bundle by its digest.",
		HelpDescription: "Of bundles and of overlays the one in force, the one before, and those that live runs have pinned are kept, and the shadow; others are swept.",
	}
}

func (b *backend) policyBundle(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	digest := sealed.Digest(text(d, "digest"))
	for _, under := range []string{storeBundles, storeOverlays, storeShadows} {
		stored, err := req.Storage.List(ctx, under+string(digest)+"/")
		if err != nil {
			return nil, unavailable(err)
		}
		if len(stored) == 0 {
			continue
		}
		raw, err := loadBundle(ctx, req.Storage, under, digest)
		if err != nil {
			return nil, err
		}
		if digestOfBundle(raw) != digest {
			return nil, sealed.ErrUnavailable // being swept, or damaged
		}
		return map[string]any{"bundle": base64.StdEncoding.EncodeToString(raw)}, nil
	}
	return nil, nil
}
