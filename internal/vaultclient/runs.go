package vaultclient

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A RunFilter narrows a list of runs. The zero value lists the newest 100.
type RunFilter struct {
	State, Agent, Profile, Workflow, Tag string
	Requester                            string // name, entity id or person
	Since, Until                         time.Time
	After                                sealed.RunID // only older ones, to page on
	Limit                                int          // 0: the engine's default
}

func (f RunFilter) query() map[string]string {
	q := map[string]string{
		"state": f.State, "agent": f.Agent, "profile": f.Profile, "workflow": f.Workflow, "tag": f.Tag,
		"requester": f.Requester, "after": string(f.After),
	}
	for name, at := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !at.IsZero() {
			q[name] = at.UTC().Format(time.RFC3339Nano)
		}
	}
	if f.Limit > 0 {
		q["limit"] = strconv.Itoa(f.Limit)
	}
	return q
}

// A RunSummary is one run in a list.
type RunSummary struct {
	ID        sealed.RunID       `json:"id"`
	State     string             `json:"state"`
	Agent     sealed.Name        `json:"agent"`
	Mode      string             `json:"mode"`
	Profile   sealed.ProfileName `json:"profile,omitempty"`
	Workflow  sealed.Name        `json:"workflow,omitempty"`
	Tags      []sealed.Name      `json:"tags,omitempty"`
	Requester string             `json:"requester"`
	CreatedAt time.Time          `json:"created_at"`
	ReplayOf  sealed.RunID       `json:"replay_of,omitempty"`
}

// A Run is all that the engine shows of one run: names, digests and states, and
// the redacted command and input.
type Run struct {
	ID             sealed.RunID                 `json:"id"`
	State          string                       `json:"state"`
	Manifest       sealed.Manifest              `json:"manifest"` // checked against its digest
	ManifestDigest sealed.Digest                `json:"manifest_digest"`
	SPIFFEID       string                       `json:"spiffe_id,omitempty"` // empty before the claim, as the next two
	Isolation      string                       `json:"isolation,omitempty"`
	RunKey         string                       `json:"run_key,omitempty"`
	History        []RunChange                  `json:"history"`
	Grants         []RunGrant                   `json:"grants"`
	Approvals      map[sealed.ApprovalID]string `json:"approvals"` // state by id
	// Input is the command and input as init redacted them, checked against
	// InputDigest. Nil before the agent has started, without an identity, and
	// once it was erased.
	Input       *sealed.RedactedInput `json:"redacted_input,omitempty"`
	InputDigest sealed.Digest         `json:"redacted_input_digest,omitempty"`
}

// A RunChange is one line of a run's history.
type RunChange struct {
	State  string    `json:"state"`
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
}

// A RunGrant is one credential that a run was issued. It holds no value.
type RunGrant struct {
	ID        sealed.GrantID       `json:"id"`
	Key       sealed.KeyName       `json:"key"`
	State     string               `json:"state"`
	Outcome   string               `json:"outcome,omitempty"`
	Delivery  sealed.Delivery      `json:"delivery"`
	Approval  sealed.ApprovalID    `json:"approval,omitempty"`
	Version   sealed.SourceVersion `json:"version,omitempty"` // of the value at its source
	CreatedAt time.Time            `json:"created_at"`
	ChangedAt time.Time            `json:"changed_at"`
}

// Enqueue asks for a run. Calling it again with the same idempotency key
// returns the same run. The answer holds the run's ticket, which is a secret.
func (e *Engine) Enqueue(ctx context.Context, r sealed.EnqueueRequest) (sealed.Enqueued, error) {
	var out sealed.Enqueued
	spec, err := encode("run", r)
	if err != nil {
		return out, err
	}
	f, err := e.write(ctx, map[string]any{"spec": spec}, "runs")
	if err != nil {
		return out, err
	}
	return out, f.document("enqueued", &out)
}

// Runs lists runs, newest first.
func (e *Engine) Runs(ctx context.Context, filter RunFilter) ([]RunSummary, error) {
	name := func(r *RunSummary, id string) (err error) { r.ID, err = sealed.ParseRunID(id); return err }
	return summaries(ctx, e, filter.query(), name, "runs")
}

// Run reads one run. The engine answers sealed.ErrDenied for one that it does
// not have, as for one that may not be known.
func (e *Engine) Run(ctx context.Context, id sealed.RunID) (Run, error) {
	if err := segment("run", string(id)); err != nil {
		return Run{}, err
	}
	f, err := e.read(ctx, nil, "runs", string(id))
	if err != nil {
		return Run{}, err
	}
	r := Run{ID: id}
	for name, to := range map[string]*string{
		"state": &r.State, "manifest_digest": (*string)(&r.ManifestDigest),
		"spiffe_id": &r.SPIFFEID, "isolation": &r.Isolation, "run_key": &r.RunKey,
	} {
		if *to, err = f.text(name); err != nil {
			return Run{}, err
		}
	}
	if err := f.manifest(&r); err != nil {
		return Run{}, err
	}
	for name, to := range map[string]any{"history": &r.History, "grants": &r.Grants, "approvals": &r.Approvals} {
		if err := f.document(name, to); err != nil {
			return Run{}, err
		}
	}
	return r, f.redactedInput(&r)
}

// redactedInput decodes the redacted command and input, if there is one, after
// comparing its bytes with the digest.
func (f fields) redactedInput(r *Run) error {
	text, err := f.text("redacted_input")
	if err != nil || text == "" {
		return err
	}
	digest, err := f.text("redacted_input_digest")
	if err != nil {
		return err
	}
	if r.InputDigest = sealed.Digest(digest); sealed.DigestOf(sealed.DomainRedacted, []byte(text)) != r.InputDigest {
		return fmt.Errorf("reading answer of %s: the redacted input does not have its digest: %w", f.path, sealed.ErrInvalid)
	}
	in, err := sealed.ParseRedactedInput(text)
	if err != nil {
		return fmt.Errorf("reading answer of %s: %w", f.path, err)
	}
	r.Input = &in
	return nil
}

// manifest decodes the manifest after comparing its bytes with the digest.
func (f fields) manifest(r *Run) error {
	text, err := f.text("manifest")
	if err != nil {
		return err
	}
	if sealed.DigestOf(sealed.DomainManifest, []byte(text)) != r.ManifestDigest {
		return fmt.Errorf("reading answer of %s: the manifest does not have its digest: %w", f.path, sealed.ErrInvalid)
	}
	return f.document("manifest", &r.Manifest)
}

// CloseRun ends a run whose init is gone: there is no record signed by the run.
func (e *Engine) CloseRun(ctx context.Context, id sealed.RunID, reason string) error {
	return e.endRun(ctx, id, "close", reason)
}

// StopRun orders a run to abort. Its grants die at once.
func (e *Engine) StopRun(ctx context.Context, id sealed.RunID, reason string) error {
	return e.endRun(ctx, id, "stop", reason)
}

func (e *Engine) endRun(ctx context.Context, id sealed.RunID, act, reason string) error {
	if err := segment("run", string(id)); err != nil {
		return err
	}
	_, err := e.write(ctx, map[string]any{"reason": reason}, "runs", string(id), act)
	return err
}

// Record returns the DSSE envelope that a finished run left, or
// sealed.ErrNotFound while there is none. It verifies nothing; package audit does.
func (e *Engine) Record(ctx context.Context, id sealed.RunID) ([]byte, error) {
	if err := segment("run", string(id)); err != nil {
		return nil, err
	}
	f, err := e.read(ctx, nil, "runs", string(id), "record")
	if err != nil {
		return nil, err
	}
	record, err := f.text("record")
	if err == nil && record == "" {
		err = f.malformed("record")
	}
	return []byte(record), err
}
