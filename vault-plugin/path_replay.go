package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// pathReplay runs again what a run was. See replay.go for what is compared.
func (b *backend) pathReplay() []*framework.Path {
	return []*framework.Path{{
		Pattern:      runPattern + "/replay$",
		DisplayAttrs: display("run-replay"),
		Fields: runFields(map[string]*framework.FieldSchema{
			"as":      {Type: framework.TypeString, Description: "recorded: keys that are not as the run had them are left out. current: as profile, policy and sources are now."},
			"dry_run": {Type: framework.TypeBool, Description: "Only tell how the replay would stand to the run."},
			"spec":    {Type: framework.TypeString, Description: "One JSON document: idempotency_key and the digests of command, input and workspace, which have to be those of the run. Not wanted for a dry run."},
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.op("Replay a run", b.replayPath),
		},
		HelpSynopsis:    "Enqueue a run with the inputs of another one, or tell how it would differ.",
		HelpDescription: "The replay is a new run of the caller, decided anew, that names the old one. The engine does not have command and input: the caller supplies them, and the digests have to match. Per key the answer says whether it was revoked, rotated, changed, or its source is gone; a revoked value is never used.",
	}}
}

func (b *backend) replayPath(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	as, dry := text(d, "as"), d.Get("dry_run").(bool)
	if as != sealed.ReplayRecorded && as != sealed.ReplayCurrent {
		return nil, invalid("as", "wants recorded or current")
	}
	who, err := b.requester(ctx, req)
	if err != nil {
		return nil, err
	}
	old, err := b.pathRun(ctx, req, d)
	if err != nil {
		return nil, err
	}
	if err := b.replayable(ctx, req.Storage, old); err != nil {
		return nil, err
	}
	re, err := b.newReplay(ctx, req.Storage, old, as)
	if err != nil {
		return nil, err
	}
	er := requestOf(old)
	if dry {
		err = b.planReplay(ctx, req.Storage, who, er, re)
	} else {
		err = b.enqueueReplay(ctx, req.Storage, who, er, re, text(d, "spec"))
	}
	if err != nil {
		return nil, err
	}
	re.answer.DryRun = dry
	out, err := json.Marshal(re.answer)
	if err != nil {
		return nil, fmt.Errorf("encoding answer: %w", err)
	}
	return map[string]any{"replay": string(out)}, nil
}

// replayable refuses what a standing revocation covers as a whole: the run that
// went astray, its profile, its identity, the tenant.
func (b *backend) replayable(ctx context.Context, s logical.Storage, old runRow) error {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return err
	}
	return b.covered(ctx, s, old.subject(cfg.TrustDomain))
}

// requestOf is the request that the old run was made by, without its
// idempotency key.
func requestOf(old runRow) sealed.EnqueueRequest {
	m := old.m
	er := sealed.EnqueueRequest{
		Agent: m.Agent.Name, Mode: m.Mode, Profile: old.profile(), Workflow: m.Workflow, CommandDigest: m.CommandDigest,
		InputDigest: m.InputDigest, WorkspaceDigest: m.WorkspaceDigest, Sandbox: m.Sandbox,
	}
	for _, t := range m.Tags {
		er.Tags = append(er.Tags, sealed.Name(t.Name))
	}
	return er
}

// planReplay decides everything and stores nothing.
func (b *backend) planReplay(ctx context.Context, s logical.Storage, who sealed.Requester, er sealed.EnqueueRequest, re *replay) error {
	now := b.now().UTC()
	id, err := sealed.NewULID(now, b.rand)
	if err != nil {
		return fmt.Errorf("making run id: %w", err)
	}
	_, _, err = b.plan(ctx, s, sealed.RunID(id), who, er, now, re)
	return err
}

// enqueueReplay makes the new run. A repeated call returns the same one, with
// how it would stand to the old run now.
func (b *backend) enqueueReplay(ctx context.Context, s logical.Storage, who sealed.Requester, er sealed.EnqueueRequest, re *replay, doc string) error {
	spec, err := sealed.ParseReplaySpec([]byte(doc))
	if err != nil {
		return err
	}
	for _, c := range []check{
		{"command_digest", spec.CommandDigest == er.CommandDigest},
		{"input_digest", spec.InputDigest == er.InputDigest},
		{"workspace_digest", spec.WorkspaceDigest == er.WorkspaceDigest},
	} {
		if !c.ok {
			return invalid(c.what, "is not that of run "+string(re.old.ID))
		}
	}
	er.IdempotencyKey = spec.IdempotencyKey
	request := []byte("replay\x00" + re.answer.As + "\x00" + string(re.old.ID) + "\x00" + doc)
	enq, again, err := b.newRun(ctx, s, who, er, request, re)
	if err == nil && again != "" {
		if enq, err = b.enqueuedAgain(ctx, s, again, digestHex(request)); err == nil {
			err = b.planReplay(ctx, s, who, er, re)
		}
	}
	if err == nil {
		re.answer.Enqueued = &enq
	}
	return err
}
