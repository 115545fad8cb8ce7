package vaultplugin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// pathRollback is how a restored snapshot is found, and how it is accepted.
func (b *backend) pathRollback() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "log/seen",
			DisplayAttrs: display("log-seen"),
			Fields: map[string]*framework.FieldSchema{
				"checkpoint": {Type: framework.TypeString, Description: "The newest checkpoint of this log that the caller has seen."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Compare the log with what the caller saw of it.", b.logSeen),
			},
			HelpSynopsis:    "Present the last checkpoint seen; have the newest and the proof that it continues it.",
			HelpDescription: "A checkpoint that the log's key has signed and the log does not continue proves that storage went back. Nothing is issued from then on, until config/attest-rollback.",
		},
		{
			Pattern:      "config/attest-rollback",
			DisplayAttrs: display("attest-rollback"),
			Fields: map[string]*framework.FieldSchema{
				"lost_size":        {Type: framework.TypeString, Description: "Entries of the lost head, as read here: says that this is the restore you mean."},
				"policy_sequence":  {Type: framework.TypeString, Description: "Sequence of the newest policy that ever was in force. If it is not the present one, it has to be uploaded before anything is issued."},
				"overlay_sequence": {Type: framework.TypeString, Description: "Sequence of the newest overlay that ever was in force; empty if there never was one. If it is not the present one, it has to be uploaded, or removed by two persons, before anything is issued."},
				"reason":           {Type: framework.TypeString, Description: "Why; at most 512 bytes."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   b.op("Read whether storage went back, and the proof.", b.rollbackRead),
				logical.UpdateOperation: b.op("Attest that a restore was meant, and go on.", b.rollbackAttest),
			},
			HelpSynopsis:    "A restored snapshot: what is known of it, and the word of a person that it was meant.",
			HelpDescription: "Every run that is not over is aborted, for its approvals and tickets may have been used in the history that is gone. Revocations of that history are gone too: make them again before attesting.",
		},
	}
}

func (b *backend) logSeen(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	text := []byte(text(d, "checkpoint"))
	if len(text) == 0 || len(text) > 4<<10 {
		return nil, invalid("checkpoint", "wants a signed checkpoint of at most 4 KiB")
	}
	h, hashes, err := b.seen(ctx, req.Storage, text, b.actor(req))
	if err != nil {
		return nil, err
	}
	proof := []string{}
	for _, x := range hashes {
		proof = append(proof, base64.StdEncoding.EncodeToString(x[:]))
	}
	doc, err := json.Marshal(proof)
	if err != nil {
		return nil, fmt.Errorf("encoding proof: %w", err)
	}
	return map[string]any{"checkpoint": string(h.text), "proof": string(doc)}, nil
}

func (b *backend) rollbackRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	row, err := b.rollbackRow(ctx, req.Storage)
	if err != nil {
		return nil, unavailable(err)
	}
	out := map[string]any{"rolled_back": row.Seen != nil}
	if row.GivenUpTo > 0 {
		out["given_up_to"], out["given_up_at"] = strconv.FormatUint(row.GivenUpTo, 10), row.GivenUpAt.Format(time.RFC3339)
	}
	seen := row.Seen
	if seen == nil {
		return out, nil
	}
	out["lost"], out["restored"] = seen.Lost, seen.Restored
	out["lost_size"], out["restored_size"] = strconv.FormatUint(seen.LostSize, 10), strconv.FormatUint(seen.RestoredSize, 10)
	out["seen_at"], out["seen_by"] = seen.At.Format(time.RFC3339), seen.By
	return out, nil
}

func (b *backend) rollbackAttest(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	a := attestation{by: b.actor(req), reason: sealed.CleanReason(text(d, "reason"))}
	if a.reason == "" {
		return nil, invalid("reason", "wants 1 to 512 characters")
	}
	var err error
	if a.size, err = number(d, "lost_size"); err != nil || a.size == 0 {
		return nil, invalid("lost_size", "wants the number of entries of the lost head")
	}
	if a.policy, err = number(d, "policy_sequence"); err != nil || text(d, "policy_sequence") == "" {
		return nil, invalid("policy_sequence", "wants the sequence of the newest policy that ever was in force")
	}
	if a.overlay, err = number(d, "overlay_sequence"); err != nil {
		return nil, invalid("overlay_sequence", "wants the sequence of the newest overlay that ever was in force")
	}
	n, err := b.attest(ctx, req.Storage, a)
	if err != nil {
		return nil, err
	}
	return map[string]any{"aborted": n}, nil
}
