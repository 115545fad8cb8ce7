package vaultplugin

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// maxStoredRecord keeps the row below raft's limit of 1 MiB for an entry.
const maxStoredRecord = 768 << 10

// recordRow is the stored record of a run.
type recordRow struct {
	Envelope string `json:"envelope"` // DSSE
	SHA256   string `json:"sha256"`
}

// pathFinish is the end of a run, the head of the log, and the record.
func (b *backend) pathFinish() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      runPattern + "/finish$",
			DisplayAttrs: display("finish"),
			Fields:       requestField(),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Finish a run with its record", b.finishRun),
			},
			HelpSynopsis:    "Hand in the signed record and end the run.",
			HelpDescription: "The record has to be signed by the run key and to be about this run. Every grant dies; sources that can revoke are called before the answer, at most 3 seconds each.",
		},
		{
			Pattern:      runPattern + "/head$",
			DisplayAttrs: display("head"),
			Fields:       requestField(),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Read the head of the log", b.readHead),
			},
			HelpSynopsis:    "The newest checkpoint, and the proof that it continues the one seen before.",
			HelpDescription: "For init, which may read nothing else of the log.",
		},
		{
			Pattern:      runPattern + "/record$",
			DisplayAttrs: display("record"),
			Fields:       runFields(nil),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.op("Read the record of a run", b.readRecord),
			},
			HelpSynopsis:    "Read the signed record of a finished run.",
			HelpDescription: "A DSSE envelope around an in-toto statement; verify it offline against the log.",
		},
	}
}

func (b *backend) finishRun(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	var fr sealed.FinishRequest
	r, err := b.openRunCall(ctx, req, d, untilOver, &fr, func() (sealed.RunID, string) { return fr.Run, fr.Path })
	if err != nil {
		return nil, err
	}
	if len(fr.Record) > maxStoredRecord {
		return nil, invalid("record", "larger than 768 KiB")
	}
	envelope := []byte(fr.Record)
	if err := b.checkRecord(ctx, req.Storage, r, envelope); err != nil {
		return nil, err
	}
	head, err := b.endWithRecord(ctx, req.Storage, r.ID, envelope, fr.Exit)
	if err != nil {
		return nil, err
	}
	b.worker.settle(ctx, req.Storage, r.ID)
	return map[string]any{"state": sealed.RunFinished, "checkpoint": head}, nil
}

// checkRecord refuses a record that is not by this run or not about it. If a
// redacted input was handed in, the record has to name it. It may name one that
// is not here: then handing it in failed, and the run with it.
func (b *backend) checkRecord(ctx context.Context, s logical.Storage, r runRow, envelope []byte) error {
	key, err := parseRunKey(r.Claim.RunKey)
	if err != nil {
		return err
	}
	stmt, err := audit.OpenRecord(envelope, ed25519.PublicKey(key))
	if err != nil {
		return invalid("record", "is not a record signed by the run key")
	}
	input, _, err := readInput(ctx, s, r.ID)
	if err != nil {
		return err
	}
	p := stmt.Predicate
	for _, c := range []check{
		{"redacted_input", input.Digest == "" || p.RedactedInput == string(input.Digest)},
		{"run", p.Run == string(r.ID)},
		{"tenant", p.Tenant == string(r.m.Tenant)},
		{"spiffe_id", p.SPIFFEID == r.Claim.SPIFFEID},
		{"isolation", p.Isolation == r.Claim.Isolation},
		{"assurance", p.Assurance == sealed.AssuranceAttested},
		{"agent", p.Agent.Name == string(r.m.Agent.Name) && p.Agent.DefinitionDigest == string(r.m.Agent.DefinitionDigest) && p.Agent.ExeDigest == r.Claim.ExeDigest},
		{"manifest_digest", p.ManifestDigest == string(r.ManifestDigest)},
		{"bundle", p.Bundle.Digest == string(r.m.Bundle.Digest) && p.Bundle.Sequence == r.m.Bundle.Sequence},
	} {
		if !c.ok {
			return invalid("record."+c.what, "is not that of the run")
		}
	}
	return nil
}

// endWithRecord stores the record, logs its digest and ends the run. The
// record comes first: an entry never names a record that is not there.
func (b *backend) endWithRecord(ctx context.Context, s logical.Storage, id sealed.RunID, envelope []byte, exit int) (head string, err error) {
	defer b.lockRun(id)()
	r, err := b.run(ctx, s, id)
	if err != nil {
		return "", err
	}
	ended, err := r.to(sealed.RunFinished, b.now().UTC(), "run", "")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(envelope)
	row := recordRow{Envelope: string(envelope), SHA256: hex.EncodeToString(sum[:])}
	if err := put(ctx, s, storeRecords+string(id), row); err != nil {
		return "", unavailable(err)
	}
	receipts, err := b.record(ctx, s, audit.Event{Type: audit.TypeFinished, Run: string(id), Essential: true, Body: map[string]any{
		"record_sha256": row.SHA256, "exit": exit, "was": r.State,
	}})
	if err != nil {
		return "", err
	}
	return string(receipts[0].Head), b.saveRun(ctx, s, ended)
}

func (b *backend) readRecord(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	id, err := sealed.ParseRunID(text(d, "run"))
	if err != nil {
		return nil, err
	}
	r, runErr := b.run(ctx, req.Storage, id)
	if runErr != nil && !isNotFound(runErr) {
		return nil, runErr
	}
	var row recordRow
	ok, err := get(ctx, req.Storage, storeRecords+string(id), &row)
	switch {
	case err != nil:
		return nil, err
	case runErr != nil && !ok:
		return nil, errRefused
	case runErr != nil: // the run was pruned, and had finished: its record stays
	case !ok || r.State != sealed.RunFinished:
		return nil, nil // an envelope without its entry is of a finish that failed
	}
	return map[string]any{"record": row.Envelope, "sha256": row.SHA256}, nil
}

func (b *backend) readHead(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	var hr sealed.HeadRequest
	if _, err := b.openRunCall(ctx, req, d, untilOver, &hr, func() (sealed.RunID, string) { return hr.Run, hr.Path }); err != nil {
		return nil, err
	}
	l, err := b.auditLog(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	keys, err := b.engineKeys(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	head, err := l.Checkpoint(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	verifier, err := note.NewVerifier(keys.logVerifier)
	if err != nil {
		return nil, fmt.Errorf("reading log key: %w", err)
	}
	cp, err := audit.OpenCheckpoint(head, verifier)
	if err != nil {
		return nil, fmt.Errorf("reading head of the log: %w", err)
	}
	if hr.OldSize < 0 || uint64(hr.OldSize) > cp.Size {
		return nil, invalid("old_size", "is larger than the log")
	}
	proof, err := l.ConsistencyProof(ctx, uint64(hr.OldSize), cp.Size)
	if err != nil {
		return nil, unavailable(err)
	}
	a := sealed.HeadAnswer{Checkpoint: string(head), Proof: []string{}}
	for _, h := range proof {
		a.Proof = append(a.Proof, base64.StdEncoding.EncodeToString(h[:]))
	}
	return b.answer(ctx, req.Storage, a)
}
