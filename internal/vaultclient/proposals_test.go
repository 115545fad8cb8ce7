package vaultclient

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

const proposalID = sealed.ProposalID("01JD0Z5X7RS3X7Q4K5M6N7P8Q9")

// TestProposal: what a person is shown is what has the digest, is the proposal
// that was asked for, and replaces what is shown as being there.
func TestProposal(t *testing.T) {
	object := func(change func(*sealed.ProposalObject)) sealed.ProposalView {
		o := sealed.ProposalObject{V: 1, ID: proposalID, Kind: sealed.ProposalProfile, Target: "workflow/a", Content: `{"x":1}`, Widens: []string{"x"},
			Base: sealed.DigestOf(sealed.DomainProposalBase, []byte(`{"x":0}`))}
		change(&o)
		raw, digest, err := o.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return sealed.ProposalView{Object: raw, Digest: digest, State: sealed.ProposalPending, Before: `{"x":0}`}
	}
	same := func(*sealed.ProposalObject) {}
	with := func(change func(*sealed.ProposalView)) sealed.ProposalView {
		v := object(same)
		change(&v)
		return v
	}
	for name, tt := range map[string]struct {
		view sealed.ProposalView
		ok   bool
	}{
		"as it is":          {object(same), true},
		"stale":             {with(func(v *sealed.ProposalView) { v.State, v.Before = sealed.ProposalStale, `{"x":2}` }), true},
		"other digest":      {with(func(v *sealed.ProposalView) { v.Digest = sealed.DigestOf("other", v.Object) }), false},
		"other id":          {object(func(o *sealed.ProposalObject) { o.ID = "01JD0Z5X7RS3X7Q4K5M6N7P8QA" }), false},
		"other kind":        {object(func(o *sealed.ProposalObject) { o.Kind = sealed.ProposalSource }), false},
		"other text before": {with(func(v *sealed.ProposalView) { v.Before = `{"x":2}` }), false},
		"unknown state":     {with(func(v *sealed.ProposalView) { v.State = "fine" }), false},
		"unknown field": {with(func(v *sealed.ProposalView) {
			v.Object = json.RawMessage(`{"y":1}`)
			v.Digest = sealed.DigestOf(sealed.DomainProposal, v.Object)
		}), false},
	} {
		doc, err := json.Marshal(tt.view)
		if err != nil {
			t.Fatal(err)
		}
		e, _ := answering(t, map[string]any{"proposal": string(doc)})
		if p, err := e.Proposal(t.Context(), sealed.ProposalProfile, proposalID); (err == nil) != tt.ok || err != nil && !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, p.Decoded, err)
		}
	}
}

// TestProposed: a change that has become a proposal is an error, whoever makes it.
func TestProposed(t *testing.T) {
	ctx := t.Context()
	answer := map[string]any{"proposal": string(proposalID), "kind": "profile", "digest": "d", "widens": []string{"keys.X"}, "expires": "2026-01-02T03:04:05Z", "credential_dropped": true}
	for name, call := range map[string]func(*Engine) error{
		"write": func(e *Engine) error {
			_, err := e.WriteProfile(ctx, sealed.Profile{Level: "system", Name: "a"})
			return err
		},
		"patch":  func(e *Engine) error { _, err := e.PatchProfile(ctx, "system", "a", 1, nil); return err },
		"delete": func(e *Engine) error { return e.DeleteProfile(ctx, "system", "a", false) },
		"source": func(e *Engine) error { _, err := e.WriteSource(ctx, sealed.SourceConfig{Name: "a"}, nil); return err },
		"keys":   func(e *Engine) error { _, err := e.WritePolicyKeys(ctx, PolicyKeySet{}, nil); return err },
	} {
		e, _ := answering(t, answer)
		err := call(e)
		var p *ProposedError
		if !errors.As(err, &p) || !errors.Is(err, sealed.ErrApprovalRequired) || p.ID != proposalID || !slices.Equal(p.Widens, []string{"keys.X"}) || p.Expires.Year() != 2026 || !p.LoginDropped {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := AsProposed("x", map[string]any{"version": json.Number("1")}); err != nil {
		t.Error(err)
	}
	if err := AsProposed("x", map[string]any{"proposal": "p", "expires": time.Now().String()}); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("a malformed answer: %v", err)
	}
}
