package vaultplugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// A change that widens who may reach what waits for a second person (DESIGN §4,
// R10): it is stored as a proposal with its exact text, and takes effect when
// another person confirms the digest of what was shown. What only narrows takes
// effect at once: a stop must not wait.
//
//  1. The path that makes a change works out what it widens, under the lock of
//     what it changes, and asks gate.
//  2. gate lets it through, or stores it as a proposal: nothing is changed then.
//  3. A confirmation calls the same path with the stored text and a consent. gate
//     compares: what is replaced has to be what it was, and nothing may be
//     widened that was not shown.
//
// A crash after the entry of a confirmation and before its effect leaves the
// proposal there, to be confirmed again; a crash after the effect leaves one that
// is stale. One confirmation has one effect at most.

const (
	maxProposal       = 700 << 10 // bytes of an object: base64 in one storage entry stays below raft's 1 MiB
	maxProposals      = 100       // of one kind that wait
	maxProposalsOfOne = 20        // of one kind and entity
	maxWidensLogged   = 100
)

// proposals serializes what is done with proposals. The zero value is ready.
type proposals struct {
	confirming sync.Mutex // one at a time; taken before the lock of what changes
	making     sync.Mutex // makes counting and storing one step; taken last
}

// A proposalRow is stored once and never changed.
type proposalRow struct {
	Object []byte        `json:"object"`
	Digest sealed.Digest `json:"digest"`

	object sealed.ProposalObject
}

// A widening is a change as a second person would be shown it. Without widens it
// needs none.
type widening struct {
	kind, target   string
	version        int
	before, after  string   // texts
	widens         []string // fields of after
	deletes, force bool
}

// A consent is a second person's yes to exactly one proposal. Nil: nobody was asked.
type consent struct {
	proposalRow
	by sealed.Requester
}

// covers refuses a change that is not the one that was shown.
func (c *consent) covers(w widening) error {
	o := c.object
	same := o.Kind == w.kind && o.Target == w.target && o.Version == w.version && o.Delete == w.deletes && o.Force == w.force &&
		o.Content == w.after && o.Base == baseOf(w.before)
	more := slices.ContainsFunc(w.widens, func(f string) bool { return !slices.Contains(o.Widens, f) })
	if !same || more {
		return errStale
	}
	return nil
}

var errStale = fmt.Errorf("confirming: stale: what it would change has changed since; propose it again: %w", sealed.ErrConflict)

// sign says in the entry of a change that two persons made it.
func (c *consent) sign(body map[string]any) map[string]any {
	if c != nil {
		body["proposal"], body["proposed_by"] = c.object.ID, c.object.ProposerID
	}
	return body
}

// author is the entity that wrote the text of a change.
func (c *consent) author(otherwise string) string {
	if c != nil {
		return c.object.ProposerID
	}
	return otherwise
}

func baseOf(before string) sealed.Digest {
	return sealed.DigestOf(sealed.DomainProposalBase, []byte(before))
}

// textOf is the text of a document; that of a value from storage always exists.
func textOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "unencodable"
	}
	return string(b)
}

// gate decides whether a change takes effect now: then answer and error are nil.
// Otherwise the answer is that of the proposal it has become. The caller holds
// the lock of what changes.
func (b *backend) gate(ctx context.Context, req *logical.Request, w widening, yes *consent) (answer map[string]any, err error) {
	if yes != nil {
		return nil, yes.covers(w)
	}
	if len(w.widens) == 0 {
		return nil, nil
	}
	cfg, err := b.config(ctx, req.Storage)
	if err != nil || cfg.SecondPersonOff {
		return nil, err
	}
	return b.propose(ctx, req, cfg, w)
}

// propose stores a proposal. The same one by the same entity is made once.
func (b *backend) propose(ctx context.Context, req *logical.Request, cfg *engineConfig, w widening) (map[string]any, error) {
	who, err := b.requester(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("proposing a change that widens: %w", err)
	}
	if who.Person == "" {
		return nil, fmt.Errorf("proposing a change that widens: Vault does not know which person you are: %w", sealed.ErrDenied)
	}
	b.asked.making.Lock()
	defer b.asked.making.Unlock()
	waiting, err := b.waiting(ctx, req.Storage, w.kind)
	if err != nil {
		return nil, err
	}
	mine := 0
	for _, row := range waiting {
		if row.object.ProposerID != who.EntityID {
			continue
		}
		if (&consent{proposalRow: row}).covers(w) == nil {
			return proposedAnswer(row), nil
		}
		mine++
	}
	if len(waiting) >= maxProposals || mine >= maxProposalsOfOne {
		return nil, fmt.Errorf("proposing: too many proposals wait; have some confirmed or rejected: %w", sealed.ErrConflict)
	}
	row, err := b.newProposal(cfg, w, who)
	if err != nil {
		return nil, err
	}
	if err := b.recordProposal(ctx, req.Storage, "proposal.made", row, b.actor(req), nil); err != nil {
		return nil, err
	}
	if err := put(ctx, req.Storage, row.key(), row); err != nil {
		return nil, err
	}
	return proposedAnswer(row), nil
}

func (b *backend) newProposal(cfg *engineConfig, w widening, who sealed.Requester) (proposalRow, error) {
	now := b.now().UTC()
	id, err := sealed.NewULID(now, b.rand)
	if err != nil {
		return proposalRow{}, fmt.Errorf("making proposal: %w", err)
	}
	o := sealed.ProposalObject{
		V: 1, ID: sealed.ProposalID(id), Tenant: cfg.Tenant, Kind: w.kind, Target: w.target, Version: w.version, Base: baseOf(w.before),
		Delete: w.deletes, Force: w.force, Content: w.after, Widens: w.widens,
		Proposer: sealed.CleanReason(who.Name), ProposerID: who.EntityID, Person: who.Person,
		CreatedAt: now, ExpiresAt: now.Add(cfg.proposalsLast()),
	}
	raw, digest, err := o.Marshal()
	if err != nil {
		return proposalRow{}, err
	}
	if len(raw) > maxProposal {
		return proposalRow{}, fmt.Errorf("making proposal: it would have more than %d bytes: %w", maxProposal, sealed.ErrInvalid)
	}
	return proposalRow{Object: raw, Digest: digest, object: o}, nil
}

func (r proposalRow) key() string {
	return storeProposals + r.object.Kind + "/" + string(r.object.ID)
}

func proposedAnswer(r proposalRow) map[string]any {
	return map[string]any{
		"proposal": string(r.object.ID), "kind": r.object.Kind, "digest": string(r.Digest),
		"widens": r.object.Widens, "expires": r.object.ExpiresAt.Format(time.RFC3339),
	}
}

// recordProposal logs names and digests, never a text.
func (b *backend) recordProposal(ctx context.Context, s logical.Storage, typ string, r proposalRow, by string, more map[string]any) error {
	o := r.object
	body := map[string]any{
		"proposal": o.ID, "kind": o.Kind, "target": o.Target, "digest": r.Digest, "base": o.Base, "by": by,
		"widens": o.Widens[:min(len(o.Widens), maxWidensLogged)], "proposed_by": o.ProposerID,
	}
	for k, v := range more {
		body[k] = v
	}
	_, err := b.record(ctx, s, audit.Event{Type: typ, Body: body, Essential: true})
	return err
}

// readProposal returns a stored proposal whose object has its digest and is the
// one asked for. None is sealed.ErrNotFound.
func readProposal(ctx context.Context, s logical.Storage, kind string, id sealed.ProposalID) (proposalRow, error) {
	key := storeProposals + kind + "/" + string(id)
	var row proposalRow
	ok, err := get(ctx, s, key, &row)
	if err != nil {
		return row, err
	}
	if !ok {
		return row, fmt.Errorf("reading proposal: %w", sealed.ErrNotFound)
	}
	if sealed.DigestOf(sealed.DomainProposal, row.Object) != row.Digest {
		return row, fmt.Errorf("reading %s: the object does not have its digest", key)
	}
	if err := sealed.Decode(row.Object, maxProposal, &row.object); err != nil || row.key() != key {
		return row, fmt.Errorf("decoding stored %s: malformed", key)
	}
	return row, nil
}

// waiting are the proposals of a kind that have not expired, oldest first.
func (b *backend) waiting(ctx context.Context, s logical.Storage, kind string) ([]proposalRow, error) {
	rows, err := proposalsOf(ctx, s, kind)
	return slices.DeleteFunc(rows, func(r proposalRow) bool { return r.expired(b.now()) }), err
}

func (r proposalRow) expired(now time.Time) bool { return !now.Before(r.object.ExpiresAt) }

func proposalsOf(ctx context.Context, s logical.Storage, kind string) ([]proposalRow, error) {
	ids, err := s.List(ctx, storeProposals+kind+"/")
	if err != nil {
		return nil, fmt.Errorf("listing proposals: %w", err)
	}
	slices.Sort(ids)
	var out []proposalRow
	for _, id := range ids {
		row, err := readProposal(ctx, s, kind, sealed.ProposalID(id))
		if isNotFound(err) {
			continue // confirmed or rejected meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, row)
	}
	return out, nil
}

// expireProposals deletes proposals whose time is over, each after its entry.
func (b *backend) expireProposals(ctx context.Context, s logical.Storage) error {
	b.asked.confirming.Lock()
	defer b.asked.confirming.Unlock()
	var failed []error
	for _, kind := range sealed.ProposalKinds {
		rows, err := proposalsOf(ctx, s, kind)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		for _, row := range rows {
			if !row.expired(b.now()) {
				continue
			}
			if err := b.recordProposal(ctx, s, "proposal.expired", row, "engine", nil); err != nil {
				return err
			}
			if err := s.Delete(ctx, row.key()); err != nil {
				return unavailable(fmt.Errorf("deleting proposal: %w", err))
			}
		}
	}
	return errors.Join(failed...)
}

// mayConfirm says which rule a confirmation breaks, or "". The proposer is looked
// up again: it has to be known as the person that it was.
func (b *backend) mayConfirm(ctx context.Context, s logical.Storage, r proposalRow, who sealed.Requester, digest string) (what string, err error) {
	o := r.object
	switch {
	case digest != string(r.Digest):
		return "digest", nil
	case r.expired(b.now()):
		return "expired", nil
	case who.Person == "":
		return "person_unknown", nil
	case who.EntityID == o.ProposerID || samePerson(who.Person, o.Person):
		return "self", nil
	}
	proposer, err := b.requester(ctx, &logical.Request{Storage: s, EntityID: o.ProposerID})
	if err != nil && unlessDenied(err) != nil {
		return "", err
	}
	if err != nil || proposer.Person != o.Person {
		return "proposer", nil
	}
	before, err := b.currentText(ctx, s, o)
	if err != nil {
		return "", err
	}
	if baseOf(before) != o.Base {
		return "stale", nil
	}
	return "", nil
}
