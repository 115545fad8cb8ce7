package vaultclient

import (
	"context"
	"encoding/base64"
	"time"
)

// A SecretMeta says which versions of a secret exist. Nobody reads a value.
type SecretMeta struct {
	Path     string          `json:"path"`
	Version  int             `json:"version"` // the newest
	Versions []SecretVersion `json:"versions"`
}

// A SecretVersion is one version of a secret.
type SecretVersion struct {
	Version   int       `json:"version"`
	CreatedAt time.Time `json:"created_at"`
}

// PutSecret writes a new version of a secret and returns its number. The value
// travels as base64, so any bytes will do. The caller wipes it.
func (e *Engine) PutSecret(ctx context.Context, path string, value []byte) (version int, err error) {
	if err := segments("path", path); err != nil {
		return 0, err
	}
	f, err := e.write(ctx, map[string]any{"value": base64.StdEncoding.EncodeToString(value), "encoding": "base64"}, "secrets", path)
	if err != nil {
		return 0, err
	}
	return f.int("version")
}

// Secret says which versions of a secret exist.
func (e *Engine) Secret(ctx context.Context, path string) (SecretMeta, error) {
	out := SecretMeta{Path: path}
	if err := segments("path", path); err != nil {
		return out, err
	}
	f, err := e.read(ctx, nil, "secrets", path)
	if err != nil {
		return out, err
	}
	if out.Version, err = f.int("version"); err != nil {
		return out, err
	}
	return out, f.document("versions", &out.Versions)
}

// Secrets lists the names below a prefix, which may be empty. Those that end
// with a slash are folders.
func (e *Engine) Secrets(ctx context.Context, prefix string) ([]string, error) {
	if prefix == "" {
		names, _, err := e.list(ctx, nil, "secrets", "")
		return names, err
	}
	if err := segments("path", prefix); err != nil {
		return nil, err
	}
	names, _, err := e.list(ctx, nil, "secrets", prefix)
	return names, err
}

// DeleteSecret deletes a secret with all its versions. One that is not there
// is no error.
func (e *Engine) DeleteSecret(ctx context.Context, path string) error {
	if err := segments("path", path); err != nil {
		return err
	}
	return e.remove(ctx, nil, "secrets", path)
}
