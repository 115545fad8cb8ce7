package vaultclient

import (
	"context"
	"fmt"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// An ApprovalSummary is one approval in a list. It is not what a person says
// yes to: that is the object of an Approval.
type ApprovalSummary struct {
	ID        sealed.ApprovalID `json:"id"`
	State     string            `json:"state"`
	Run       sealed.RunID      `json:"run"`
	Key       sealed.KeyName    `json:"key"`
	Risk      string            `json:"risk"`
	Requester string            `json:"requester"`
	Agent     sealed.Name       `json:"agent"`
	Votes     int               `json:"votes"`
	Quorum    int               `json:"quorum"`
	ExpiresAt time.Time         `json:"expires_at"`
}

// An Approval is a view whose object was found to have its digest and to be
// about the id that was asked for.
type Approval struct {
	sealed.ApprovalView
	Decoded sealed.ApprovalObject `json:"-"`
	Raw     string                `json:"-"` // the view as the engine sent it
}

// Approvals lists the approvals of live runs, newest first; state narrows.
func (e *Engine) Approvals(ctx context.Context, state string) ([]ApprovalSummary, error) {
	name := func(a *ApprovalSummary, id string) error { a.ID = sealed.ApprovalID(id); return nil }
	return summaries(ctx, e, map[string]string{"state": state}, name, "approvals")
}

// Approval reads one approval.
func (e *Engine) Approval(ctx context.Context, id sealed.ApprovalID) (Approval, error) {
	if err := segment("approval", string(id)); err != nil {
		return Approval{}, err
	}
	f, err := e.read(ctx, nil, "approvals", string(id))
	if err != nil {
		return Approval{}, err
	}
	return f.approval(id)
}

// Approve says yes to the object that has this digest.
func (e *Engine) Approve(ctx context.Context, id sealed.ApprovalID, digest sealed.Digest) (Approval, error) {
	return e.vote(ctx, id, digest, "approve")
}

// Deny says no, which is final, to the object that has this digest.
func (e *Engine) Deny(ctx context.Context, id sealed.ApprovalID, digest sealed.Digest) (Approval, error) {
	return e.vote(ctx, id, digest, "deny")
}

func (e *Engine) vote(ctx context.Context, id sealed.ApprovalID, digest sealed.Digest, vote string) (Approval, error) {
	if err := segment("approval", string(id)); err != nil {
		return Approval{}, err
	}
	f, err := e.write(ctx, map[string]any{"digest": string(digest)}, "approvals", string(id), vote)
	if err != nil {
		return Approval{}, err
	}
	return f.approval(id)
}

func (f fields) approval(id sealed.ApprovalID) (Approval, error) {
	var a Approval
	if err := f.document("approval", &a.ApprovalView); err != nil {
		return a, err
	}
	if sealed.DigestOf(sealed.DomainApproval, a.Object) != a.Digest {
		return a, fmt.Errorf("reading answer of %s: the object does not have its digest: %w", f.path, sealed.ErrInvalid)
	}
	if err := sealed.Decode(a.Object, maxField, &a.Decoded); err != nil {
		return a, fmt.Errorf("reading answer of %s: %w", f.path, err)
	}
	if a.Decoded.ID != id {
		return a, fmt.Errorf("reading answer of %s: the object is another approval's: %w", f.path, sealed.ErrInvalid)
	}
	var err error
	a.Raw, err = f.text("approval")
	return a, err
}
