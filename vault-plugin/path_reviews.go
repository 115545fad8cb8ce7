package vaultplugin

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

const reviewPattern = `reviews/(?P<id>[0-9A-HJKMNP-TV-Z]{26})`

// pathReviews is where a second party closes what a use of a credential owes.
func (b *backend) pathReviews() []*framework.Path {
	id := &framework.FieldSchema{Type: framework.TypeString, Description: "Id of the review: that of the grant."}
	return []*framework.Path{
		{
			Pattern:      "reviews/?$",
			DisplayAttrs: display("reviews"),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.op("List open reviews, oldest first", b.listReviews),
			},
			HelpSynopsis:    "List the uses of credentials that somebody has to review.",
			HelpDescription: "A policy obliges to a review, as of a broken glass. Whoever owes an overdue one gets nothing more that owes another.",
		},
		{
			Pattern:      reviewPattern + "$",
			DisplayAttrs: display("review"),
			Fields:       map[string]*framework.FieldSchema{"id": id},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.op("Read an open review", b.readReview),
			},
			HelpSynopsis:    "Read an open review: whose use of what, who agreed, and who may review.",
			HelpDescription: "A closed review is in the log.",
		},
		{
			Pattern:      reviewPattern + "/close$",
			DisplayAttrs: display("review-close"),
			Fields: map[string]*framework.FieldSchema{
				"id":      id,
				"finding": {Type: framework.TypeString, Description: "justified or unjustified."},
				"note":    {Type: framework.TypeString, Description: "Why. It goes to the log."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Close a review with a finding", b.closeReviewPath),
			},
			HelpSynopsis:    "Close a review as a second party.",
			HelpDescription: "Never by the one who used the credential nor by those who agreed to it; the policy names the groups that may. The finding and the note go to the log.",
		},
	}
}

func (b *backend) listReviews(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	open, err := reviews(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	keys, info := []string{}, map[string]any{}
	for _, v := range open {
		keys = append(keys, string(v.ID))
		info[string(v.ID)] = textOf(map[string]any{
			"run": v.Run, "key": v.Key, "agent": v.Agent, "requester": v.Requester, "reasons": v.Reasons,
			"opened_at": v.OpenedAt, "due_at": v.DueAt, "overdue": b.tooLate(v),
		})
	}
	return map[string]any{"keys": keys, "key_info": info}, nil
}

// reviewAt returns the review of the path; errRefused if there is none.
func reviewAt(ctx context.Context, s logical.Storage, d *framework.FieldData) (sealed.Review, error) {
	v, err := review(ctx, s, sealed.GrantID(text(d, "id")))
	if isNotFound(err) {
		return v, errRefused
	}
	return v, err
}

func (b *backend) readReview(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	v, err := reviewAt(ctx, req.Storage, d)
	if err != nil {
		return nil, err
	}
	return map[string]any{"review": textOf(v), "overdue": b.tooLate(v)}, nil
}

func (b *backend) closeReviewPath(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	who, err := b.requester(ctx, req)
	if err != nil {
		return nil, err
	}
	finding, note := text(d, "finding"), sealed.CleanReason(text(d, "note"))
	if finding != sealed.FindingJustified && finding != sealed.FindingUnjustified {
		return nil, invalid("finding", "wants justified or unjustified")
	}
	if note == "" {
		return nil, invalid("note", "wants a text: why")
	}
	v, err := reviewAt(ctx, req.Storage, d)
	if err != nil {
		return nil, err
	}
	defer b.lockRun(v.Run)() // its run never changes, so it is known before the lock
	if v, err = reviewAt(ctx, req.Storage, d); err != nil {
		return nil, err
	}
	if what := b.mayReview(v, who); what != "" {
		if err := b.recordReview(ctx, req.Storage, "review.refused", v, who, map[string]any{"what": what}); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("reviewing: %s: %w", what, sealed.ErrDenied)
	}
	if err := b.closeReview(ctx, req.Storage, v, who, finding, note); err != nil {
		return nil, err
	}
	return map[string]any{"review": string(v.ID), "finding": finding}, nil
}
