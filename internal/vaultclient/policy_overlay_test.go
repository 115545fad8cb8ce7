package vaultclient

import (
	"errors"
	"maps"
	"testing"

	"sealed.dev/sealed/internal/sealed"
)

func TestPolicyOverlay(t *testing.T) {
	good := map[string]any{
		"digest": "ab", "sequence": "9", "previous": "cd", "state": "in_force",
		"expires": "2026-08-01T00:00:00Z", "activated_at": "2026-05-01T00:00:00Z",
	}
	e, _ := answering(t, good)
	o, err := e.UploadPolicyOverlay(t.Context(), []byte("bundle"))
	if err != nil || o.Digest != "ab" || o.Sequence != 9 || o.Previous != "cd" || o.State != "in_force" || !o.ActivatedAt.Before(o.Expires) {
		t.Errorf("%+v, %v", o, err)
	}
	if got, err := e.PolicyOverlay(t.Context()); err != nil || got != o {
		t.Errorf("%+v, %v", got, err)
	}
	for name := range good {
		bad := maps.Clone(good)
		bad[name] = 7.5
		e, _ := answering(t, bad)
		if _, err := e.PolicyOverlay(t.Context()); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("malformed %s: %v", name, err)
		}
	}
	e, _ = answering(t, map[string]any{"proposal": "01JD0Z5X7RS3X7Q4K5M6N7P8Q9", "kind": "overlay", "digest": "ab", "widens": []any{"overlay"}, "expires": "2026-08-01T00:00:00Z"})
	var waits *ProposedError
	if err := e.RemovePolicyOverlay(t.Context()); !errors.As(err, &waits) || waits.Kind != sealed.ProposalOverlay {
		t.Errorf("removing: %v", err)
	}
	e, _ = answering(t, map[string]any{"digest": "ab", "sequence": "9", "overlay": "ef", "overlay_sequence": "2"})
	if s, err := e.PolicyStatus(t.Context()); err != nil || s.Overlay != (sealed.BundleRef{Digest: "ef", Sequence: 2}) {
		t.Errorf("%+v, %v", s, err)
	}
}
