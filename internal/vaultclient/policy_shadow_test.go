package vaultclient

import (
	"errors"
	"maps"
	"testing"

	"sealed.dev/sealed/internal/sealed"
)

func TestPolicyShadow(t *testing.T) {
	good := map[string]any{
		"digest": "ab", "sequence": "9", "by": "entity", "state": "asked",
		"expires": "2026-08-01T00:00:00Z", "since": "2026-05-01T00:00:00Z",
	}
	e, _ := answering(t, good)
	s, err := e.SetPolicyShadow(t.Context(), []byte("bundle"))
	if err != nil || s.Digest != "ab" || s.Sequence != 9 || s.By != "entity" || s.State != "asked" || s.Expires.IsZero() || !s.Since.Before(s.Expires) {
		t.Errorf("%+v, %v", s, err)
	}
	if got, err := e.PolicyShadow(t.Context()); err != nil || got != s {
		t.Errorf("%+v, %v", got, err)
	}
	if err := e.RemovePolicyShadow(t.Context()); err != nil {
		t.Error(err)
	}
	for name := range good {
		bad := maps.Clone(good)
		bad[name] = 7.5
		e, _ := answering(t, bad)
		if _, err := e.PolicyShadow(t.Context()); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("malformed %s: %v", name, err)
		}
	}
	if e, _ := answering(t, map[string]any{"digest": "ab", "sequence": "9", "shadow_removed": true}); true {
		if s, err := e.UploadPolicy(t.Context(), []byte("bundle")); err != nil || !s.ShadowRemoved {
			t.Errorf("%+v, %v", s, err)
		}
	}
}
