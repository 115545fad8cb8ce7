package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// Runs and approvals that can still change lie under live/, the others under
// done/, so that a restart reads what is alive and not the whole history. A
// row is written to done/ before it is deleted from live/; live/ is read first.
const (
	storeRunsLive      = storeRuns + "live/"
	storeRunsDone      = storeRuns + "done/"
	storeApprovalsLive = storeApprovals + "live/"
	storeApprovalsDone = storeApprovals + "done/"
)

// A runRow is a run as stored, in one object. A row is a value: it is copied
// before it is changed, and only saveRun makes a change visible.
type runRow struct {
	ID             sealed.RunID   `json:"id"`
	Manifest       string         `json:"manifest"` // the exact bytes of ManifestDigest; see whole
	ManifestDigest sealed.Digest  `json:"manifest_digest"`
	RequestDigest  string         `json:"request_digest"`        // of the enqueue request: an idempotency key is for one request
	Idempotency    string         `json:"idempotency,omitempty"` // storage key of the idempotency row
	State          string         `json:"state"`
	History        []stateChange  `json:"history"`
	Ticket         sealed.Digest  `json:"ticket,omitempty"` // empty: used up
	TicketExpires  time.Time      `json:"ticket_expires"`
	Claim          *claimBinding  `json:"claim,omitempty"`
	Grants         []grantSummary `json:"grants,omitempty"` // once the run is over and its grant rows are gone

	// Approvals are the final states, once the run is over.
	Approvals map[sealed.ApprovalID]string `json:"approvals,omitempty"`

	m *sealed.Manifest // decoded Manifest; shared, never changed

	decided []decisionlog.Event // at this enqueue, until it is logged; not stored
}

// A stateChange is one line of a run's history.
type stateChange struct {
	State  string    `json:"state"`
	At     time.Time `json:"at"`
	By     string    `json:"by"` // entity id, "run", "engine" or a revocation id
	Reason string    `json:"reason,omitempty"`
}

// A claimBinding ties a run, once, to the init that claimed it.
type claimBinding struct {
	SPIFFEID    string        `json:"spiffe_id"`
	EntityID    string        `json:"entity_id"`
	Accessor    string        `json:"accessor"` // of the token; not a secret
	RunKey      string        `json:"run_key"`
	HPKEKey     string        `json:"hpke_key"`
	Isolation   string        `json:"isolation"`
	Network     string        `json:"network"`
	ExeDigest   string        `json:"exe_digest"`
	TrustDigest sealed.Digest `json:"trust_digest"`
	At          time.Time     `json:"at"`
	Warnings    []string      `json:"warnings,omitempty"`
}

// next lists the states that may follow a state. Those that follow nothing
// are final.
func next(state string) []string {
	switch state {
	case sealed.RunEnqueued:
		return []string{sealed.RunClaimed, sealed.RunExpired, sealed.RunAborted, sealed.RunClosed}
	case sealed.RunClaimed:
		return []string{sealed.RunFinished, sealed.RunClosed, sealed.RunAborted}
	case sealed.RunAborted: // ordered to stop; it may still hand in its record
		return []string{sealed.RunFinished, sealed.RunClosed}
	}
	return nil
}

// over reports whether the run has ended for good.
func (r runRow) over() bool { return len(next(r.State)) == 0 }

// alive reports whether the run may use credentials.
func (r runRow) alive() bool { return r.State == sealed.RunClaimed }

// waiting reports whether somebody may still vote for the run.
func (r runRow) waiting() bool { return r.State == sealed.RunClaimed || r.State == sealed.RunEnqueued }

// to returns the row in a new state.
func (r runRow) to(state string, at time.Time, by, reason string) (runRow, error) {
	if !slices.Contains(next(r.State), state) {
		return r, fmt.Errorf("moving run from %s to %s: %w", r.State, state, sealed.ErrConflict)
	}
	r.State, r.Ticket = state, ""
	r.History = append(slices.Clone(r.History), stateChange{State: state, At: at, By: by, Reason: reason})
	return r, nil
}

// profile is the name that the run was asked for with, or "". Manifests once
// had one profile and did not repeat its name.
func (r runRow) profile() sealed.ProfileName {
	if r.m.Profile == "" && len(r.m.Profiles) > 0 {
		return r.m.Profiles[0].Name
	}
	return r.m.Profile
}

// subject is what a revocation could name about the run as a whole. An
// unclaimed run is already covered by a revocation of the identity it will have.
func (r runRow) subject(trustDomain string) sealed.Subject {
	return sealed.Subject{
		Tenant: r.m.Tenant, Run: r.ID, Profiles: []sealed.ProfileName{r.profile()},
		SPIFFEID: "spiffe://" + trustDomain + sealed.AgentSPIFFEPath(r.m.Tenant, r.m.Agent.Name),
	}
}

// keySubject is what a revocation could name about a key of the run: also every
// profile that had a say about it.
func (r runRow) keySubject(k sealed.ManifestKey, trustDomain string) sealed.Subject {
	sub := r.subject(trustDomain)
	sub.Key, sub.Source = k.Name, k.Source
	sub.Profiles = append(sub.Profiles, k.Origin.Name)
	for _, ref := range k.NarrowedBy {
		sub.Profiles = append(sub.Profiles, ref.Name)
	}
	return sub
}

// key returns the manifest's entry for a key.
func (r runRow) key(name sealed.KeyName) (sealed.ManifestKey, bool) {
	for _, k := range r.m.Keys {
		if k.Name == name {
			return k, true
		}
	}
	return sealed.ManifestKey{}, false
}

// decodeManifest fills in m. The digest is checked so that a damaged row is an
// error, never another manifest (F15).
func (r *runRow) decodeManifest() error {
	if sealed.DigestOf(sealed.DomainManifest, []byte(r.Manifest)) != r.ManifestDigest {
		return fmt.Errorf("reading run %s: manifest does not have its digest", r.ID)
	}
	var m sealed.Manifest
	if err := json.Unmarshal([]byte(r.Manifest), &m); err != nil || m.Run != r.ID {
		return fmt.Errorf("reading run %s: malformed manifest", r.ID)
	}
	r.m = &m
	return nil
}

// whole returns the row with the text of its manifest, which the index does not
// keep. The text is made again from m, and has to have the digest.
func (r runRow) whole() (runRow, error) {
	if r.Manifest != "" {
		return r, nil
	}
	raw, digest, err := sealed.MarshalManifest(*r.m)
	if err != nil {
		return r, err
	}
	if digest != r.ManifestDigest {
		return r, fmt.Errorf("encoding run %s: manifest does not have its digest", r.ID)
	}
	r.Manifest = string(raw)
	return r, nil
}

// MarshalJSON implements json.Marshaler: what is stored is whole.
func (r runRow) MarshalJSON() ([]byte, error) {
	r, err := r.whole()
	if err != nil {
		return nil, err
	}
	type row runRow // without this method
	return json.Marshal(row(r))
}

// readRun reads a run from storage.
func readRun(ctx context.Context, s logical.Storage, id sealed.RunID) (runRow, error) {
	var r runRow
	for _, prefix := range []string{storeRunsLive, storeRunsDone} {
		ok, err := get(ctx, s, prefix+string(id), &r)
		if err != nil {
			return runRow{}, unavailable(err)
		}
		if ok {
			return r, r.decodeManifest()
		}
	}
	return runRow{}, fmt.Errorf("reading run: %w", sealed.ErrNotFound)
}

// run returns a run: from the index while it is alive, else from storage.
func (b *backend) run(ctx context.Context, s logical.Storage, id sealed.RunID) (runRow, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return runRow{}, err
	}
	if r, ok := x.run(id); ok {
		return r, nil
	}
	return readRun(ctx, s, id)
}

// saveRun writes the row in one storage operation. After an error nobody
// knows what is stored, so the index is dropped and read again.
func (b *backend) saveRun(ctx context.Context, s logical.Storage, r runRow) error {
	if err := put(ctx, s, storeRunsLive+string(r.ID), r); err != nil {
		b.dropIndex()
		return unavailable(err)
	}
	b.note(func(x *grantIndex) { x.setRun(r) })
	return nil
}

// unavailable marks an error of storage: nothing was issued.
func unavailable(err error) error { return fmt.Errorf("%w: %w", sealed.ErrUnavailable, err) }

// lockRun serialises what happens to one run, its grants and its approvals.
// It is never held across upstream I/O.
func (b *backend) lockRun(id sealed.RunID) (unlock func()) { return b.locks.lock("run/" + string(id)) }
