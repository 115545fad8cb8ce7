package vaultplugin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

const (
	ticketTTL = 60 * time.Second
	maxKeys   = 200 // of a run: its entry and its approvals fit one batch of the log
)

// idempotencyRow names the run of a requester's key. It is written before the
// run, so that a repeated call never makes a second one.
type idempotencyRow struct {
	Run sealed.RunID `json:"run"`
}

// enqueueRun makes a run. Order: the idempotency key claims an id; everything
// is decided; the entry is logged; approvals are stored; the run is stored.
// Only the last makes it exist.
func (b *backend) enqueueRun(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	spec := []byte(text(d, "spec"))
	er, err := sealed.ParseEnqueueRequest(spec)
	if err != nil {
		return nil, err
	}
	who, err := b.requester(ctx, req)
	if err != nil {
		return nil, err
	}
	answer, again, err := b.newRun(ctx, req.Storage, who, er, spec)
	if err == nil && again != "" {
		answer, err = b.enqueuedAgain(ctx, req.Storage, again, digestHex(spec))
	}
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal(answer)
	if err != nil {
		return nil, fmt.Errorf("encoding answer: %w", err)
	}
	return map[string]any{"enqueued": string(out)}, nil
}

func digestHex(data ...[]byte) string {
	h := sha256.New()
	for _, d := range data {
		h.Write(d)
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// newRun stores the run of an idempotency key, or returns the id of the one
// that exists.
func (b *backend) newRun(ctx context.Context, s logical.Storage, who sealed.Requester, er sealed.EnqueueRequest, spec []byte) (out sealed.Enqueued, again sealed.RunID, err error) {
	key := storeIdempotency + digestHex([]byte(who.EntityID), []byte(er.IdempotencyKey))
	defer b.locks.lock(key)()
	var row idempotencyRow
	known, err := get(ctx, s, key, &row)
	if err != nil {
		return out, "", unavailable(err)
	}
	now := b.now().UTC()
	if known {
		if _, err := b.run(ctx, s, row.Run); !errors.Is(err, sealed.ErrNotFound) {
			return out, row.Run, err
		}
	} else {
		id, err := sealed.NewULID(now, b.rand)
		if err != nil {
			return out, "", fmt.Errorf("making run id: %w", err)
		}
		row.Run = sealed.RunID(id)
	}
	r, approvals, err := b.plan(ctx, s, row.Run, who, er, now)
	if err != nil {
		return out, "", err
	}
	r.RequestDigest, r.Idempotency = digestHex(spec), key
	if !known {
		if err := put(ctx, s, key, row); err != nil {
			return out, "", unavailable(err)
		}
	}
	out, err = b.storeNewRun(ctx, s, r, approvals)
	return out, "", err
}

func (b *backend) storeNewRun(ctx context.Context, s logical.Storage, r runRow, approvals []approvalRow) (sealed.Enqueued, error) {
	events := []audit.Event{enqueued(r)}
	for _, a := range approvals {
		events = append(events, requested(a))
	}
	r, ticket, err := b.withTicket(r)
	if err != nil {
		return sealed.Enqueued{}, err
	}
	if _, err := b.record(ctx, s, events...); err != nil {
		return sealed.Enqueued{}, err
	}
	for _, a := range approvals {
		if err := b.saveApproval(ctx, s, a); err != nil {
			return sealed.Enqueued{}, err
		}
	}
	if err := b.saveRun(ctx, s, r); err != nil {
		return sealed.Enqueued{}, err
	}
	return b.enqueuedAnswer(ctx, s, r, ticket)
}

func enqueued(r runRow) audit.Event {
	keys := []string{}
	for _, k := range r.m.Keys {
		keys = append(keys, string(k.Name)+"="+string(k.Decision.Effect))
	}
	return audit.Event{Type: "run.enqueued", Run: string(r.ID), Essential: true, Body: map[string]any{
		"requester": r.m.Requester.EntityID, "person": r.m.Requester.Person, "agent": r.m.Agent.Name,
		"mode": r.m.Mode, "profile": r.profile(), "workflow": r.m.Workflow, "workflow_proven": r.m.WorkflowProven,
		"keys": keys, "manifest_digest": r.ManifestDigest, "command_digest": r.m.CommandDigest,
		"bundle": r.m.Bundle.Digest, "isolation": r.m.Sandbox.Isolation, "epoch": r.m.Epoch,
	}}
}

// plan resolves everything that the manifest pins and decides every key.
func (b *backend) plan(ctx context.Context, s logical.Storage, id sealed.RunID, who sealed.Requester, er sealed.EnqueueRequest, now time.Time) (runRow, []approvalRow, error) {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return runRow{}, nil, err
	}
	_, definition, err := b.agent(ctx, s, er.Agent)
	if err != nil {
		return runRow{}, nil, orField(err, "agent", "no such agent definition")
	}
	epoch, err := b.epoch(ctx, s)
	if err != nil {
		return runRow{}, nil, err
	}
	m := sealed.Manifest{
		V: 1, Run: id, Tenant: cfg.Tenant, Requester: who, Mode: er.Mode, Workflow: er.Workflow,
		Agent:         sealed.InputAgent{Name: er.Agent, DefinitionDigest: definition},
		CommandDigest: er.CommandDigest, InputDigest: er.InputDigest, WorkspaceDigest: er.WorkspaceDigest,
		Sandbox: er.Sandbox, Epoch: epoch, CreatedAt: now,
	}
	r := runRow{ID: id, State: sealed.RunEnqueued, m: &m}
	var profile sealed.Profile
	if er.Profile != "" {
		if profile, err = b.profileByName(ctx, s, er.Profile); err != nil {
			return runRow{}, nil, orField(err, "profile", "no such profile")
		}
		m.Profiles = []sealed.ProfileRef{refOf(profile)}
	}
	proven := profile.Requesters.Match(who.Groups, who.Claims)
	m.WorkflowProven = er.Workflow != "" && proven
	for _, t := range er.Tags {
		m.Tags = append(m.Tags, sealed.InputTag{Name: string(t), Proven: proven})
	}
	if err := b.covered(ctx, s, r.subject(cfg.TrustDomain)); err != nil {
		return runRow{}, nil, err
	}
	drafts, err := b.decideKeys(ctx, s, r, profile, cfg)
	if err != nil {
		return runRow{}, nil, err
	}
	return b.seal(r, drafts, who, now)
}

// seal fixes the manifest and makes the approvals, which name its digest. So the
// manifest can not name them; answers add their ids.
func (b *backend) seal(r runRow, drafts []keyDraft, who sealed.Requester, now time.Time) (runRow, []approvalRow, error) {
	raw, digest, err := sealed.MarshalManifest(*r.m)
	if err != nil {
		return runRow{}, nil, err
	}
	r.Manifest, r.ManifestDigest = string(raw), digest
	r.History = []stateChange{{State: sealed.RunEnqueued, At: now, By: who.EntityID}}
	r.TicketExpires = now.Add(ticketTTL)
	var approvals []approvalRow
	for _, k := range drafts {
		if k.decision.Effect != sealed.EffectRequireApproval {
			continue
		}
		a, err := b.newApproval(r, r.m.Bundle, k.terms, k.decision, "")
		if err != nil {
			return runRow{}, nil, err
		}
		approvals = append(approvals, a)
	}
	return r, approvals, nil
}

// A keyDraft is a key with its decision at enqueue.
type keyDraft struct {
	terms    keyTerms
	decision sealed.Decision
}

// decideKeys decides every key of the profile into the manifest. Denied keys
// stay listed with their reasons. Only jit runs have keys.
func (b *backend) decideKeys(ctx context.Context, s logical.Storage, r runRow, p sealed.Profile, cfg *engineConfig) ([]keyDraft, error) {
	m := r.m
	if len(p.Keys) > maxKeys {
		return nil, invalid("profile", fmt.Sprintf("has more than %d keys", maxKeys))
	}
	bundle, err := b.currentBundle(ctx, s)
	if err == nil {
		m.Bundle = bundle.Ref()
	}
	if m.Mode != sealed.ModeJIT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var drafts []keyDraft
	for _, name := range slices.Sorted(maps.Keys(p.Keys)) {
		terms := termsOf(p, name, p.Keys[name])
		decision, err := b.ask(ctx, s, bundle, phaseEnqueue, r, m.Requester, terms, "")
		if err != nil {
			return nil, err
		}
		sub := r.subject(cfg.TrustDomain)
		sub.Key, sub.Source = name, terms.spec.Source
		if err := b.covered(ctx, s, sub); errors.Is(err, sealed.ErrRevoked) {
			decision = sealed.Combine(decision, sealed.Deny(sealed.ReasonRevoked, "a revocation covers the key"))
		} else if err != nil {
			return nil, err
		}
		terms = terms.under(decision.Obligations)
		drafts = append(drafts, keyDraft{terms: terms, decision: decision})
		m.Keys = append(m.Keys, sealed.ManifestKey{
			Name: name, Origin: refOf(p), SpecDigest: terms.spec.Digest(), Risk: terms.spec.Risk,
			Delivery: terms.delivery, Bindings: terms.bindings, Decision: decision,
		})
	}
	return drafts, nil
}

func refOf(p sealed.Profile) sealed.ProfileRef {
	return sealed.ProfileRef{Level: p.Level, Name: p.Name, Version: p.Version}
}

// orField names the field of a document that does not exist.
func orField(err error, field, reason string) error {
	if errors.Is(err, sealed.ErrNotFound) {
		return invalid(field, reason)
	}
	return err
}

// enqueuedAgain answers a repeated call. It has a fresh ticket while the run
// still waits for one; a ticket that was presented is gone for good.
func (b *backend) enqueuedAgain(ctx context.Context, s logical.Storage, id sealed.RunID, request string) (sealed.Enqueued, error) {
	defer b.lockRun(id)()
	r, err := b.run(ctx, s, id)
	if err != nil {
		return sealed.Enqueued{}, err
	}
	if r.RequestDigest != request {
		return sealed.Enqueued{}, fmt.Errorf("the idempotency key was used for another request: %w", sealed.ErrConflict)
	}
	var ticket string
	if r.State == sealed.RunEnqueued && r.Ticket != "" {
		if r, ticket, err = b.withTicket(r); err != nil {
			return sealed.Enqueued{}, err
		}
		if err := b.saveRun(ctx, s, r); err != nil {
			return sealed.Enqueued{}, err
		}
	}
	return b.enqueuedAnswer(ctx, s, r, ticket)
}

// withTicket returns the row with a new ticket; a run without identity has none.
func (b *backend) withTicket(r runRow) (runRow, string, error) {
	if !identified(r.m.Mode) {
		return r, "", nil
	}
	raw := make([]byte, 32)
	if _, err := io.ReadFull(b.rand, raw); err != nil {
		return r, "", fmt.Errorf("making ticket: %w", err)
	}
	ticket := base64.RawURLEncoding.EncodeToString(raw)
	r.Ticket, r.TicketExpires = sealed.DigestOf(sealed.DomainTicket, []byte(ticket)), b.now().UTC().Add(ticketTTL)
	return r, ticket, nil
}

func (b *backend) enqueuedAnswer(ctx context.Context, s logical.Storage, r runRow, ticket string) (sealed.Enqueued, error) {
	keys, err := b.keysWithApprovals(ctx, s, r)
	return sealed.Enqueued{
		Run: r.ID, Ticket: ticket, TicketExpires: r.TicketExpires, ManifestDigest: r.ManifestDigest,
		Keys: keys, Warnings: warnings(r),
	}, err
}

// keysWithApprovals are the keys of the manifest, each with the newest
// approval that was asked for it.
func (b *backend) keysWithApprovals(ctx context.Context, s logical.Storage, r runRow) ([]sealed.ManifestKey, error) {
	keys := slices.Clone(r.m.Keys)
	x, err := b.index(ctx, s)
	if err != nil {
		return nil, err
	}
	for i := range keys {
		if as := x.approvalsOf(r.ID, keys[i].Name); len(as) > 0 {
			keys[i].Approval = as[0].ID
		}
	}
	return keys, nil
}

// identified reports whether runs of a mode claim an identity.
func identified(mode string) bool { return mode == sealed.ModeIdentity || mode == sealed.ModeJIT }

// warnings are the weaknesses that an operator accepted with this run.
func warnings(r runRow) []string {
	var out []string
	if r.m.Sandbox.Isolation == sealed.IsolationSameUID {
		out = append(out, "isolation same_uid: other processes of the operator's uid can reach the sandbox")
	}
	if r.m.Workflow != "" && !r.m.WorkflowProven {
		out = append(out, "workflow "+string(r.m.Workflow)+" is not proven: the requester may not assert it under this profile")
	}
	for _, k := range r.m.Keys {
		if k.Decision.Effect != sealed.EffectDeny && k.Delivery.GivesValue() {
			out = append(out, "key "+string(k.Name)+" is delivered as "+string(k.Delivery)+": the agent will hold the value")
		}
	}
	return out
}
