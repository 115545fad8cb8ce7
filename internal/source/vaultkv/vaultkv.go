// Package vaultkv is the source of static values in a KV version 2 mount of a
// Vault.
//
// It reads one field of one secret with the source's own token, which needs
// "read" on <mount>/data/<path>, and "update" on auth/token/renew-self if it is
// to be kept alive. With "read" on <mount>/metadata/<path> it can tell, for a
// replay, whether a value has been rotated; without, that is unknown. The token
// is the credential, or comes from a login by AppRole or JWT. Package source
// states what a call guarantees. A value that was read can't be un-issued here:
// revoking it means to write another one upstream.
package vaultkv

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

// defaultField is read when a reference names none.
const defaultField = "value"

// A Source reads from one mount. It is safe for concurrent use.
type Source struct {
	source.Static
	vault *source.Vault
	now   func() time.Time
}

// Open makes a source and takes ownership of credential; now nil means
// time.Now. It makes no call. The error matches sealed.ErrInvalid.
func Open(cfg sealed.SourceConfig, credential *secret.Value, now func() time.Time) (*Source, error) {
	v, err := source.NewVault(cfg, credential, true, now)
	if err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	return &Source{vault: v, now: now}, nil
}

// Mint reads the newest version of a field, or the pinned one. The error
// matches sealed.ErrUnavailable, and sealed.ErrNotFound too when the secret
// or its version is not there.
func (s *Source) Mint(ctx context.Context, ref sealed.KeyRef, _ string) (source.Minted, error) {
	path, err := s.vault.MountPath("data/", ref.Path)
	if err != nil {
		return source.Minted{}, err
	}
	pinned, err := ref.PinnedNumber()
	if err != nil {
		return source.Minted{}, err
	}
	call := source.Call{Method: http.MethodGet, Path: path}
	if pinned > 0 {
		call.Query = url.Values{"version": {strconv.Itoa(pinned)}}
	}
	var answer struct {
		Data struct {
			Data     map[string]json.RawMessage `json:"data"`
			Metadata struct {
				Version int `json:"version"`
			} `json:"metadata"`
		} `json:"data"`
	}
	if err := s.vault.Do(ctx, call, &answer); err != nil {
		if source.NotFound(err) {
			err = fmt.Errorf("%w: %w", sealed.ErrNotFound, err)
		}
		return source.Minted{}, fmt.Errorf("reading secret: %w", err)
	}
	defer source.Wipe(answer.Data.Data)
	field := ref.Field
	if field == "" {
		field = defaultField
	}
	if pinned > 0 && answer.Data.Metadata.Version != pinned {
		return source.Minted{}, fmt.Errorf("reading secret: the answer is about another version: %w", sealed.ErrUnavailable)
	}
	value, err := source.StringField(answer.Data.Data, field)
	if err != nil {
		return source.Minted{}, fmt.Errorf("reading secret: %w", err)
	}
	return source.Minted{Value: value, Version: sealed.VersionNumber(answer.Data.Metadata.Version)}, nil
}

// Newest is the newest version of a secret, or the one that ref pins if it is
// there. It reads no value. The error matches sealed.ErrInvalid for a reference
// that can't be one, else sealed.ErrUnavailable, and sealed.ErrNotFound too
// when there is none or it was deleted. A token that may not read metadata makes
// it unavailable.
func (s *Source) Newest(ctx context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error) {
	path, err := s.vault.MountPath("metadata/", ref.Path)
	if err != nil {
		return "", err
	}
	version, err := ref.PinnedNumber()
	if err != nil {
		return "", err
	}
	var answer struct {
		Data struct {
			Current  int `json:"current_version"`
			Versions map[string]struct {
				Deleted   string `json:"deletion_time"` // may be to come
				Destroyed bool   `json:"destroyed"`
			} `json:"versions"`
		} `json:"data"`
	}
	if err := s.vault.Do(ctx, source.Call{Method: http.MethodGet, Path: path}, &answer); err != nil {
		if source.NotFound(err) {
			err = fmt.Errorf("%w: %w", sealed.ErrNotFound, err)
		}
		return "", fmt.Errorf("reading versions: %w", err)
	}
	if version == 0 {
		version = answer.Data.Current
	}
	v, ok := answer.Data.Versions[strconv.Itoa(version)]
	gone := !ok || v.Destroyed
	if v.Deleted != "" {
		at, err := time.Parse(time.RFC3339, v.Deleted)
		gone = gone || err != nil || !at.After(s.now())
	}
	if gone {
		return "", fmt.Errorf("reading versions: no such version: %w: %w", sealed.ErrNotFound, sealed.ErrUnavailable)
	}
	return sealed.VersionNumber(version), nil
}

// Keep renews the source's own token when that is due.
func (s *Source) Keep(ctx context.Context) error { return s.vault.Keep(ctx) }

// Check reports whether the token sees a KV version 2 mount.
func (s *Source) Check(ctx context.Context) error { return s.vault.CheckMount(ctx, "kv") }
