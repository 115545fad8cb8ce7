package vaultplugin

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// endGrants kills the grants of a live run that nobody confirmed, that a dead
// process left behind, or whose time is over.
func (b *backend) endGrants(ctx context.Context, s logical.Storage, cfg *engineConfig, run sealed.RunID) error {
	x, err := b.index(ctx, s)
	if err != nil {
		return err
	}
	for _, g := range x.grants(run) {
		if outcome := b.overdue(cfg, g); outcome != "" {
			if err := b.endGrant(ctx, s, cfg, g); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *backend) overdue(cfg *engineConfig, g grantRow) (outcome string) {
	age := b.now().Sub(g.ChangedAt)
	switch {
	case !g.held():
		return ""
	case g.State == grantIntent && !b.mem.minting(g.ID) && age > cfg.UnconfirmedAfter.Std():
		return outcomeCrashed
	case g.State == grantReturned && age > cfg.UnconfirmedAfter.Std():
		return outcomeUnconfirmed
	case !b.now().Before(g.Ends) && !b.mem.minting(g.ID):
		return outcomeLease
	}
	return ""
}

func (b *backend) endGrant(ctx context.Context, s logical.Storage, cfg *engineConfig, g grantRow) error {
	defer b.lockRun(g.Run)()
	g, _, err := b.grant(ctx, s, g.Run, g.ID)
	if err != nil {
		return unlessDenied(err)
	}
	outcome := b.overdue(cfg, g)
	if outcome == "" {
		return nil
	}
	if outcome != outcomeLease {
		if _, err := b.record(ctx, s, audit.Event{Type: "issue.failed", Run: string(g.Run), Essential: true, Body: map[string]any{
			"key": g.Key, "grant": g.ID, "source": g.Source, "what": outcome,
		}}); err != nil {
			return err
		}
	}
	return b.killGrant(ctx, s, g, outcome, nil)
}

// expireApproval stores that an approval has expired or lost its run.
func (b *backend) expireApproval(ctx context.Context, s logical.Storage, id sealed.ApprovalID) error {
	x, err := b.index(ctx, s)
	if err != nil {
		return err
	}
	a, ok := x.approval(id)
	if !ok {
		return nil
	}
	defer b.lockRun(a.object.Run)()
	if a, ok = x.approval(id); !ok {
		return nil
	}
	state := a.state(x, b.now())
	if state == a.State || state == sealed.ApprovalConsumed {
		return nil
	}
	if state == sealed.ApprovalVoid {
		return b.dropOrphan(ctx, s, x, a)
	}
	if state == sealed.ApprovalExpired {
		if _, err := b.record(ctx, s, audit.Event{Type: "approval.expired", Run: string(a.object.Run), Essential: true,
			Body: map[string]any{"approval": a.ID, "key": a.object.Key}}); err != nil {
			return err
		}
	}
	a.State = state
	return b.saveApproval(ctx, s, a)
}

// dropOrphan archives an approval whose run was never stored. A young one may
// belong to a run that is being enqueued just now; any other is archived with
// its run.
func (b *backend) dropOrphan(ctx context.Context, s logical.Storage, x *grantIndex, a approvalRow) error {
	if _, here := x.run(a.object.Run); here || b.now().Sub(a.object.CreatedAt) < ticketTTL {
		return nil
	}
	return b.archiveApproval(ctx, s, x, a)
}

// archive moves a run that is over, and owes nothing, aside. Every step can be
// repeated after a crash:
//
//  1. the run's row with the summaries goes to done/, once;
//  2. its approvals go to done/, while the grants that say "consumed" exist;
//  3. the grants are deleted;
//  4. the live row is deleted.
func (b *backend) archive(ctx context.Context, s logical.Storage, id sealed.RunID) (done bool, err error) {
	defer b.lockRun(id)()
	x, err := b.index(ctx, s)
	if err != nil {
		return false, err
	}
	r, ok := x.run(id)
	if !ok || !r.over() || b.now().Sub(r.endedAt()) < archiveAfter {
		return false, nil
	}
	grants, approvals := x.grants(id), x.approvalsOf(id, "")
	for _, g := range grants {
		if g.owed() || b.mem.minting(g.ID) {
			return false, nil
		}
	}
	if err := b.closeIntents(ctx, s, x, grants); err != nil {
		return false, err
	}
	if err := b.archiveRow(ctx, s, x, r, grants, approvals); err != nil {
		return false, err
	}
	for _, a := range approvals {
		if err := b.archiveApproval(ctx, s, x, a); err != nil {
			return false, err
		}
	}
	for _, g := range grants {
		if err := b.deleteGrant(ctx, s, g); err != nil {
			return false, err
		}
	}
	if err := s.Delete(ctx, storeRunsLive+string(id)); err != nil {
		b.dropIndex()
		return false, unavailable(err)
	}
	b.ended.put(id, viewOf(r))
	b.note(func(x *grantIndex) { x.dropRun(id) })
	b.mem.forget(id)
	return true, nil
}

// closeIntents ends the intents that ended with their run, each with an entry.
func (b *backend) closeIntents(ctx context.Context, s logical.Storage, x *grantIndex, grants []grantRow) error {
	for i, g := range grants {
		if stored, ok := x.grant(g.Run, g.ID); !ok || stored.State != grantIntent {
			continue
		}
		if err := b.killIntent(ctx, s, g, nil); err != nil {
			return err
		}
		grants[i] = g.dead(b.now().UTC(), outcomeCrashed)
	}
	return nil
}

func (r runRow) endedAt() time.Time {
	if len(r.History) == 0 {
		return time.Time{}
	}
	return r.History[len(r.History)-1].At
}

func (b *backend) archiveRow(ctx context.Context, s logical.Storage, x *grantIndex, r runRow, grants []grantRow, approvals []approvalRow) error {
	e, err := s.Get(ctx, storeRunsDone+string(r.ID))
	if err != nil {
		return unavailable(err)
	}
	if e != nil {
		return nil
	}
	for _, g := range grants {
		r.Grants = append(r.Grants, g.summary())
	}
	r.Approvals = map[sealed.ApprovalID]string{}
	for _, a := range approvals {
		r.Approvals[a.ID] = a.state(x, b.now())
	}
	if err := put(ctx, s, storeRunsDone+string(r.ID), r); err != nil {
		return unavailable(err)
	}
	return nil
}

func (b *backend) archiveApproval(ctx context.Context, s logical.Storage, x *grantIndex, a approvalRow) error {
	a.State = a.state(x, b.now())
	if a.State == sealed.ApprovalConsumed {
		a.Grant = sealed.GrantID(a.ID)
	}
	if err := put(ctx, s, storeApprovalsDone+string(a.ID), a); err != nil {
		return unavailable(err)
	}
	if err := s.Delete(ctx, storeApprovalsLive+string(a.ID)); err != nil {
		b.dropIndex()
		return unavailable(err)
	}
	b.note(func(x *grantIndex) { x.dropApproval(a.ID) })
	return nil
}
