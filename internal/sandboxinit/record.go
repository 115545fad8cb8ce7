package sandboxinit

import (
	"context"
	"encoding/base64"
	"fmt"
	"sort"
	"time"

	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
)

// A recorder collects what the run's record says. It is filled by one
// goroutine, at the end of the run.
type recorder struct {
	session  *session
	measured sealed.Measurement
	logKey   string
	started  time.Time
	grants   []grantNote
	counts   []redact.Count
	misses   []redact.Count
	subjects map[string]string // name → SHA-256 in hex
	warnings []string
	input    sealed.Digest // of the redacted input; empty if there is none yet
	exit     int
	reason   string
}

// sign makes the record. It first asks for the log's newest head and checks
// that it extends the one seen at claim: a log that was cut or forked in
// between makes the run fail.
func (r *recorder) sign(ctx context.Context) ([]byte, error) {
	head, err := r.newestHead(ctx)
	if err != nil {
		return nil, err
	}
	a := r.session.answer
	stmt := audit.Statement{
		Subject: []audit.Subject{{Name: "run", Digest: audit.Digest{SHA256: string(a.ManifestDigest)}}},
		Predicate: audit.Predicate{
			Run: string(a.Run), Tenant: string(a.Tenant), SPIFFEID: a.SPIFFEID,
			Assurance: a.Assurance, Isolation: a.Isolation,
			Agent:          audit.Agent{Name: string(a.Agent), ExeDigest: r.measured.ExeDigest, DefinitionDigest: string(a.DefinitionDigest)},
			ManifestDigest: string(a.ManifestDigest),
			RedactedInput:  string(r.input),
			Bundle:         audit.Bundle{Digest: string(a.Bundle.Digest), Sequence: a.Bundle.Sequence},
			Approvals:      []audit.Approval{}, Revocations: []audit.Revocation{},
			ClaimCheckpoint: a.Checkpoint, FinishCheckpoint: head,
			Exit:      audit.Exit{Status: r.exit, Reason: r.reason},
			StartedAt: r.started, FinishedAt: time.Now(), Warnings: append([]string{}, r.warnings...),
		},
	}
	for _, name := range []string{"stdout", "stderr", "workspace"} {
		if d := r.subjects[name]; d != "" {
			stmt.Subject = append(stmt.Subject, audit.Subject{Name: name, Digest: audit.Digest{SHA256: d}})
		}
	}
	r.fill(&stmt.Predicate)
	return audit.SignRecord(stmt, r.session.signKey)
}

// fill adds decisions, grants and redaction counts. Which persons approved
// and which revocations were enforced is the engine's knowledge: it is in the
// log's entries about this run, which the record's checkpoints cover.
func (r *recorder) fill(p *audit.Predicate) {
	byKey := map[sealed.KeyName]string{}
	p.Grants = []audit.Grant{}
	for _, g := range r.grants {
		byKey[g.key] = string(g.id)
		p.Grants = append(p.Grants, audit.Grant{ID: string(g.id), Key: string(g.key), Delivery: string(g.delivery), IssuedAt: g.issued, EndedAt: g.ended, Outcome: g.outcome})
	}
	p.Decisions = []audit.Decision{}
	for _, k := range r.session.answer.Keys {
		d := audit.Decision{Key: string(k.Name), Effect: string(k.Effect), Reasons: []string{}, Grant: byKey[k.Name]}
		for _, reason := range k.Reasons {
			d.Reasons = append(d.Reasons, reason.Code)
		}
		p.Decisions = append(p.Decisions, d)
		if k.Approval != "" && byKey[k.Name] != "" {
			p.Approvals = append(p.Approvals, audit.Approval{ID: string(k.Approval), Key: string(k.Name), Persons: []string{}})
		}
	}
	p.Redactions, p.Misses = redactions(r.counts), redactions(r.misses)
}

// redactions are counts in order.
func redactions(counts []redact.Count) []audit.Redaction {
	out := []audit.Redaction{}
	for _, c := range counts {
		out = append(out, audit.Redaction{Key: c.Key, Form: string(c.Form), Stream: c.Stream, N: uint64(c.N)})
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		return a.Key+a.Form+a.Stream < b.Key+b.Form+b.Stream
	})
	return out
}

// newestHead returns the newest checkpoint, proven to extend the claim's.
func (r *recorder) newestHead(ctx context.Context) (string, error) {
	verifier, err := note.NewVerifier(r.logKey)
	if err != nil {
		return "", fmt.Errorf("reading trust file: malformed log_key: %w", sealed.ErrInvalid)
	}
	old, err := audit.OpenCheckpoint([]byte(r.session.answer.Checkpoint), verifier)
	if err != nil {
		return "", fmt.Errorf("checking the checkpoint of the claim: %w", err)
	}
	h, err := r.session.head(ctx, int64(old.Size))
	if err != nil {
		return "", err
	}
	var proof []audit.Hash
	for _, s := range h.Proof {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(b) != len(audit.Hash{}) {
			return "", fmt.Errorf("checking the log's proof: malformed hash: %w", sealed.ErrInvalid)
		}
		proof = append(proof, audit.Hash(b))
	}
	if err := audit.CheckConsistency([]byte(r.session.answer.Checkpoint), []byte(h.Checkpoint), proof, verifier); err != nil {
		return "", fmt.Errorf("checking the log: %w", err)
	}
	return h.Checkpoint, nil
}
