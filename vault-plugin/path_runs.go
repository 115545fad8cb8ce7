package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

const runPattern = `runs/(?P<run>[0-9A-HJKMNP-TV-Z]{26})`

// pathRuns is what operators do with runs: enqueue, look, close, stop.
func (b *backend) pathRuns() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "runs/?$",
			DisplayAttrs: display("runs"),
			Fields: listFields(map[string]*framework.FieldSchema{
				"spec": {Type: framework.TypeString, Description: "The run wanted, one JSON document: agent, mode, profile, workflow, tags, digests of command, input and workspace, sandbox, idempotency_key."},
			}),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Enqueue a run", b.enqueueRun),
				logical.ListOperation:   b.op("List runs, newest first", b.listRuns),
			},
			HelpSynopsis:    "Enqueue and list runs.",
			HelpDescription: "Enqueue decides every key of the profile once, so that people can approve early, and returns a ticket that one sandbox may use within 60 seconds. The same idempotency_key returns the same run.",
		},
		{
			Pattern:      runPattern + "$",
			DisplayAttrs: display("run"),
			Fields:       runFields(nil),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.op("Read a run", b.readRunPath),
			},
			HelpSynopsis:    "Read a run: manifest, state, history, grants, approvals, redacted command and input.",
			HelpDescription: "Names, digests and states, and what init has handed in as redacted. No value is ever shown.",
		},
		{
			Pattern:      runPattern + "/(?P<act>close|stop)$",
			DisplayAttrs: display("run-act"),
			Fields: runFields(map[string]*framework.FieldSchema{
				"act":    {Type: framework.TypeString, Description: "close or stop."},
				"reason": {Type: framework.TypeString, Description: "Why; at most 512 bytes."},
			}),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Close or stop a run", b.endRunPath),
			},
			HelpSynopsis:    "close: end a run whose init is gone. stop: order a running one to abort.",
			HelpDescription: "Both kill every grant of the run at once. A closed run leaves no record signed by itself, and the log says so.",
		},
	}
}

// runFields adds the field of the path's run id.
func runFields(more map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
	out := map[string]*framework.FieldSchema{"run": {Type: framework.TypeString, Description: "Id of the run."}}
	for name, f := range more {
		out[name] = f
	}
	return out
}

// pathRun returns the run that the path names. Unknown is refused, like forbidden.
func (b *backend) pathRun(ctx context.Context, req *logical.Request, d *framework.FieldData) (runRow, error) {
	id, err := sealed.ParseRunID(text(d, "run"))
	if err != nil {
		return runRow{}, err
	}
	r, err := b.run(ctx, req.Storage, id)
	if err != nil && unlessDenied(err) == nil {
		return runRow{}, errRefused
	}
	return r, err
}

func (b *backend) readRunPath(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	r, err := b.pathRun(ctx, req, d)
	if err != nil {
		return nil, err
	}
	x, err := b.index(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	grants := slices.Clone(r.Grants)
	for _, g := range x.grants(r.ID) {
		grants = append(grants, g.summary())
	}
	approvals := map[sealed.ApprovalID]string{}
	maps.Copy(approvals, r.Approvals)
	for _, a := range x.approvalsOf(r.ID, "") {
		approvals[a.ID] = a.state(x, b.now())
	}
	if r, err = r.whole(); err != nil {
		return nil, err
	}
	out := map[string]any{"run": string(r.ID), "state": r.State, "manifest": r.Manifest, "manifest_digest": string(r.ManifestDigest)}
	if r.Claim != nil {
		out["spiffe_id"], out["isolation"], out["run_key"] = r.Claim.SPIFFEID, r.Claim.Isolation, r.Claim.RunKey
	}
	for name, v := range map[string]any{"history": r.History, "grants": grants, "approvals": approvals} {
		text, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encoding run: %w", err)
		}
		out[name] = string(text)
	}
	return out, showInput(ctx, req.Storage, r.ID, out)
}

func (b *backend) endRunPath(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	who, err := b.requester(ctx, req)
	if err != nil {
		return nil, err
	}
	reason := sealed.CleanReason(text(d, "reason"))
	if reason == "" {
		return nil, invalid("reason", "wants 1 to 512 characters")
	}
	r, err := b.pathRun(ctx, req, d)
	if err != nil {
		return nil, err
	}
	if text(d, "act") == "stop" {
		r, err = b.endRun(ctx, req.Storage, r.ID, sealed.RunAborted, who.EntityID, reason, nil)
	} else {
		r, err = b.endRun(ctx, req.Storage, r.ID, sealed.RunClosed, who.EntityID, reason, nil)
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"run": string(r.ID), "state": r.State}, nil
}

// endEvents are the types of the entries about a run that ends without a
// record of its own.
func endEvent(r runRow, state, by, reason string) audit.Event {
	typ := map[string]string{sealed.RunAborted: "run.aborted", sealed.RunClosed: "run.closed", sealed.RunExpired: "run.expired"}[state]
	body := map[string]any{"by": by, "reason": reason, "was": r.State}
	if state == sealed.RunClosed {
		body["signed"] = false
	}
	return audit.Event{Type: typ, Run: string(r.ID), Essential: true, Body: body}
}

// endRun moves a run to aborted, closed or expired. The one write of its row
// kills every grant; what has to be revoked at a source is left to the
// worker, which is told. still, if given, is asked again under the run's lock.
func (b *backend) endRun(ctx context.Context, s logical.Storage, id sealed.RunID, state, by, reason string, still func(runRow) bool) (runRow, error) {
	defer b.lockRun(id)()
	r, err := b.run(ctx, s, id)
	if err != nil {
		return r, err
	}
	if still != nil && !still(r) {
		return r, nil
	}
	ended, err := r.to(state, b.now().UTC(), by, reason)
	if err != nil {
		return r, err
	}
	if _, err := b.record(ctx, s, endEvent(r, state, by, reason)); err != nil {
		return r, err
	}
	if err := b.saveRun(ctx, s, ended); err != nil {
		return r, err
	}
	b.worker.wake()
	return ended, nil
}
