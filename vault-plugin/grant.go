package vaultplugin

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// States of a grant, in order.
const (
	grantIntent    = "intent"    // durable before anything is minted
	grantReturned  = "returned"  // minted, sealed to the run, handed to Vault
	grantConfirmed = "confirmed" // init has named its lease
	grantDead      = "dead"
)

// Outcomes of a dead grant.
const (
	outcomeEnded       = "run_ended"
	outcomeRevoked     = "revoked"
	outcomeLease       = "lease_ended"
	outcomeUnconfirmed = "unconfirmed"
	outcomeFailed      = "failed"
	outcomeCrashed     = "crashed" // an intent of a process that is gone
)

// A grantRow is one issued credential. It holds no value: Ciphertext is for
// the run's HPKE key, Handle names the credential at its source and is not
// secret. A grant made under an approval has the approval's id, so that the
// one write of its intent is also what consumes the approval: there is no
// instant at which one is stored without the other.
//
// A row begins as the attachment of its entry in the log; see writeIntent. It is
// stored under its own key when it first changes, or before the log folds the
// entry, and from then on the attachment counts for nothing.
type grantRow struct {
	ID          sealed.GrantID       `json:"id"`
	Run         sealed.RunID         `json:"run"`
	Key         sealed.KeyName       `json:"key"`
	Idempotency string               `json:"idempotency"`
	Approval    sealed.ApprovalID    `json:"approval,omitempty"`
	Profile     sealed.ProfileName   `json:"profile"`
	Source      sealed.Name          `json:"source"`
	Ref         sealed.KeyRef        `json:"ref"`
	Revocable   bool                 `json:"revocable"`           // the source can un-issue it
	Renewable   bool                 `json:"renewable,omitempty"` // the source has to renew it too
	Delivery    sealed.Delivery      `json:"delivery"`
	Bindings    []sealed.Binding     `json:"bindings,omitempty"`
	AllowWeak   bool                 `json:"allow_weak,omitempty"`
	TTL         sealed.Duration      `json:"ttl"`
	Ends        time.Time            `json:"ends"` // no renewal goes beyond
	State       string               `json:"state"`
	Outcome     string               `json:"outcome,omitempty"`
	Handle      string               `json:"handle,omitempty"`
	Version     sealed.SourceVersion `json:"version,omitempty"` // of the value at its source
	Ciphertext  string               `json:"ciphertext,omitempty"`
	Attempt     int                  `json:"attempt"` // of answering; only the newest lease counts
	Lease       string               `json:"lease,omitempty"`
	Epoch       uint64               `json:"epoch"`
	CreatedAt   time.Time            `json:"created_at"`
	ChangedAt   time.Time            `json:"changed_at"`
	Undone      bool                 `json:"undone,omitempty"` // revoked at the source
}

// A grantSummary is what stays of a grant in the row of an ended run.
type grantSummary struct {
	ID        sealed.GrantID       `json:"id"`
	Key       sealed.KeyName       `json:"key"`
	State     string               `json:"state"`
	Outcome   string               `json:"outcome,omitempty"`
	Delivery  sealed.Delivery      `json:"delivery"`
	Approval  sealed.ApprovalID    `json:"approval,omitempty"`
	Version   sealed.SourceVersion `json:"version,omitempty"`
	CreatedAt time.Time            `json:"created_at"`
	ChangedAt time.Time            `json:"changed_at"`
}

func (g grantRow) summary() grantSummary {
	return grantSummary{
		ID: g.ID, Key: g.Key, State: g.State, Outcome: g.Outcome, Delivery: g.Delivery,
		Approval: g.Approval, Version: g.Version, CreatedAt: g.CreatedAt, ChangedAt: g.ChangedAt,
	}
}

func (g grantRow) storageKey() string { return storeGrants + string(g.Run) + "/" + string(g.ID) }

// subject is what a revocation could name about the grant.
func (g grantRow) subject(r runRow, trustDomain string) sealed.Subject {
	mk, _ := r.key(g.Key)
	sub := r.keySubject(mk, trustDomain)
	sub.Key, sub.Source = g.Key, g.Source
	sub.Profiles = append(sub.Profiles, g.Profile)
	return sub
}

// held reports whether the run holds, or is about to hold, the credential.
func (g grantRow) held() bool { return g.State != grantDead }

// ended returns the grant as it is when its run is not alive: ending a run is
// one write of the run's row, and that alone kills every grant.
func (g grantRow) ended(r runRow) grantRow {
	if g.held() && !r.alive() {
		g.State, g.Outcome = grantDead, outcomeEnded
		if len(r.History) > 0 {
			g.ChangedAt = r.History[len(r.History)-1].At
		}
	}
	return g
}

// owed reports whether the credential has still to be revoked at its source.
func (g grantRow) owed() bool {
	return g.State == grantDead && g.Revocable && g.Handle != "" && !g.Undone
}

// dead returns the grant killed. The ciphertext goes: nobody may be answered
// with it again.
func (g grantRow) dead(at time.Time, outcome string) grantRow {
	g.State, g.Outcome, g.ChangedAt, g.Ciphertext = grantDead, outcome, at, ""
	return g
}

// saveGrant writes the row in one storage operation; see saveRun.
func (b *backend) saveGrant(ctx context.Context, s logical.Storage, g grantRow) error {
	if err := put(ctx, s, g.storageKey(), g); err != nil {
		b.dropIndex()
		return unavailable(err)
	}
	b.note(func(x *grantIndex) { x.setGrant(g) })
	return nil
}

// keepReturned makes a returned grant known. One of a static source is kept in
// memory only: the source made nothing that would have to be found again, and
// confirm stores it before its value may be used. If this process dies before
// that, what is durable is an intent that nobody is minting, and ends as such;
// whoever asks again does so under a new idempotency key.
func (b *backend) keepReturned(ctx context.Context, s logical.Storage, g grantRow) error {
	if g.Handle == "" && !g.Revocable && b.note(func(x *grantIndex) { x.setRowless(g) }) {
		return nil
	}
	return b.saveGrant(ctx, s, g)
}

// deleteGrant removes the row of a grant that owes nothing.
func (b *backend) deleteGrant(ctx context.Context, s logical.Storage, g grantRow) error {
	if err := s.Delete(ctx, g.storageKey()); err != nil {
		b.dropIndex()
		return unavailable(err)
	}
	b.note(func(x *grantIndex) { x.dropGrant(g) })
	return nil
}

// grant returns a grant and its run, the grant as dead if the run is not
// alive. sealed.ErrNotFound: it is long gone.
func (b *backend) grant(ctx context.Context, s logical.Storage, run sealed.RunID, id sealed.GrantID) (grantRow, runRow, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return grantRow{}, runRow{}, err
	}
	r, ok := x.run(run)
	if !ok {
		return grantRow{}, runRow{}, fmt.Errorf("reading grant: %w", sealed.ErrNotFound)
	}
	g, ok := x.grant(run, id)
	if !ok {
		return grantRow{}, r, fmt.Errorf("reading grant: %w", sealed.ErrNotFound)
	}
	return g.ended(r), r, nil
}
