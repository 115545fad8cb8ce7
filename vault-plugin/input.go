package vaultplugin

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// storeInputs holds an inputRow per run, apart from the run's row: it can be
// erased alone, and nobody reads it on the way to a credential.
const storeInputs = "input/" // <run>

// Types of the entries about it.
const (
	typeInputRedacted = "input.redacted"
	typeInputErased   = "input.erased"
)

// An inputRow is the redacted command and input that init handed in: a
// sealed.RedactedInput, its exact text. The engine never has the text that it
// was made from.
type inputRow struct {
	Document string        `json:"document"`
	Digest   sealed.Digest `json:"digest"` // in sealed.DomainRedacted
}

func readInput(ctx context.Context, s logical.Storage, id sealed.RunID) (row inputRow, ok bool, err error) {
	if ok, err = get(ctx, s, storeInputs+string(id), &row); err != nil {
		return row, false, unavailable(err)
	}
	return row, ok, nil
}

// saveInput stores the document once and then logs its digest: an entry never
// names a document that is not there. The same document again is logged again,
// because the entry may be what was lost; another one is refused. Only a run
// that may use credentials can hand one in.
func (b *backend) saveInput(ctx context.Context, s logical.Storage, id sealed.RunID, document string) error {
	in, err := sealed.ParseRedactedInput(document)
	if err != nil {
		return err
	}
	defer b.lockRun(id)()
	r, err := b.run(ctx, s, id)
	if err != nil {
		return err
	}
	if !r.alive() {
		return errRefused
	}
	row := inputRow{Document: document, Digest: sealed.DigestOf(sealed.DomainRedacted, []byte(document))}
	old, ok, err := readInput(ctx, s, id)
	switch {
	case err != nil:
		return err
	case ok && old != row:
		return fmt.Errorf("storing redacted input: the run has handed in another: %w", sealed.ErrConflict)
	case !ok:
		if err := put(ctx, s, storeInputs+string(id), row); err != nil {
			return unavailable(err)
		}
	}
	_, err = b.record(ctx, s, audit.Event{Type: typeInputRedacted, Run: string(id), Essential: true, Body: map[string]any{
		"digest": row.Digest, "argv_bytes": in.ArgvBytes, "has_input": in.HasInput, "input_bytes": in.InputBytes, "said_by": "run",
	}})
	return err
}

// pathInput is the end of what was kept of a run's command and input.
func (b *backend) pathInput() *framework.Path {
	return &framework.Path{
		Pattern:      runPattern + "/input$",
		DisplayAttrs: display("run-input"),
		Fields:       runFields(nil),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.DeleteOperation: b.op("Erase the redacted command and input of a run", b.eraseInput),
		},
		HelpSynopsis:    "Erase the redacted command and input of a run that is over.",
		HelpDescription: "Entry and record keep the digest, which is salted: without the document it proves nothing about the text. No ready-made policy grants this.",
	}
}

func (b *backend) eraseInput(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	r, err := b.pathRun(ctx, req, d)
	if err != nil {
		return nil, err
	}
	if !r.over() {
		return nil, fmt.Errorf("erasing redacted input: the run is not over: %w", sealed.ErrConflict)
	}
	_, ok, err := readInput(ctx, req.Storage, r.ID)
	if err != nil || !ok {
		return nil, err
	}
	if err := b.change(ctx, req, typeInputErased, map[string]any{"on": r.ID}); err != nil {
		return nil, err
	}
	if err := req.Storage.Delete(ctx, storeInputs+string(r.ID)); err != nil {
		return nil, unavailable(err)
	}
	return map[string]any{"erased": true}, nil
}

// showInput adds the document to what is shown of a run, if there is one.
func showInput(ctx context.Context, s logical.Storage, id sealed.RunID, out map[string]any) error {
	row, ok, err := readInput(ctx, s, id)
	if ok {
		out["redacted_input"], out["redacted_input_digest"] = row.Document, string(row.Digest)
	}
	return err
}
