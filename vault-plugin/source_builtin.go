package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// upstreamTimeout bounds every call to a source.
const upstreamTimeout = 3 * time.Second

// builtinSource is the Source over the mount's own encrypted store. Its values
// are static: there is nothing to revoke upstream.
type builtinSource struct {
	b       *backend
	storage logical.Storage
}

// Prepare implements Source; a static source prepares nothing.
func (builtinSource) Prepare(context.Context, sealed.KeyRef) (string, error) { return "", nil }

// Mint reads the newest or the pinned version of ref.Path.
func (s builtinSource) Mint(ctx context.Context, ref sealed.KeyRef, _ string) (Minted, error) {
	if err := checkBuiltinRef(ref); err != nil {
		return Minted{}, err
	}
	meta, err := s.b.nouns.versions.get(ref.Path, func() (secretMeta, error) { return loadSecretMeta(ctx, s.storage, ref.Path) })
	if err != nil {
		return Minted{}, err
	}
	version, err := meta.pick(ref)
	if err != nil {
		return Minted{}, fmt.Errorf("reading secret: %w", err)
	}
	var row secretRow
	ok, err := get(ctx, s.storage, secretKey(ref.Path, version), &row)
	if err != nil {
		return Minted{}, err
	}
	if !ok || row.Path != ref.Path || row.Version != version || len(row.Value) == 0 {
		clear(row.Value)
		return Minted{}, fmt.Errorf("decoding stored %s: malformed", secretKey(ref.Path, version))
	}
	return Minted{Value: secret.New(row.Value), Version: sealed.VersionNumber(version)}, nil
}

// Revoke implements Source; nothing was created upstream.
func (builtinSource) Revoke(context.Context, string) error { return nil }

// Check reports whether the store can be listed.
func (s builtinSource) Check(ctx context.Context) error {
	_, err := s.storage.List(ctx, storeSecretMeta)
	return err
}

// Revocable reports false: a static value can't be un-issued.
func (builtinSource) Revocable() bool { return false }

// checkBuiltinRef accepts what can name a secret of the built-in store.
func checkBuiltinRef(ref sealed.KeyRef) error {
	if ref.Field != "" {
		return invalid("ref.field", "a built-in secret is one value without fields")
	}
	return validateSecretPath(ref.Path)
}

func isNotFound(err error) bool { return errors.Is(err, sealed.ErrNotFound) }
