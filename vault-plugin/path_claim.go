package vaultplugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// pathClaim is how sealed-init takes its run.
func (b *backend) pathClaim() []*framework.Path {
	return []*framework.Path{{
		Pattern:      runPattern + "/claim$",
		DisplayAttrs: display("claim"),
		Fields: runFields(map[string]*framework.FieldSchema{
			"claim": {Type: framework.TypeString, Description: "The claim, one JSON document with both signatures.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.op("Claim a run", b.claimRun),
		},
		HelpSynopsis:    "Claim a run, once, with its ticket.",
		HelpDescription: "The claim is signed by the SVID key and by a new run key, and carries the ticket and what init measured of its sandbox. A right ticket is used up whatever the outcome.",
	}}
}

func (b *backend) claimRun(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	var cr sealed.ClaimRequest
	if err := sealed.Decode([]byte(text(d, "claim")), sealed.MaxDocument, &cr); err != nil {
		return nil, err
	}
	var c sealed.Claim
	if err := sealed.Decode([]byte(cr.Payload), sealed.MaxDocument, &c); err != nil {
		return nil, err
	}
	spiffeID, err := b.learnAgent(ctx, req)
	if err != nil {
		return nil, err
	}
	id, err := sealed.ParseRunID(text(d, "run"))
	if err != nil || c.Run != id || req.ClientTokenAccessor == "" {
		return nil, errRefused
	}
	defer b.lockRun(id)()
	r, err := b.run(ctx, req.Storage, id)
	if err != nil {
		if unlessDenied(err) == nil {
			return nil, errRefused
		}
		return nil, err
	}
	if err := b.takeTicket(ctx, req.Storage, r, c.Ticket); err != nil {
		return nil, err
	}
	r.Ticket = ""
	r, warn, err := b.judgeClaim(ctx, req, r, cr, c, spiffeID)
	if err != nil {
		return nil, b.refuseClaim(ctx, req.Storage, r, err)
	}
	return b.bindClaim(ctx, req.Storage, r, c, warn)
}

// takeTicket uses the ticket up, durably, before anything else is looked at:
// from here on this call is the only one that can end with the run bound. So
// at most one run.claimed entry with effect exists, whatever fails between
// the log and the row.
func (b *backend) takeTicket(ctx context.Context, s logical.Storage, r runRow, ticket string) error {
	now := b.now()
	switch {
	case r.State != sealed.RunEnqueued || r.Ticket == "":
		return b.refuseClaim(ctx, s, r, refused("replay"))
	case !ticketMatches(r, ticket):
		return b.refuseClaim(ctx, s, r, refused("ticket"))
	case !now.Before(r.TicketExpires):
		return b.refuseClaim(ctx, s, r, refused("expired"))
	}
	r.Ticket = ""
	return b.saveRun(ctx, s, r)
}

// refuseClaim logs why, and answers nothing but "refused". A failure that is
// not a refusal passes through.
func (b *backend) refuseClaim(ctx context.Context, s logical.Storage, r runRow, cause error) error {
	var no *refusal
	switch {
	case errors.As(cause, &no):
	case errors.Is(cause, sealed.ErrRevoked):
		no = &refusal{what: "revoked"}
	default:
		return cause
	}
	typ := "claim.refused"
	if no.what == "replay" {
		typ = "ticket.replay"
	}
	_, err := b.record(ctx, s, audit.Event{Type: typ, Run: string(r.ID), Body: map[string]any{"what": no.what}})
	if err != nil && !errors.Is(err, audit.ErrBudget) {
		return err
	}
	return errRefused
}

// judgeClaim checks everything that a claim has to show and returns the row
// that it leads to. The row is not stored yet.
func (b *backend) judgeClaim(ctx context.Context, req *logical.Request, r runRow, cr sealed.ClaimRequest, c sealed.Claim, spiffeID string) (runRow, []string, error) {
	s := req.Storage
	cfg, err := b.config(ctx, s)
	if err != nil {
		return r, nil, err
	}
	sub := r.subject(cfg.TrustDomain)
	if sub.SPIFFEID != spiffeID {
		return r, nil, refused("spiffe_id")
	}
	bundle, err := b.trustBundle(ctx, s)
	if err != nil {
		return r, nil, err
	}
	proven, err := proveClaim(cr, c, spiffeID, bundle, b.now())
	if err != nil {
		return r, nil, err
	}
	if err := b.covered(ctx, s, sub); err != nil {
		return r, nil, err
	}
	def, digest, err := b.agent(ctx, s, r.m.Agent.Name)
	if err != nil && unlessDenied(err) != nil {
		return r, nil, err
	}
	if err != nil || digest != r.m.Agent.DefinitionDigest {
		return r, nil, refused("agent_definition")
	}
	if what := measured(r, def, proven); what != "" && !b.mem.off.measure {
		return r, nil, refused(what)
	}
	warn := warnings(r)
	if def.AnyBinary && !slices.Contains(def.Digests, c.Measurement.ExeDigest) {
		warn = append(warn, "any_binary: the agent's executable was recognised by name only")
	}
	if cfg.TrustDomain == sealed.ReservedTrustDomain {
		warn = append(warn, "embedded: the identity comes from the embedded authority of this machine")
	}
	claimed, err := r.to(sealed.RunClaimed, b.now().UTC(), "run", "")
	if err != nil {
		return r, nil, refused("state")
	}
	claimed.Claim = &claimBinding{
		SPIFFEID: spiffeID, EntityID: req.EntityID, Accessor: req.ClientTokenAccessor, RunKey: c.RunKey, HPKEKey: c.HPKEKey,
		Isolation: proven.isolation, Network: networkOf(r), ExeDigest: c.Measurement.ExeDigest,
		TrustDigest: c.Measurement.TrustDigest, At: b.now().UTC(), Warnings: warn,
	}
	return claimed, warn, nil
}

// networkOf is the sandbox's network, narrowed if a policy obliges any usable
// key to go to its bound hosts only.
func networkOf(r runRow) string {
	for _, k := range r.m.Keys {
		if k.Decision.Effect != sealed.EffectDeny && k.Decision.Obligations.Egress == "bound" {
			return sealed.NetworkNone
		}
	}
	return r.m.Sandbox.Network
}

// bindClaim logs the claim, stores the binding and answers.
func (b *backend) bindClaim(ctx context.Context, s logical.Storage, r runRow, c sealed.Claim, warn []string) (map[string]any, error) {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return nil, err
	}
	receipts, err := b.record(ctx, s, audit.Event{Type: audit.TypeClaimed, Run: string(r.ID), Essential: true, Body: map[string]any{
		"run": r.ID, "spiffe_id": r.Claim.SPIFFEID, "run_key": r.Claim.RunKey, "hpke_key_sha256": digestHex([]byte(r.Claim.HPKEKey)),
		"isolation": r.Claim.Isolation, "assurance": sealed.AssuranceAttested, "manifest_digest": r.ManifestDigest,
		"exe_digest": r.Claim.ExeDigest, "trust_digest": r.Claim.TrustDigest, "network": r.Claim.Network,
		"embedded": cfg.TrustDomain == sealed.ReservedTrustDomain, "warnings": warn,
	}})
	if err != nil {
		return nil, err
	}
	if err := b.saveRun(ctx, s, r); err != nil {
		return nil, err
	}
	b.mem.see(r.ID, b.now())
	answer, err := b.claimAnswer(ctx, s, r, c.Nonce, string(receipts[0].Head))
	if err != nil {
		return nil, err
	}
	return b.answer(ctx, s, answer)
}

func (b *backend) claimAnswer(ctx context.Context, s logical.Storage, r runRow, nonce, head string) (sealed.ClaimAnswer, error) {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return sealed.ClaimAnswer{}, err
	}
	def, _, err := b.agent(ctx, s, r.m.Agent.Name)
	if err != nil {
		return sealed.ClaimAnswer{}, err
	}
	epoch, err := b.epoch(ctx, s)
	if err != nil {
		return sealed.ClaimAnswer{}, err
	}
	keys, err := b.keysWithApprovals(ctx, s, r)
	if err != nil {
		return sealed.ClaimAnswer{}, err
	}
	m := r.m
	a := sealed.ClaimAnswer{
		Run: r.ID, Nonce: nonce, Tenant: m.Tenant, Agent: m.Agent.Name, DefinitionDigest: m.Agent.DefinitionDigest, SPIFFEID: r.Claim.SPIFFEID,
		Isolation: r.Claim.Isolation, Assurance: sealed.AssuranceAttested, ManifestDigest: r.ManifestDigest,
		CommandDigest: m.CommandDigest, InputDigest: m.InputDigest, AgentEnv: def.AgentEnv,
		Network: r.Claim.Network, WallTime: m.Sandbox.WallTime, Bundle: m.Bundle, Epoch: epoch, Checkpoint: head,
		Time: b.now().UTC(), FreezeAfter: cfg.FreezeAfter, StopAfter: cfg.StopAfter, Detect: cfg.Detect, Warnings: r.Claim.Warnings,
	}
	if a.Network == sealed.NetworkAllowlist {
		a.Allow = m.Sandbox.Allow
	}
	if len(m.Profiles) > 0 {
		pinned, err := b.effectivePinned(ctx, s, m.Profiles)
		if err != nil {
			return sealed.ClaimAnswer{}, err
		}
		a.Env = pinned.env()
	}
	for _, k := range keys {
		ck := sealed.ClaimKey{Name: k.Name, Effect: k.Decision.Effect, Reasons: k.Decision.Reasons, Delivery: k.Delivery, Approval: k.Approval}
		if ck.Effect != sealed.EffectDeny {
			ck.Bindings = k.Bindings
		}
		a.Keys = append(a.Keys, ck)
	}
	return a, nil
}

// answer signs v with the mount's answer key, for init to obey.
func (b *backend) answer(ctx context.Context, s logical.Storage, v any) (map[string]any, error) {
	keys, err := b.engineKeys(ctx, s)
	if err != nil {
		return nil, err
	}
	signed, err := sealed.Sign(sealed.DomainAnswer, v, keys.answer)
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal(signed)
	if err != nil {
		return nil, fmt.Errorf("encoding answer: %w", err)
	}
	return map[string]any{"answer": string(out)}, nil
}
