package vaultclient

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A ProposedError is the answer to a change that waits for a second person:
// nothing was changed. It wraps sealed.ErrApprovalRequired.
type ProposedError struct{ sealed.Proposed }

func (e *ProposedError) Error() string {
	return fmt.Sprintf("nothing is changed yet: it would widen, and waits for a second person as proposal %s", e.ID)
}

// Unwrap returns sealed.ErrApprovalRequired.
func (e *ProposedError) Unwrap() error { return sealed.ErrApprovalRequired }

// AsProposed returns the error that says so when the answer to a change is a
// proposal, and nil otherwise. It is for answers of Client.Write; the methods of
// Engine return it themselves.
func AsProposed(path string, answer map[string]any) error { return fields{path, answer}.proposed() }

func (f fields) proposed() error {
	id, err := f.text("proposal")
	if id == "" || err != nil {
		return err
	}
	p := sealed.Proposed{ID: sealed.ProposalID(id), LoginDropped: f.bool("credential_dropped")}
	var expires, digest string
	for name, to := range map[string]*string{"kind": &p.Kind, "digest": &digest, "expires": &expires} {
		if *to, err = f.text(name); err != nil {
			return err
		}
	}
	p.Digest = sealed.Digest(digest)
	if p.Widens, err = f.texts("widens"); err != nil {
		return err
	}
	if p.Expires, err = time.Parse(time.RFC3339, expires); err != nil {
		return f.malformed("expires")
	}
	return &ProposedError{p}
}

// SecondPerson reports whether a change that widens waits for a second person, by
// the mount's configuration, which only its administrators may read.
func (e *Engine) SecondPerson(ctx context.Context) (bool, error) {
	f, err := e.read(ctx, nil, "config")
	return f.bool("second_person"), err
}

// A ProposalSummary is one proposal in a list. It is not what a person confirms:
// that is the object of a Proposal.
type ProposalSummary struct {
	ID        sealed.ProposalID `json:"id"`
	Kind      string            `json:"kind"`
	Target    string            `json:"target"`
	Delete    bool              `json:"delete"`
	Widens    int               `json:"widens"` // how many fields
	Proposer  string            `json:"proposer"`
	Digest    sealed.Digest     `json:"digest"`
	CreatedAt time.Time         `json:"created_at"`
	ExpiresAt time.Time         `json:"expires_at"`
}

// A Proposal is a view whose object was found to have its digest, to be the one
// that was asked for, and to replace Before unless it is stale.
type Proposal struct {
	sealed.ProposalView
	Decoded sealed.ProposalObject `json:"-"`
	Raw     string                `json:"-"` // the view as the engine sent it
}

// Proposals lists the proposals of a kind that wait, oldest first.
func (e *Engine) Proposals(ctx context.Context, kind string) ([]ProposalSummary, error) {
	name := func(p *ProposalSummary, id string) error { p.ID = sealed.ProposalID(id); return nil }
	return summaries(ctx, e, nil, name, "proposals", kind)
}

// Proposal reads a proposal. With an empty kind every kind is asked that the
// token may read.
func (e *Engine) Proposal(ctx context.Context, kind string, id sealed.ProposalID) (Proposal, error) {
	if err := segment("proposal", string(id)); err != nil {
		return Proposal{}, err
	}
	kinds := sealed.ProposalKinds
	if kind != "" {
		kinds = []string{kind}
	}
	var denied error
	for _, kind := range kinds {
		f, err := e.read(ctx, nil, "proposals", kind, string(id))
		if errors.Is(err, sealed.ErrDenied) {
			if denied == nil || !strings.Contains(err.Error(), "permission denied") {
				denied = err // rather what the engine said than what Vault did
			}
			continue
		}
		if err != nil {
			return Proposal{}, err
		}
		return f.asProposal(id, kind)
	}
	return Proposal{}, denied
}

func (f fields) asProposal(id sealed.ProposalID, kind string) (Proposal, error) {
	var p Proposal
	if err := f.document("proposal", &p.ProposalView); err != nil {
		return p, err
	}
	if sealed.DigestOf(sealed.DomainProposal, p.Object) != p.Digest {
		return p, fmt.Errorf("reading answer of %s: the object does not have its digest: %w", f.path, sealed.ErrInvalid)
	}
	if err := sealed.Decode(p.Object, maxField, &p.Decoded); err != nil {
		return p, fmt.Errorf("reading answer of %s: %w", f.path, err)
	}
	if p.Decoded.ID != id || p.Decoded.Kind != kind {
		return p, fmt.Errorf("reading answer of %s: the object is another proposal's: %w", f.path, sealed.ErrInvalid)
	}
	states := []string{sealed.ProposalPending, sealed.ProposalExpired, sealed.ProposalStale}
	if !slices.Contains(states, p.State) || p.State == sealed.ProposalPending && sealed.DigestOf(sealed.DomainProposalBase, []byte(p.Before)) != p.Decoded.Base {
		return p, fmt.Errorf("reading answer of %s: it is not about what is there: %w", f.path, sealed.ErrInvalid)
	}
	var err error
	p.Raw, err = f.text("proposal")
	return p, err
}

// ConfirmProposal says yes to the object that has this digest, as a second
// person. It returns the version that came of it, if it has one.
func (e *Engine) ConfirmProposal(ctx context.Context, kind string, id sealed.ProposalID, digest sealed.Digest) (version int, err error) {
	if err := errors.Join(segment("kind", kind), segment("proposal", string(id))); err != nil {
		return 0, err
	}
	f, err := e.write(ctx, map[string]any{"digest": string(digest)}, "proposals", kind, string(id), "confirm")
	if err != nil {
		return 0, err
	}
	return f.int("version")
}

// RejectProposal deletes a proposal.
func (e *Engine) RejectProposal(ctx context.Context, kind string, id sealed.ProposalID) error {
	if err := errors.Join(segment("kind", kind), segment("proposal", string(id))); err != nil {
		return err
	}
	_, err := e.write(ctx, nil, "proposals", kind, string(id), "reject")
	return err
}
