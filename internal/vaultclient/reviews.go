package vaultclient

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A ReviewSummary is one open review in a list.
type ReviewSummary struct {
	ID        sealed.GrantID `json:"id"`
	Run       sealed.RunID   `json:"run"`
	Key       sealed.KeyName `json:"key"`
	Agent     sealed.Name    `json:"agent"`
	Requester string         `json:"requester"`
	Reasons   []string       `json:"reasons"`
	OpenedAt  time.Time      `json:"opened_at"`
	DueAt     time.Time      `json:"due_at"`
	Overdue   bool           `json:"overdue"`
}

// Reviews lists the open reviews, oldest first.
func (e *Engine) Reviews(ctx context.Context) ([]ReviewSummary, error) {
	name := func(v *ReviewSummary, id string) error { v.ID = sealed.GrantID(id); return nil }
	return summaries(ctx, e, nil, name, "reviews")
}

// Review reads an open review.
func (e *Engine) Review(ctx context.Context, id sealed.GrantID) (sealed.Review, error) {
	if err := segment("review", string(id)); err != nil {
		return sealed.Review{}, err
	}
	f, err := e.read(ctx, nil, "reviews", string(id))
	if err != nil {
		return sealed.Review{}, err
	}
	var v sealed.Review
	if err := f.document("review", &v); err != nil {
		return v, err
	}
	if v.ID != id {
		return v, fmt.Errorf("reading answer of %s: it is another review: %w", f.path, sealed.ErrInvalid)
	}
	return v, nil
}

// CloseReview closes a review, as a second party, with a finding and why.
func (e *Engine) CloseReview(ctx context.Context, id sealed.GrantID, finding, note string) error {
	if err := segment("review", string(id)); err != nil {
		return err
	}
	f, err := e.write(ctx, map[string]any{"finding": finding, "note": note}, "reviews", string(id), "close")
	if err != nil {
		return err
	}
	closed, err := f.text("review")
	if err == nil && closed != string(id) {
		err = errors.New("it is another review")
	}
	if err != nil {
		return fmt.Errorf("reading answer of %s: %w: %w", f.path, err, sealed.ErrInvalid)
	}
	return nil
}
