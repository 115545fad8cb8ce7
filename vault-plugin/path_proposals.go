package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

const (
	proposalsPattern = `proposals/(?P<kind>profile|source|policy-key|trust|config|overlay)`
	proposalPattern  = proposalsPattern + `/(?P<id>[0-9A-HJKMNP-TV-Z]{26})`
)

// pathProposals is where a second person sees what would widen, and says yes or
// no. The kind is in the path, so that Vault's policies say who may, per kind.
func (b *backend) pathProposals() []*framework.Path {
	kind := &framework.FieldSchema{Type: framework.TypeString, Description: "profile, source, policy-key, trust, config or overlay."}
	id := &framework.FieldSchema{Type: framework.TypeString, Description: "Id of the proposal."}
	digest := &framework.FieldSchema{Type: framework.TypeString, Description: "Digest of the object that was shown."}
	return []*framework.Path{
		{
			Pattern:      proposalsPattern + "/?$",
			DisplayAttrs: display("proposals"),
			Fields:       map[string]*framework.FieldSchema{"kind": kind},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.op("List proposals that wait, oldest first", b.proposalList),
			},
			HelpSynopsis:    "List the changes that wait for a second person.",
			HelpDescription: "A change that widens who may reach what takes effect when another person confirms it.",
		},
		{
			Pattern:      proposalPattern + "$",
			DisplayAttrs: display("proposal"),
			Fields:       map[string]*framework.FieldSchema{"kind": kind, "id": id},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.op("Read a proposal", b.proposalRead),
			},
			HelpSynopsis:    "Read a proposal: the exact object, its digest, and what is there now.",
			HelpDescription: "A confirmation names the digest of the object that was shown. The login of a source is never part of it.",
		},
		{
			Pattern:      proposalPattern + "/confirm$",
			DisplayAttrs: display("proposal-confirm"),
			Fields:       map[string]*framework.FieldSchema{"kind": kind, "id": id, "digest": digest},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Confirm a proposal, which then takes effect", b.proposalConfirm),
			},
			HelpSynopsis:    "Confirm a proposal as a second person.",
			HelpDescription: "Never by the person who proposed it, nor by a token that belongs to nobody. If what it replaces has changed, nothing happens.",
		},
		{
			Pattern:      proposalPattern + "/reject$",
			DisplayAttrs: display("proposal-reject"),
			Fields:       map[string]*framework.FieldSchema{"kind": kind, "id": id},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Reject a proposal, or withdraw one's own", b.proposalReject),
			},
			HelpSynopsis:    "Reject a proposal: it is deleted.",
			HelpDescription: "By anybody who may call this path, the proposer too. The same change can be proposed again.",
		},
	}
}

func (b *backend) proposalList(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	rows, err := b.waiting(ctx, req.Storage, text(d, "kind"))
	if err != nil {
		return nil, err
	}
	keys, info := []string{}, map[string]any{}
	for _, r := range rows {
		o := r.object
		keys = append(keys, string(o.ID))
		info[string(o.ID)] = textOf(map[string]any{
			"kind": o.Kind, "target": o.Target, "delete": o.Delete, "widens": len(o.Widens), "proposer": o.Proposer, "digest": r.Digest,
			"created_at": o.CreatedAt, "expires_at": o.ExpiresAt,
		})
	}
	return map[string]any{"keys": keys, "key_info": info}, nil
}

// proposalAt returns the proposal of the path; errRefused if there is none.
func proposalAt(ctx context.Context, s logical.Storage, d *framework.FieldData) (proposalRow, error) {
	row, err := readProposal(ctx, s, text(d, "kind"), sealed.ProposalID(text(d, "id")))
	if isNotFound(err) {
		return row, errRefused
	}
	return row, err
}

func (b *backend) proposalRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	row, err := proposalAt(ctx, req.Storage, d)
	if err != nil {
		return nil, err
	}
	before, err := b.currentText(ctx, req.Storage, row.object)
	if err != nil {
		return nil, err
	}
	view := sealed.ProposalView{Object: row.Object, Digest: row.Digest, State: sealed.ProposalPending, Before: before}
	switch {
	case row.expired(b.now()):
		view.State = sealed.ProposalExpired
	case baseOf(before) != row.object.Base:
		view.State = sealed.ProposalStale
	}
	out, err := json.Marshal(view)
	if err != nil {
		return nil, fmt.Errorf("encoding proposal: %w", err)
	}
	return map[string]any{"proposal": string(out)}, nil
}

// proposalConfirm logs the yes, makes the change, and deletes the proposal.
func (b *backend) proposalConfirm(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	who, err := b.requester(ctx, req)
	if err != nil {
		return nil, err
	}
	b.asked.confirming.Lock()
	defer b.asked.confirming.Unlock()
	row, err := proposalAt(ctx, req.Storage, d)
	if err != nil {
		return nil, err
	}
	what, err := b.mayConfirm(ctx, req.Storage, row, who, text(d, "digest"))
	if err != nil {
		return nil, err
	}
	if what != "" {
		return nil, b.refuseConfirm(ctx, req, row, what)
	}
	if err := b.recordProposal(ctx, req.Storage, "proposal.confirmed", row, who.EntityID, map[string]any{"person": who.Person}); err != nil {
		return nil, err
	}
	done, err := b.applyProposal(ctx, req, &consent{row, who})
	if err != nil {
		return nil, err
	}
	if err := req.Storage.Delete(ctx, row.key()); err != nil {
		b.Logger().Warn("a confirmed proposal was not deleted; it is stale and expires", "id", row.object.ID, "error", err)
	}
	out := map[string]any{"proposal": string(row.object.ID), "kind": row.object.Kind, "target": row.object.Target}
	if version, ok := done["version"]; ok {
		out["version"] = version
	}
	return out, nil
}

// refuseConfirm logs a confirmation that does not count and says which rule it
// broke: whoever confirms is a person who can do better.
func (b *backend) refuseConfirm(ctx context.Context, req *logical.Request, row proposalRow, what string) error {
	if err := b.recordProposal(ctx, req.Storage, "proposal.refused", row, b.actor(req), map[string]any{"what": what}); err != nil {
		return err
	}
	switch what {
	case "stale":
		return errStale
	case "digest", "expired":
		return fmt.Errorf("confirming: %s: %w", what, sealed.ErrConflict)
	}
	return fmt.Errorf("confirming: %s: %w", what, sealed.ErrDenied)
}

func (b *backend) proposalReject(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	b.asked.confirming.Lock()
	defer b.asked.confirming.Unlock()
	row, err := proposalAt(ctx, req.Storage, d)
	if err != nil {
		return nil, err
	}
	if err := b.recordProposal(ctx, req.Storage, "proposal.rejected", row, b.actor(req), nil); err != nil {
		return nil, err
	}
	if err := req.Storage.Delete(ctx, row.key()); err != nil {
		return nil, unavailable(fmt.Errorf("deleting proposal: %w", err))
	}
	return map[string]any{"proposal": string(row.object.ID)}, nil
}

// currentText is the text that a proposal would replace, as it is now.
func (b *backend) currentText(ctx context.Context, s logical.Storage, o sealed.ProposalObject) (string, error) {
	switch o.Kind {
	case sealed.ProposalProfile:
		level, name, _ := strings.Cut(o.Target, "/")
		return b.profileText(ctx, s, level, sealed.ProfileName(name))
	case sealed.ProposalSource:
		return sourceTextNow(ctx, s, sealed.Name(o.Target))
	case sealed.ProposalPolicyKey:
		keys, err := loadPolicyKeys(ctx, s)
		return policyKeysText(keys), err
	case sealed.ProposalTrust:
		return trustTextNow(ctx, s, o.Content)
	case sealed.ProposalConfig:
		cfg := defaultConfig() // as putConfig reads it
		_, err := get(ctx, s, storeConfig, &cfg)
		return textOf(cfg), err
	case sealed.ProposalOverlay:
		row, err := b.policyRow(ctx, s)
		return overlayText(row.Overlay), err
	}
	return "", fmt.Errorf("reading proposal: kind %q is unknown", o.Kind)
}

// applyProposal makes the change that a proposal is, by the path it came from.
func (b *backend) applyProposal(ctx context.Context, req *logical.Request, yes *consent) (map[string]any, error) {
	o := yes.object
	switch o.Kind {
	case sealed.ProposalProfile:
		level, name, _ := strings.Cut(o.Target, "/")
		return b.applyProfile(ctx, req, sealed.ProfileRef{Level: level, Name: sealed.ProfileName(name), Version: o.Version}, yes)
	case sealed.ProposalSource:
		cfg, err := parseSource(sealed.Name(o.Target), o.Content)
		if err != nil {
			return nil, err
		}
		return b.putSource(ctx, req, cfg, nil, yes)
	case sealed.ProposalPolicyKey:
		return b.putPolicyKeys(ctx, req, policyKeySet{doc: o.Content}, yes)
	case sealed.ProposalTrust:
		push, err := parseTrustPush(o.Content)
		if err != nil {
			return nil, err
		}
		return b.pushTrust(ctx, req, push, yes)
	case sealed.ProposalConfig:
		var next engineConfig
		if err := sealed.Decode([]byte(o.Content), maxProposal, &next); err != nil {
			return nil, err
		}
		return b.putConfig(ctx, req, func(cfg *engineConfig) error { *cfg = next; return nil }, yes)
	case sealed.ProposalOverlay:
		return b.removeOverlay(ctx, req, yes)
	}
	return nil, fmt.Errorf("confirming: kind %q is unknown", o.Kind)
}
