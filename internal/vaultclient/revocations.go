package vaultclient

import (
	"context"
	"errors"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A StoredRevocation is a revocation, and how it was lifted if it was.
type StoredRevocation struct {
	sealed.Revocation
	Lifted   *Lift `json:"lifted,omitempty"`
	Standing bool  `json:"standing"`
}

// A Lift is the end of a revocation.
type Lift struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	Epoch  uint64    `json:"epoch"`
	At     time.Time `json:"at"`
}

// Revoked is what a revocation did at once.
type Revoked struct {
	ID       string         `json:"id"`
	Epoch    uint64         `json:"epoch"`
	Runs     []sealed.RunID `json:"runs"`     // hard: ordered to stop
	Grants   []string       `json:"grants"`   // hard: dead
	Logged   bool           `json:"logged"`   // false: the engine repeats the entry
	Enforced bool           `json:"enforced"` // false: the engine repeats the stopping
}

// A Preview is what a hard revocation would stop now.
type Preview struct {
	Runs          []sealed.RunID `json:"runs"`
	LeasePrefixes []string       `json:"lease_prefixes"` // below the mount
	Grants        int            `json:"grants"`
}

// Revoke creates a standing no. Kind, Target, Hard and Reason of r count.
func (e *Engine) Revoke(ctx context.Context, r sealed.Revocation) (Revoked, error) {
	f, err := e.write(ctx, revocationFields(r), "revocations")
	if err != nil {
		return Revoked{}, err
	}
	out := Revoked{Logged: f.bool("logged"), Enforced: f.bool("enforced")}
	if out.ID, err = f.text("id"); err != nil {
		return out, err
	}
	if out.Epoch, err = f.number("epoch"); err != nil {
		return out, err
	}
	if out.Runs, err = f.runs("runs"); err != nil {
		return out, err
	}
	out.Grants, err = f.texts("grants")
	return out, err
}

// PreviewRevocation says what r would stop if it were hard. It has no effect.
func (e *Engine) PreviewRevocation(ctx context.Context, r sealed.Revocation) (Preview, error) {
	f, err := e.write(ctx, revocationFields(r), "revocations", "preview")
	if err != nil {
		return Preview{}, err
	}
	var out Preview
	if out.Runs, err = f.runs("runs"); err != nil {
		return out, err
	}
	if out.LeasePrefixes, err = f.texts("lease_prefixes"); err != nil {
		return out, err
	}
	out.Grants, err = f.int("grants")
	return out, err
}

func revocationFields(r sealed.Revocation) map[string]any {
	return map[string]any{"kind": r.Kind, "target": r.Target, "hard": r.Hard, "reason": r.Reason}
}

// runs returns a list of run ids; anything else can't become part of a path.
func (f fields) runs(name string) ([]sealed.RunID, error) {
	texts, err := f.texts(name)
	if err != nil {
		return nil, err
	}
	out := make([]sealed.RunID, 0, len(texts))
	for _, s := range texts {
		id, err := sealed.ParseRunID(s)
		if err != nil {
			return nil, f.malformed(name)
		}
		out = append(out, id)
	}
	return out, nil
}

// RevokeLeases makes Vault drop every lease of a run at once. The token needs
// sudo on sys/leases/revoke-prefix/<mount>/runs/*.
func (e *Engine) RevokeLeases(ctx context.Context, id sealed.RunID) error {
	if err := segment("run", string(id)); err != nil {
		return err
	}
	_, err := e.c.Write(ctx, "sys/leases/revoke-prefix/"+e.path("runs", string(id)), nil)
	return err
}

// Revocations lists revocations, newest last, lifted ones too.
func (e *Engine) Revocations(ctx context.Context) ([]StoredRevocation, error) {
	ids, _, err := e.list(ctx, nil, "revocations")
	if err != nil {
		return nil, err
	}
	out := make([]StoredRevocation, 0, len(ids))
	for _, id := range ids {
		r, err := e.Revocation(ctx, strings.TrimSuffix(id, "/"))
		if errors.Is(err, sealed.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// Revocation reads one revocation.
func (e *Engine) Revocation(ctx context.Context, id string) (StoredRevocation, error) {
	var out StoredRevocation
	if err := segment("revocation", id); err != nil {
		return out, err
	}
	f, err := e.read(ctx, nil, "revocations", id)
	if err != nil {
		return out, err
	}
	if err := f.document("revocation", &out); err != nil {
		return out, err
	}
	out.Standing = f.bool("standing")
	return out, nil
}

// LiftRevocation ends a revocation. What it killed stays dead.
func (e *Engine) LiftRevocation(ctx context.Context, id, reason string) error {
	if err := segment("revocation", id); err != nil {
		return err
	}
	_, err := e.write(ctx, map[string]any{"reason": reason}, "revocations", id, "lift")
	return err
}
