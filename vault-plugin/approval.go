package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// defaultApprovalTTL holds when a policy does not say how long a yes holds.
const defaultApprovalTTL = 15 * time.Minute

// An approvalRow is an approval as stored. Object is exactly what was shown
// and what every vote names by digest; only State and Votes ever change. That
// it was used is not stored here but is the existence of a grant with its id.
type approvalRow struct {
	ID     sealed.ApprovalID `json:"id"`
	Object string            `json:"object"`
	Digest sealed.Digest     `json:"digest"`
	State  string            `json:"state"`
	Votes  []sealed.Vote     `json:"votes,omitempty"`
	Grant  sealed.GrantID    `json:"grant,omitempty"` // once archived

	object sealed.ApprovalObject
}

// readApproval reads an approval under live or done; a zero ID means that it
// is not there.
func readApproval(ctx context.Context, s logical.Storage, prefix string, id sealed.ApprovalID) (approvalRow, error) {
	var a approvalRow
	ok, err := get(ctx, s, prefix+string(id), &a)
	if err != nil || !ok {
		return approvalRow{}, err
	}
	if sealed.DigestOf(sealed.DomainApproval, []byte(a.Object)) != a.Digest {
		return approvalRow{}, fmt.Errorf("reading approval %s: object does not have its digest", id)
	}
	if err := json.Unmarshal([]byte(a.Object), &a.object); err != nil || a.object.ID != a.ID {
		return approvalRow{}, fmt.Errorf("reading approval %s: malformed object", id)
	}
	return a, nil
}

// approval returns an approval, live or archived.
func (b *backend) approval(ctx context.Context, s logical.Storage, id sealed.ApprovalID) (approvalRow, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return approvalRow{}, err
	}
	if a, ok := x.approval(id); ok {
		return a, nil
	}
	a, err := readApproval(ctx, s, storeApprovalsDone, id)
	if err != nil {
		return a, unavailable(err)
	}
	if a.ID == "" {
		return a, fmt.Errorf("reading approval: %w", sealed.ErrNotFound)
	}
	return a, nil
}

// saveApproval writes the row in one storage operation; see saveRun.
func (b *backend) saveApproval(ctx context.Context, s logical.Storage, a approvalRow) error {
	if err := put(ctx, s, storeApprovalsLive+string(a.ID), a); err != nil {
		b.dropIndex()
		return unavailable(err)
	}
	b.note(func(x *grantIndex) { x.setApproval(a) })
	return nil
}

// state is the approval's state as it is now: consumed as soon as its grant
// exists, void with its run, expired by the clock.
func (a approvalRow) state(x *grantIndex, now time.Time) string {
	if a.Grant != "" {
		return sealed.ApprovalConsumed
	}
	if _, used := x.grant(a.object.Run, sealed.GrantID(a.ID)); used {
		return sealed.ApprovalConsumed
	}
	if a.State != sealed.ApprovalPending && a.State != sealed.ApprovalApproved {
		return a.State
	}
	if r, ok := x.run(a.object.Run); !ok || !r.waiting() {
		return sealed.ApprovalVoid
	}
	if !now.Before(a.object.ExpiresAt) {
		return sealed.ApprovalExpired
	}
	return a.State
}

// newApproval makes the object that people will be shown for one key. d is a
// decision that requires approval. The TTL shown is the longest that the grant
// can live, with all its renewals.
func (b *backend) newApproval(r runRow, by pins, k keyTerms, d sealed.Decision, reason string) (approvalRow, error) {
	now := b.now().UTC()
	id, err := sealed.NewULID(now, b.rand)
	if err != nil {
		return approvalRow{}, fmt.Errorf("making approval: %w", err)
	}
	ttl := time.Duration(d.Obligations.Approvals.TTL) * time.Second
	if ttl <= 0 {
		ttl = defaultApprovalTTL
	}
	isolation := r.m.Sandbox.Isolation
	if r.Claim != nil {
		isolation = r.Claim.Isolation
	}
	o := sealed.ApprovalObject{
		V: 1, ID: sealed.ApprovalID(id), Tenant: r.m.Tenant, Run: r.ID, ManifestDigest: r.ManifestDigest,
		CommandDigest: r.m.CommandDigest, Agent: r.m.Agent.Name, Workflow: r.m.Workflow, Profile: k.key.Origin.Name,
		Key: k.name, SpecDigest: k.digest, Risk: k.spec.Risk, Delivery: k.delivery, Bindings: k.bindings,
		TTL: int64(k.maxTTL / time.Second), Isolation: isolation,
		Requester: r.m.Requester.Name, RequesterID: r.m.Requester.EntityID, Person: r.m.Requester.Person,
		Reason: sealed.CleanReason(reason), Reasons: d.Reasons, Quorum: d.Obligations.Approvals.Quorum,
		Groups: d.Obligations.Approvals.Groups, Bundle: by.bundle, Overlay: by.overlay, CreatedAt: now, ExpiresAt: now.Add(ttl),
	}
	raw, digest, err := o.Marshal()
	if err != nil {
		return approvalRow{}, err
	}
	return approvalRow{ID: o.ID, Object: string(raw), Digest: digest, State: sealed.ApprovalPending, object: o}, nil
}

func requested(a approvalRow) audit.Event {
	body := map[string]any{
		"approval": a.ID, "key": a.object.Key, "digest": a.Digest, "quorum": a.object.Quorum, "groups": a.object.Groups,
		"bundle": a.object.Bundle.Digest, "expires": a.object.ExpiresAt,
	}
	if over := a.object.Overlay.Digest; over != "" {
		body["overlay"] = over
	}
	return audit.Event{Type: "approval.requested", Run: string(a.object.Run), Essential: true, Body: body}
}

// wantsReason reports whether the agent now says why it wants the key, of which
// the object made at enqueue could know nothing. Nobody has voted yet, so a new
// object with the reason takes its place; later reasons change nothing.
func (a approvalRow) wantsReason(reason string) bool {
	return a.object.Reason == "" && len(a.Votes) == 0 && sealed.CleanReason(reason) != ""
}

// matches reports whether what was approved is what is asked for now; what
// names the first difference (E17, E19).
func (a approvalRow) matches(r runRow, by pins, k keyTerms, d sealed.Decision) (what string) {
	o := a.object
	want := d.Obligations.Approvals
	switch {
	case o.Run != r.ID || o.Key != k.name || o.Profile != k.key.Origin.Name:
		return "key"
	case o.ManifestDigest != r.ManifestDigest:
		return "manifest"
	case o.SpecDigest != k.digest:
		return "key_spec"
	case o.Bundle != by.bundle:
		return "bundle"
	case o.Overlay != by.overlay:
		return "overlay"
	case o.Delivery != k.delivery:
		return "delivery"
	case !slices.EqualFunc(o.Bindings, k.bindings, sameBinding):
		return "bindings"
	case o.TTL < int64(k.maxTTL/time.Second):
		return "ttl"
	case o.Quorum < want.Quorum || !sameSet(o.Groups, want.Groups):
		return "approvers"
	case r.Claim != nil && o.Isolation != r.Claim.Isolation:
		return "isolation"
	}
	return ""
}

// standing reports whether the votes still carry the approval: every voter is
// looked up again, has to be the same person, and has to be one whom the
// policy of now lets vote, in one of the groups that it named then (E20). lost
// are the entities whose votes no longer count: disabled or deleted ones are
// among them. A voter who can't be looked up is an error and not a yes.
func (b *backend) standing(ctx context.Context, s logical.Storage, by rules, a approvalRow) (lost []string, ok bool, err error) {
	votes := make([]sealed.Vote, 0, len(a.Votes))
	for _, v := range a.Votes {
		voter, err := b.requester(ctx, &logical.Request{Storage: s, EntityID: v.EntityID})
		if unlessDenied(err) != nil {
			return nil, false, err
		}
		if err != nil || voter.Person != v.Person || b.mayVote(ctx, by, a, voter, votes).Effect != sealed.EffectAllow || !inGroups(a.object.Groups, voter) {
			lost = append(lost, v.EntityID)
			continue
		}
		v.Groups = voter.Groups
		votes = append(votes, v)
	}
	return lost, a.object.Approved(votes), nil
}

func inGroups(groups []string, voter sealed.Requester) bool {
	return slices.ContainsFunc(groups, func(g string) bool { return slices.Contains(voter.Groups, g) })
}

// mayVote asks the policy and its overlay. Their answer can only narrow what vote
// checks itself.
func (b *backend) mayVote(ctx context.Context, by rules, a approvalRow, voter sealed.Requester, votes []sealed.Vote) sealed.Decision {
	in := b.voteInput(a, voter, votes)
	return by.Decide(ctx, sealed.QuestionApproval, in, in.Time)
}

func (b *backend) voteInput(a approvalRow, voter sealed.Requester, votes []sealed.Vote) sealed.ApprovalInput {
	if votes == nil {
		votes = []sealed.Vote{}
	}
	return sealed.ApprovalInput{Time: b.now().UTC(), Tenant: a.object.Tenant, Voter: voter, Approval: json.RawMessage(a.Object), Votes: votes}
}

// ruleOnVote is mayVote for a vote that is being cast, with the events for the log:
// of the bundle, of the overlay where that was asked, and of the shadow.
func (b *backend) ruleOnVote(ctx context.Context, s logical.Storage, by rules, a approvalRow, voter sealed.Requester) (ruling, error) {
	in := b.voteInput(a, voter, a.Votes)
	d := by.base.Decide(ctx, sealed.QuestionApproval, in, in.Time)
	id, err := sealed.NewULID(in.Time, b.rand)
	if err != nil {
		return ruling{}, fmt.Errorf("making decision id: %w", err)
	}
	e, err := decisionlog.NewVote(id, by.Ref(), in, d)
	if err != nil {
		return ruling{}, err
	}
	out := ruling{Decision: d, decided: []decisionlog.Event{e}}
	if by.overlay != nil && d.Effect != sealed.EffectDeny {
		if no, expired := by.expired(in.Time); expired {
			out.Decision = no
		} else if err := b.overlaid(&out, by.overlay, by.overlay.Decide(ctx, sealed.QuestionApproval, in, in.Time), in.Time); err != nil {
			return ruling{}, err
		}
	}
	if trial := b.onTrial(ctx, s, in.Time); trial != nil {
		b.shadowed(ctx, trial, in.Time, []*ruling{&out}, func(ctx context.Context) []sealed.Decision {
			return []sealed.Decision{trial.bundle.Decide(ctx, sealed.QuestionApproval, in, in.Time)}
		})
	}
	return out, nil
}

// approvalFor returns the approval under which a key may be issued now. If
// there is none it makes sure that one is pending and returns it with
// approved false. The caller holds the run's lock.
func (b *backend) approvalFor(ctx context.Context, s logical.Storage, r runRow, by rules, k keyTerms, d sealed.Decision, reason string) (a approvalRow, approved bool, err error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return approvalRow{}, false, err
	}
	for _, a := range x.approvalsOf(r.ID, k.name) {
		state := a.state(x, b.now())
		if state != sealed.ApprovalPending && state != sealed.ApprovalApproved {
			if state == sealed.ApprovalDenied && a.matches(r, by.pins(), k, d) == "" {
				return a, false, fmt.Errorf("a person said no: %w", sealed.ErrDenied)
			}
			continue
		}
		var lost []string
		what := a.matches(r, by.pins(), k, d)
		if what == "" && state == sealed.ApprovalPending {
			if !a.wantsReason(reason) {
				return a, false, nil
			}
			what = "reason"
		}
		if what == "" {
			var ok bool
			if lost, ok, err = b.standing(ctx, s, by, a); err != nil {
				return a, false, err
			}
			if ok {
				return a, true, nil
			}
			what = "approvers"
		}
		if err := b.voidApproval(ctx, s, a, what, lost); err != nil {
			return a, false, err
		}
	}
	a, err = b.newApproval(r, by.pins(), k, d, reason)
	if err != nil {
		return a, false, err
	}
	if _, err := b.record(ctx, s, requested(a)); err != nil {
		return a, false, err
	}
	return a, false, b.saveApproval(ctx, s, a)
}

// voidApproval ends an approval. The entry says what has changed, and lost, the
// entities whose votes no longer count, if that is it.
func (b *backend) voidApproval(ctx context.Context, s logical.Storage, a approvalRow, what string, lost []string) error {
	body := map[string]any{"approval": a.ID, "key": a.object.Key, "what": what}
	if len(lost) > 0 {
		body["entities"] = lost
	}
	if _, err := b.record(ctx, s, audit.Event{Type: "approval.void", Run: string(a.object.Run), Essential: true, Body: body}); err != nil {
		return err
	}
	a.State = sealed.ApprovalVoid
	return b.saveApproval(ctx, s, a)
}

func sameSet(a, b []string) bool {
	in := func(x []string) func(string) bool {
		return func(s string) bool { return !slices.Contains(x, s) }
	}
	return !slices.ContainsFunc(a, in(b)) && !slices.ContainsFunc(b, in(a))
}
