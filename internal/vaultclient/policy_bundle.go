package vaultclient

import (
	"context"
	"encoding/base64"

	"sealed.dev/sealed/internal/sealed"
)

// PolicyBundle returns the bytes of a bundle that the engine still has: the one
// in force, the one before, and those that live runs have pinned. Others are
// sealed.ErrNotFound. The caller compares the digest.
func (e *Engine) PolicyBundle(ctx context.Context, digest sealed.Digest) ([]byte, error) {
	if err := digest.Validate("digest"); err != nil { // it becomes a path
		return nil, err
	}
	f, err := e.read(ctx, nil, "policy", "bundle", string(digest))
	if err != nil {
		return nil, err
	}
	text, err := f.text("bundle")
	if err != nil {
		return nil, err
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, f.malformed("bundle")
	}
	return raw, nil
}
