// Package vaultkv is the source of static values in a KV version 2 mount of a
// Vault.
//
// It reads one field of one secret with the source's own token, which needs
// "read" on <mount>/data/<path> and nothing else. Package source states what a
// call guarantees. A value that was read can't be un-issued here: revoking it
// means to write another one upstream.
package vaultkv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

// defaultField is read when a reference names none.
const defaultField = "value"

// A Source reads from one mount. It is safe for concurrent use.
type Source struct{ vault *source.Vault }

// Open makes a source and takes ownership of token. It makes no call. The
// error matches sealed.ErrInvalid.
func Open(cfg sealed.SourceConfig, token *secret.Value) (*Source, error) {
	v, err := source.NewVault(cfg, token, true)
	if err != nil {
		return nil, err
	}
	return &Source{vault: v}, nil
}

// Prepare prepares nothing: there is nothing to revoke later.
func (*Source) Prepare(context.Context, sealed.KeyRef) (string, error) { return "", nil }

// Mint reads the newest version of a field, or the pinned one. The error
// matches sealed.ErrUnavailable, and sealed.ErrNotFound too when the secret
// or its version is not there.
func (s *Source) Mint(ctx context.Context, ref sealed.KeyRef, _ string) (source.Minted, error) {
	path, err := s.vault.MountPath("data/", ref.Path)
	if err != nil {
		return source.Minted{}, err
	}
	call := source.Call{Method: http.MethodGet, Path: path}
	if ref.Version > 0 {
		call.Query = url.Values{"version": {strconv.Itoa(ref.Version)}}
	}
	var answer struct {
		Data struct {
			Data map[string]json.RawMessage `json:"data"`
		} `json:"data"`
	}
	if err := s.vault.Do(ctx, call, &answer); err != nil {
		var status *source.StatusError
		if errors.As(err, &status) && status.Code == http.StatusNotFound {
			err = fmt.Errorf("%w: %w", sealed.ErrNotFound, err)
		}
		return source.Minted{}, fmt.Errorf("reading secret: %w", err)
	}
	defer source.Wipe(answer.Data.Data)
	field := ref.Field
	if field == "" {
		field = defaultField
	}
	value, err := source.StringField(answer.Data.Data, field)
	if err != nil {
		return source.Minted{}, fmt.Errorf("reading secret: %w", err)
	}
	return source.Minted{Value: value}, nil
}

// Revoke does nothing: the value is not ours to take back.
func (*Source) Revoke(context.Context, string) error { return nil }

// Check reports whether the token sees a KV version 2 mount.
func (s *Source) Check(ctx context.Context) error { return s.vault.CheckMount(ctx, "kv") }

// Revocable reports false.
func (*Source) Revocable() bool { return false }
