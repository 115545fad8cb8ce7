package vaultclient

import (
	"context"
	"encoding/base64"
	"errors"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A PolicyStatus is the bundle in force. Without one the digest is empty.
type PolicyStatus struct {
	Digest      sealed.Digest `json:"digest"`
	Sequence    uint64        `json:"sequence"`
	Previous    sealed.Digest `json:"previous,omitempty"`
	Expires     time.Time     `json:"expires,omitzero"`
	ActivatedAt time.Time     `json:"activated_at,omitzero"`
	KeyIDs      []string      `json:"key_ids"` // that may sign the next one
	// Overlay is the one over the bundle; zero: there is none.
	Overlay sealed.BundleRef `json:"overlay,omitzero"`
	// ShadowRemoved says, of an upload, that the bundle was the shadow until now.
	ShadowRemoved bool `json:"-"`
}

// A PolicyShadow is the bundle on trial: it is asked and logged beside the one in
// force, and decides nothing.
type PolicyShadow struct {
	Digest   sealed.Digest `json:"digest"`
	Sequence uint64        `json:"sequence"`
	Expires  time.Time     `json:"expires"`
	Since    time.Time     `json:"since"`
	By       string        `json:"by"`    // entity that set it
	State    string        `json:"state"` // asked, expired, or unusable
}

// PolicyShadow reads what is on trial; nothing is sealed.ErrNotFound.
func (e *Engine) PolicyShadow(ctx context.Context) (PolicyShadow, error) {
	f, err := e.read(ctx, nil, "policy", "shadow")
	if err != nil {
		return PolicyShadow{}, err
	}
	return f.shadow()
}

// SetPolicyShadow puts a signed bundle on trial, in the place of another one.
func (e *Engine) SetPolicyShadow(ctx context.Context, bundle []byte) (PolicyShadow, error) {
	f, err := e.write(ctx, map[string]any{"bundle": base64.StdEncoding.EncodeToString(bundle)}, "policy", "shadow")
	if err != nil {
		return PolicyShadow{}, err
	}
	return f.shadow()
}

// RemovePolicyShadow ends the trial. Where there is none, nothing happens.
func (e *Engine) RemovePolicyShadow(ctx context.Context) error {
	return e.c.Delete(ctx, e.path("policy", "shadow"))
}

func (f fields) shadow() (PolicyShadow, error) {
	var out PolicyShadow
	var err error
	for name, to := range map[string]*string{"digest": (*string)(&out.Digest), "by": &out.By, "state": &out.State} {
		if *to, err = f.text(name); err != nil {
			return out, err
		}
	}
	for name, to := range map[string]*time.Time{"expires": &out.Expires, "since": &out.Since} {
		text, err := f.text(name)
		if err != nil {
			return out, err
		}
		if *to, err = time.Parse(time.RFC3339, text); err != nil {
			return out, f.malformed(name)
		}
	}
	out.Sequence, err = f.number("sequence")
	return out, err
}

// PolicyStatus reads what bundle is in force. Before any key was configured it
// is sealed.ErrNotFound.
func (e *Engine) PolicyStatus(ctx context.Context) (PolicyStatus, error) {
	f, err := e.read(ctx, nil, "policy")
	if err != nil {
		return PolicyStatus{}, err
	}
	return f.policy()
}

func (f fields) policy() (PolicyStatus, error) {
	var out PolicyStatus
	var err error
	for name, to := range map[string]*sealed.Digest{"digest": &out.Digest, "previous": &out.Previous, "overlay": &out.Overlay.Digest} {
		if *(*string)(to), err = f.text(name); err != nil {
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
	for name, to := range map[string]*uint64{"sequence": &out.Sequence, "overlay_sequence": &out.Overlay.Sequence} {
		if *to, err = f.number(name); err != nil {
			return out, err
		}
	}
	out.KeyIDs, err = f.texts("key_ids")
	return out, err
}

// UploadPolicy puts a signed bundle in force.
func (e *Engine) UploadPolicy(ctx context.Context, bundle []byte) (PolicyStatus, error) {
	f, err := e.write(ctx, map[string]any{"bundle": base64.StdEncoding.EncodeToString(bundle)}, "policy")
	if err != nil {
		return PolicyStatus{}, err
	}
	out, err := f.policy()
	out.ShadowRemoved = f.bool("shadow_removed")
	return out, err
}

// PolicyKeys returns the public keys (PEM, by id) that bundles are verified
// against.
func (e *Engine) PolicyKeys(ctx context.Context) (map[string]string, error) {
	f, err := e.read(ctx, nil, "config", "policy-keys")
	if err != nil {
		return nil, err
	}
	var keys map[string]string
	return keys, f.document("keys", &keys)
}

// A PolicyKeySet is the set of keys that may sign policies: PEM by id.
type PolicyKeySet struct {
	Keys    map[string]string `json:"keys"`
	Version int               `json:"version"` // rises with every change; 0: there is no set yet
}

// PolicyKeySet reads the set; none yet is the zero one.
func (e *Engine) PolicyKeySet(ctx context.Context) (PolicyKeySet, error) {
	f, err := e.read(ctx, nil, "config", "policy-keys")
	if errors.Is(err, sealed.ErrNotFound) {
		return PolicyKeySet{Keys: map[string]string{}}, nil
	}
	if err != nil {
		return PolicyKeySet{}, err
	}
	var out PolicyKeySet
	if err := f.document("keys", &out.Keys); err != nil {
		return out, err
	}
	out.Version, err = f.int("version")
	return out, err
}

// WritePolicyKeys replaces the set. A set with a key that was not there wants sign,
// which returns a signature of the message by a key that is, and its id
// (sealed.PolicyKeysMessage); with a nil sign it waits for a second person, which is
// a *ProposedError. To sign, the token has to read the mount's configuration.
func (e *Engine) WritePolicyKeys(ctx context.Context, next PolicyKeySet, sign func(message []byte) (id string, signature []byte, err error)) (version int, err error) {
	doc, err := encode("policy keys", next.Keys)
	if err != nil {
		return 0, err
	}
	data := map[string]any{"keys": doc}
	if sign != nil {
		cfg, err := e.read(ctx, nil, "config")
		if err != nil {
			return 0, err
		}
		tenant, err := cfg.text("tenant")
		if err != nil {
			return 0, err
		}
		id, sig, err := sign(sealed.PolicyKeysMessage(sealed.Name(tenant), next.Version+1, doc))
		if err != nil {
			return 0, err
		}
		data["signed_by"], data["signature"] = id, base64.StdEncoding.EncodeToString(sig)
	}
	f, err := e.write(ctx, data, "config", "policy-keys")
	if err == nil {
		err = f.proposed()
	}
	if err != nil {
		return 0, err
	}
	return f.int("version")
}

// Decide asks the bundle in force about an input, without any effect.
func (e *Engine) Decide(ctx context.Context, in sealed.Input) (sealed.Decision, error) {
	return e.decide(ctx, "authz", in)
}

// DecideApproval asks the bundle in force whether a person may vote.
func (e *Engine) DecideApproval(ctx context.Context, in sealed.ApprovalInput) (sealed.Decision, error) {
	return e.decide(ctx, "approval", in)
}

func (e *Engine) decide(ctx context.Context, question string, in any) (sealed.Decision, error) {
	doc, err := encode("input", in)
	if err != nil {
		return sealed.Decision{}, err
	}
	f, err := e.write(ctx, map[string]any{"question": question, "input": doc}, "policy", "decide")
	if err != nil {
		return sealed.Decision{}, err
	}
	text, err := f.text("decision")
	if err != nil {
		return sealed.Decision{}, err
	}
	return sealed.ParseDecision([]byte(text))
}
