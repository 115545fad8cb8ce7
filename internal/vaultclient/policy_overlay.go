package vaultclient

import (
	"context"
	"encoding/base64"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A PolicyOverlay is the bundle that a tenant has laid over the one in force.
// Without one the digest is empty, and the sequence is the floor for the next.
type PolicyOverlay struct {
	Digest      sealed.Digest `json:"digest"`
	Sequence    uint64        `json:"sequence"`
	Previous    sealed.Digest `json:"previous,omitempty"`
	Expires     time.Time     `json:"expires,omitzero"`
	ActivatedAt time.Time     `json:"activated_at,omitzero"`
	State       string        `json:"state"` // in_force, expired, unusable, awaited, or removed
}

// PolicyOverlay reads the overlay; where there never was one it is
// sealed.ErrNotFound.
func (e *Engine) PolicyOverlay(ctx context.Context) (PolicyOverlay, error) {
	f, err := e.read(ctx, nil, "policy", "overlay")
	if err != nil {
		return PolicyOverlay{}, err
	}
	return f.overlay()
}

// UploadPolicyOverlay lays a signed bundle over the one in force, in the place of
// another one.
func (e *Engine) UploadPolicyOverlay(ctx context.Context, bundle []byte) (PolicyOverlay, error) {
	f, err := e.write(ctx, map[string]any{"bundle": base64.StdEncoding.EncodeToString(bundle)}, "policy", "overlay")
	if err != nil {
		return PolicyOverlay{}, err
	}
	return f.overlay()
}

// RemovePolicyOverlay takes the overlay away, which waits for a second person:
// that is a *ProposedError. Where there is none, nothing happens.
func (e *Engine) RemovePolicyOverlay(ctx context.Context) error {
	path := e.path("policy", "overlay")
	s, err := e.c.api.Logical().DeleteWithContext(ctx, path)
	if err != nil {
		return edge("deleting", path, err)
	}
	if s == nil {
		return nil
	}
	return fields{path, s.Data}.proposed()
}

func (f fields) overlay() (PolicyOverlay, error) {
	var out PolicyOverlay
	var err error
	for name, to := range map[string]*string{"digest": (*string)(&out.Digest), "previous": (*string)(&out.Previous), "state": &out.State} {
		if *to, err = f.text(name); err != nil {
			return out, err
		}
	}
	for name, to := range map[string]*time.Time{"expires": &out.Expires, "activated_at": &out.ActivatedAt} {
		text, err := f.text(name)
		if err != nil {
			return out, err
		}
		if text == "" {
			continue
		}
		if *to, err = time.Parse(time.RFC3339, text); err != nil {
			return out, f.malformed(name)
		}
	}
	out.Sequence, err = f.number("sequence")
	return out, err
}
