package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// A decision may oblige to a review afterwards, as for a broken glass. What is
// owed is stored before the intent: a crash between the two leaves a review of
// nothing, which is closed like any other, and never a use without its review.
// Whoever owes one that is overdue gets nothing more that would owe another.

// maxReviews bounds the open reviews of a mount. Beyond it nothing is issued that
// would owe one.
const maxReviews = 1000

// reasonReview denies to whoever owes an overdue review, or when too many are open.
const reasonReview = "review_overdue"

// reviews returns those that are open, oldest first.
func reviews(ctx context.Context, s logical.Storage) ([]sealed.Review, error) {
	ids, err := s.List(ctx, storeReviews)
	if err != nil {
		return nil, unavailable(fmt.Errorf("listing reviews: %w", err))
	}
	slices.Sort(ids)
	out := make([]sealed.Review, 0, len(ids))
	for _, id := range ids {
		v, err := review(ctx, s, sealed.GrantID(id))
		if isNotFound(err) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// review returns an open review; sealed.ErrNotFound if there is none of this id.
func review(ctx context.Context, s logical.Storage, id sealed.GrantID) (sealed.Review, error) {
	var v sealed.Review
	ok, err := get(ctx, s, storeReviews+string(id), &v)
	switch {
	case err != nil:
		return v, unavailable(err)
	case !ok:
		return v, fmt.Errorf("reading review: %w", sealed.ErrNotFound)
	case v.ID != id || v.Run == "" || len(v.Groups) == 0 || v.DueAt.IsZero():
		return v, fmt.Errorf("decoding stored %s%s: malformed", storeReviews, id)
	}
	return v, nil
}

// mayOwe returns sealed.ErrDenied if the requester of a run may not owe one more.
func (b *backend) mayOwe(ctx context.Context, s logical.Storage, r runRow) error {
	open, err := reviews(ctx, s)
	if err != nil {
		return err
	}
	if len(open) >= maxReviews {
		return fmt.Errorf("issuing: too many reviews are open: %w", sealed.ErrDenied)
	}
	by := r.m.Requester
	for _, v := range open {
		theirs := v.RequesterID == by.EntityID || samePerson(v.Person, by.Person)
		if theirs && b.tooLate(v) {
			return fmt.Errorf("issuing: review %s is overdue: %w", v.ID, sealed.ErrDenied)
		}
	}
	return nil
}

func (b *backend) tooLate(v sealed.Review) bool { return !b.now().Before(v.DueAt) }

// samePerson: two spellings of a name are one person, and no name is nobody's.
func samePerson(a, b string) bool { return a != "" && strings.EqualFold(a, b) }

// oweReview stores what the use of g will owe, if its decision obliges to any. The
// caller holds the run's lock. votes are of the approval that g consumes.
func (b *backend) oweReview(ctx context.Context, s logical.Storage, r runRow, c credsCall, g grantRow, d sealed.Decision, votes []sealed.Vote) (due time.Time, err error) {
	want := d.Obligations.Review
	if want.Within == 0 {
		return due, nil
	}
	if err := c.vouched(); err != nil {
		return due, err
	}
	v := sealed.Review{
		ID: g.ID, Run: r.ID, Key: g.Key, Profile: g.Profile, Agent: r.m.Agent.Name, Workflow: r.m.Workflow,
		Requester: sealed.CleanReason(r.m.Requester.Name), RequesterID: r.m.Requester.EntityID, Person: r.m.Requester.Person,
		Reasons: codes(d), Votes: votes, Groups: want.Groups,
		OpenedAt: g.CreatedAt, DueAt: g.CreatedAt.Add(time.Duration(want.Within) * time.Second),
	}
	if err := put(ctx, s, storeReviews+string(v.ID), v); err != nil {
		return due, unavailable(err)
	}
	return v.DueAt, nil
}

// dropReview takes back what was stored for an intent that is known not to be in
// the log. Of one of which nobody knows, the review stays.
func (b *backend) dropReview(ctx context.Context, s logical.Storage, g grantRow, cause error) {
	if !errors.Is(cause, errBudget) && !errors.Is(cause, audit.ErrGaveUp) && !errors.Is(cause, audit.ErrEvent) {
		return
	}
	if err := s.Delete(ctx, storeReviews+string(g.ID)); err != nil {
		b.Logger().Warn("a review of nothing was not deleted; it can be closed like any other", "review", g.ID, "error", err)
	}
}

// mayReview says which rule a reviewer breaks, or "".
func (b *backend) mayReview(v sealed.Review, who sealed.Requester) (what string) {
	agreed := func(x sealed.Vote) bool {
		return x.Yes && (x.EntityID == who.EntityID || samePerson(x.Person, who.Person))
	}
	switch {
	case b.mem.off.review:
		return ""
	case who.EntityID == v.RequesterID || samePerson(who.Person, v.Person):
		return "self"
	case who.Person == "":
		return "person_unknown"
	case slices.ContainsFunc(v.Votes, agreed):
		return "approver"
	case !inGroups(v.Groups, who):
		return "group"
	}
	return ""
}

// closeReview logs the finding and then forgets the review.
func (b *backend) closeReview(ctx context.Context, s logical.Storage, v sealed.Review, who sealed.Requester, finding, note string) error {
	err := b.recordReview(ctx, s, "review.closed", v, who, map[string]any{
		"finding": finding, "note": note, "overdue": b.tooLate(v), "requester": v.RequesterID, "reasons": v.Reasons, "opened": v.OpenedAt,
	})
	if err != nil {
		return err
	}
	if err := s.Delete(ctx, storeReviews+string(v.ID)); err != nil {
		return unavailable(fmt.Errorf("deleting review: %w", err))
	}
	return nil
}

func (b *backend) recordReview(ctx context.Context, s logical.Storage, typ string, v sealed.Review, who sealed.Requester, more map[string]any) error {
	body := map[string]any{"grant": v.ID, "key": v.Key, "person": who.Person, "entity": who.EntityID, "due": v.DueAt}
	for k, x := range more {
		body[k] = x
	}
	_, err := b.record(ctx, s, audit.Event{Type: typ, Run: string(v.Run), Essential: true, Body: body})
	return err
}
