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
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/cascade"
	"sealed.dev/sealed/internal/decisionlog"
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
	answer, again, err := b.newRun(ctx, req.Storage, who, er, spec, nil)
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
// that exists. re is nil unless the run is a replay.
func (b *backend) newRun(ctx context.Context, s logical.Storage, who sealed.Requester, er sealed.EnqueueRequest, spec []byte, re *replay) (out sealed.Enqueued, again sealed.RunID, err error) {
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
	r, approvals, err := b.plan(ctx, s, row.Run, who, er, now, re)
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
	events := enqueued(r)
	r.decided = nil
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

func enqueued(r runRow) []audit.Event {
	keys := []string{}
	for _, k := range r.m.Keys {
		keys = append(keys, string(k.Name)+"="+string(k.Decision.Effect))
	}
	body := map[string]any{
		"requester": r.m.Requester.EntityID, "person": r.m.Requester.Person, "agent": r.m.Agent.Name,
		"mode": r.m.Mode, "profile": r.profile(), "workflow": r.m.Workflow, "workflow_proven": r.m.WorkflowProven,
		"keys": keys, "manifest_digest": r.ManifestDigest, "command_digest": r.m.CommandDigest,
		"bundle": r.m.Bundle.Digest, "isolation": r.m.Sandbox.Isolation, "epoch": r.m.Epoch,
	}
	if r.m.Overlay.Digest != "" {
		body["overlay"] = r.m.Overlay.Digest
	}
	if r.m.ReplayOf != "" {
		body["replay_of"], body["replay_as"] = r.m.ReplayOf, r.m.ReplayAs
	}
	return withDecided(audit.Event{Type: "run.enqueued", Run: string(r.ID), Essential: true}, body, r.decided)
}

// plan drafts a run and makes it final.
func (b *backend) plan(ctx context.Context, s logical.Storage, id sealed.RunID, who sealed.Requester, er sealed.EnqueueRequest, now time.Time, re *replay) (runRow, []approvalRow, error) {
	d, err := b.draft(ctx, s, id, who, er, now)
	if err == nil && re != nil {
		err = re.compare(ctx, b, s, d.r.m, d.keys)
	}
	if err != nil {
		return runRow{}, nil, err
	}
	return b.seal(d.r, d.keys, who, now)
}

// A runDraft is a run with all its decisions, before its manifest is fixed.
type runDraft struct {
	r    runRow
	eff  *effective
	keys []keyDraft
}

// draft resolves everything that the manifest pins and decides every key. It
// has no effect: a preview is a draft that goes no further.
func (b *backend) draft(ctx context.Context, s logical.Storage, id sealed.RunID, who sealed.Requester, er sealed.EnqueueRequest, now time.Time) (d runDraft, err error) {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return d, err
	}
	_, definition, err := b.agent(ctx, s, er.Agent)
	if err != nil {
		return d, orField(err, "agent", "no such agent definition")
	}
	epoch, err := b.epoch(ctx, s)
	if err != nil {
		return d, err
	}
	m := &sealed.Manifest{
		V: 1, Run: id, Tenant: cfg.Tenant, Requester: who, Mode: er.Mode, Workflow: er.Workflow,
		Agent:         sealed.InputAgent{Name: er.Agent, DefinitionDigest: definition},
		CommandDigest: er.CommandDigest, InputDigest: er.InputDigest, WorkspaceDigest: er.WorkspaceDigest,
		Sandbox: er.Sandbox, Epoch: epoch, CreatedAt: now,
	}
	d.r, d.eff = runRow{ID: id, State: sealed.RunEnqueued, m: m}, &effective{}
	if er.Profile != "" {
		if d.eff, err = b.effectiveNow(ctx, s, er.Profile, who.EntityID); err != nil {
			return d, orField(err, "profile", "no such profile")
		}
		m.Profile, m.Profiles = er.Profile, d.eff.Layers
	}
	proven := cascade.Entitles(d.eff.layers, who.Groups, who.Claims)
	m.WorkflowProven = er.Workflow != "" && proven
	for _, t := range er.Tags {
		m.Tags = append(m.Tags, sealed.InputTag{Name: string(t), Proven: proven})
	}
	if err := b.covered(ctx, s, d.r.subject(cfg.TrustDomain)); err != nil {
		return d, err
	}
	d.keys, err = b.decideKeys(ctx, s, d.r, d.eff, cfg)
	return d, err
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
		r.decided = append(r.decided, k.decided...)
		if k.decision.Effect != sealed.EffectRequireApproval {
			continue
		}
		a, err := b.newApproval(r, pinsOf(r.m), k.terms, k.decision, "")
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
	decided  []decisionlog.Event
}

// decideKeys decides every key into the manifest. Denied keys stay listed with
// their reasons, and so do those that the cascade ended, which have no draft.
// Only jit runs have keys.
func (b *backend) decideKeys(ctx context.Context, s logical.Storage, r runRow, eff *effective, cfg *engineConfig) ([]keyDraft, error) {
	m := r.m
	if len(eff.Keys) > maxKeys {
		return nil, invalid("profile", fmt.Sprintf("has more than %d keys", maxKeys))
	}
	by, err := b.currentRules(ctx, s)
	if err == nil {
		p := by.pins()
		m.Bundle, m.Overlay = p.bundle, p.overlay
	}
	if m.Mode != sealed.ModeJIT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keys := make([]keyTerms, 0, len(eff.Keys))
	for i := range eff.Keys {
		keys = append(keys, termsOf(&eff.Keys[i], eff.digests[eff.Keys[i].Name]))
	}
	decisions, err := b.askAll(ctx, s, by, phaseEnqueue, r, m.Requester, keys, "")
	if err != nil {
		return nil, err
	}
	drafts := make([]keyDraft, 0, len(keys))
	m.Keys = make([]sealed.ManifestKey, 0, len(keys))
	for i, terms := range keys {
		mk := manifestKey(terms, decisions[i].Decision)
		if terms.key.Ended == "" {
			if err := b.covered(ctx, s, r.keySubject(mk, cfg.TrustDomain)); errors.Is(err, sealed.ErrRevoked) {
				mk.Decision = sealed.Combine(mk.Decision, sealed.Deny(sealed.ReasonRevoked, "a revocation covers the key"))
			} else if err != nil {
				return nil, err
			}
			terms = terms.under(mk.Decision.Obligations)
			drafts = append(drafts, keyDraft{terms: terms, decision: mk.Decision, decided: decisions[i].decided})
		}
		mk.Delivery, mk.Bindings = terms.delivery, terms.bindings
		m.Keys = append(m.Keys, mk)
	}
	return drafts, nil
}

func manifestKey(k keyTerms, d sealed.Decision) sealed.ManifestKey {
	return sealed.ManifestKey{
		Name: k.name, Origin: k.key.Origin, NarrowedBy: k.key.NarrowedBy, SpecDigest: k.digest, Source: k.spec.Source,
		Risk: k.spec.Risk, Decision: d,
	}
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
