package vaultclient

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strconv"

	"sealed.dev/sealed/internal/audit"
)

// Seen presents the newest checkpoint that the caller has seen of the log, and
// returns the newest there is with the proof for audit.CheckConsistency, which is
// the caller's to check. If the log does not continue the checkpoint, the engine
// issues nothing from then on and the error is sealed.ErrUnavailable; it is
// sealed.ErrConflict if somebody has attested that its history was given up.
func (e *Engine) Seen(ctx context.Context, checkpoint []byte) (head []byte, proof []audit.Hash, err error) {
	f, err := e.write(ctx, map[string]any{"checkpoint": string(checkpoint)}, "log", "seen")
	if err != nil {
		return nil, nil, err
	}
	text, err := f.text("checkpoint")
	if err != nil {
		return nil, nil, err
	}
	doc, err := f.text("proof")
	if err != nil {
		return nil, nil, err
	}
	var lines []string
	if json.Unmarshal([]byte(doc), &lines) != nil {
		return nil, nil, f.malformed("proof")
	}
	for _, line := range lines {
		b, err := base64.StdEncoding.DecodeString(line)
		var h audit.Hash
		if err != nil || len(b) != len(h) {
			return nil, nil, f.malformed("proof")
		}
		proof = append(proof, audit.Hash(b))
	}
	return []byte(text), proof, nil
}

// A Rollback is what the engine knows of a restore of its storage.
type Rollback struct {
	RolledBack   bool   `json:"rolled_back"`
	Lost         string `json:"lost,omitempty"`     // checkpoint that was seen and is not continued
	Restored     string `json:"restored,omitempty"` // checkpoint of what was found instead
	LostSize     uint64 `json:"lost_size,omitempty"`
	RestoredSize uint64 `json:"restored_size,omitempty"`
	SeenAt       string `json:"seen_at,omitempty"` // RFC 3339
	SeenBy       string `json:"seen_by,omitempty"` // entity
}

// Rollback reads whether the mount's storage went back.
func (e *Engine) Rollback(ctx context.Context) (Rollback, error) {
	f, err := e.read(ctx, nil, "config", "attest-rollback")
	if err != nil {
		return Rollback{}, err
	}
	r := Rollback{RolledBack: f.bool("rolled_back")}
	for name, to := range map[string]*string{"lost": &r.Lost, "restored": &r.Restored, "seen_at": &r.SeenAt, "seen_by": &r.SeenBy} {
		if *to, err = f.text(name); err != nil {
			return Rollback{}, err
		}
	}
	for name, to := range map[string]*uint64{"lost_size": &r.LostSize, "restored_size": &r.RestoredSize} {
		if *to, err = f.number(name); err != nil {
			return Rollback{}, err
		}
	}
	return r, nil
}

// AttestRollback says that the restore was meant by which lostSize entries were
// lost, and that the newest policy and overlay that ever were in force have these
// sequences (0: there never was an overlay). It aborts every run that is not over
// and returns how many there were.
func (e *Engine) AttestRollback(ctx context.Context, lostSize, policySequence, overlaySequence uint64, reason string) (aborted int, err error) {
	data := map[string]any{
		"lost_size": strconv.FormatUint(lostSize, 10), "policy_sequence": strconv.FormatUint(policySequence, 10), "reason": reason,
	}
	if overlaySequence > 0 {
		data["overlay_sequence"] = strconv.FormatUint(overlaySequence, 10)
	}
	f, err := e.write(ctx, data, "config", "attest-rollback")
	if err != nil {
		return 0, err
	}
	return f.int("aborted")
}
