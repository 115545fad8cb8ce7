package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// reasonDelivery denies a key to an agent that wants it in a weaker way.
const reasonDelivery = "delivery_too_weak"

// pathPreview shows what a run would have. A preview for somebody else is a
// path of its own, so that Vault's policies can tell the two apart.
func (b *backend) pathPreview() []*framework.Path {
	fields := func() map[string]*framework.FieldSchema {
		return map[string]*framework.FieldSchema{
			"run": {Type: framework.TypeString, Description: "The run (JSON): profile, agent, workflow, tags, mode, isolation, network, interactive, delivery."},
		}
	}
	others := fields()
	others["requester"] = &framework.FieldSchema{Type: framework.TypeString, Description: "Entity id of who would ask for the run."}
	const help = "Per key: the level that defines it, the levels that narrow it, the decision with its reasons. Decided by the code of the enqueue, without any effect: nothing is stored or logged, no value is read."
	return []*framework.Path{
		{
			Pattern: "profiles/preview$", DisplayAttrs: display("profile-preview"), Fields: fields(),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Show what a run of the caller would have.", b.previewOwn),
			},
			HelpSynopsis: "Preview the keys of a run.", HelpDescription: help,
		},
		{
			Pattern: "profiles/preview-as$", DisplayAttrs: display("profile-preview-as"), Fields: others,
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Show what a run of somebody would have.", b.previewAs),
			},
			HelpSynopsis: "Preview the keys of somebody's run.", HelpDescription: help,
		},
	}
}

func (b *backend) previewOwn(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	who, err := b.requester(ctx, req)
	if err != nil {
		return nil, err
	}
	return b.previewFor(ctx, req.Storage, who, text(d, "run"))
}

func (b *backend) previewAs(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	who, err := b.requester(ctx, &logical.Request{Storage: req.Storage, EntityID: text(d, "requester")})
	if err != nil && unlessDenied(err) == nil {
		return nil, invalid("requester", "is not the entity id of somebody who could ask for a run")
	}
	if err != nil {
		return nil, err
	}
	return b.previewFor(ctx, req.Storage, who, text(d, "run"))
}

func (b *backend) previewFor(ctx context.Context, s logical.Storage, who sealed.Requester, doc string) (map[string]any, error) {
	want, err := sealed.ParsePreviewRequest([]byte(doc))
	if err != nil {
		return nil, err
	}
	p, err := b.preview(ctx, s, who, want)
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding preview: %w", err)
	}
	return map[string]any{"preview": string(out)}, nil
}

func (b *backend) preview(ctx context.Context, s logical.Storage, who sealed.Requester, want sealed.PreviewRequest) (sealed.Preview, error) {
	now := b.now().UTC()
	id, err := sealed.NewULID(now, b.rand)
	if err != nil {
		return sealed.Preview{}, fmt.Errorf("making run id: %w", err)
	}
	d, err := b.draft(ctx, s, sealed.RunID(id), who, want.Enqueue(), now)
	if err != nil {
		return sealed.Preview{}, err
	}
	m := d.r.m
	p := sealed.Preview{
		Requester: who.EntityID, Profiles: m.Profiles, WorkflowProven: m.WorkflowProven, Bundle: m.Bundle, Overlay: m.Overlay,
		Keys: []sealed.PreviewKey{}, Knobs: map[string]sealed.PreviewKnob{}, Shadowed: d.eff.Shadowed, Warnings: warnings(d.r),
	}
	for name, k := range d.eff.Knobs {
		p.Knobs[name] = sealed.PreviewKnob{Value: k.Value, Origin: k.Origin}
	}
	terms := map[sealed.KeyName]keyTerms{}
	for _, k := range d.keys {
		terms[k.terms.name] = k.terms
	}
	for _, mk := range m.Keys {
		p.Keys = append(p.Keys, previewKey(d.eff, mk, terms[mk.Name], want.Delivery))
	}
	return p, nil
}

// previewKey adds to the manifest's entry what only the cascade and the terms
// know; k is zero for a key that has ended.
func previewKey(eff *effective, mk sealed.ManifestKey, k keyTerms, asks sealed.Delivery) sealed.PreviewKey {
	out := sealed.PreviewKey{ManifestKey: mk, TTL: sealed.Duration(k.ttl), MaxTTL: sealed.Duration(k.maxTTL)}
	if key, ok := eff.Key(mk.Name); ok && key.Ended != "" {
		out.Ended, out.EndedBy = key.Ended, &key.By
		return out
	}
	if asks != "" && !asks.Stronger(mk.Delivery) {
		out.Decision = sealed.Combine(mk.Decision, sealed.Deny(reasonDelivery, "the key is delivered as "+string(mk.Delivery)+" or stronger"))
	}
	return out
}
