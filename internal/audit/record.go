package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/dsse"
)

const (
	// PayloadType is the DSSE payload type of a record.
	PayloadType = "application/vnd.in-toto+json"
	// StatementType is the type of an in-toto Statement v1.
	StatementType = "https://in-toto.io/Statement/v1"
	// PredicateType is the type of a record's predicate.
	PredicateType = "https://sealed.dev/attestation/agent-run/v1"
	// MaxRecord is the largest record, in bytes of its envelope.
	MaxRecord = 1 << 20
)

// ErrRecord says that a record is malformed or not signed by the run's key.
var ErrRecord = errors.New("record refused")

// A Statement is an in-toto Statement v1 about one run
// (https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md).
type Statement struct {
	Type          string    `json:"_type"`
	Subject       []Subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     Predicate `json:"predicate"`
}

// A Subject is one thing that the record vouches for: "run" (the manifest),
// "stdout" and "stderr" (the redacted transcripts), "workspace".
type Subject struct {
	Name   string `json:"name"`
	Digest Digest `json:"digest"`
}

// A Digest is an in-toto DigestSet with SHA-256 only, in lower-case hex.
type Digest struct {
	SHA256 string `json:"sha256"`
}

// A Predicate is what a run left. It has names and digests, never a value. Times are UTC.
type Predicate struct {
	Run            string `json:"run"`
	Tenant         string `json:"tenant"`
	SPIFFEID       string `json:"spiffe_id"`
	Assurance      string `json:"assurance"`
	Isolation      string `json:"isolation"`
	Agent          Agent  `json:"agent"`
	ManifestDigest string `json:"manifest_digest"` // hex SHA-256; equals the subject "run"
	Bundle         Bundle `json:"bundle"`
	// RedactedInput is the digest of the redacted command and input that the
	// engine keeps (sealed.RedactedInput); empty if the run handed in none.
	RedactedInput    string       `json:"redacted_input,omitempty"`
	Decisions        []Decision   `json:"decisions"`
	Approvals        []Approval   `json:"approvals"`
	Grants           []Grant      `json:"grants"`
	Redactions       []Redaction  `json:"redactions"`
	Misses           []Redaction  `json:"misses,omitempty"` // found by the second look at the output, form "detected" if by its shape alone: shown, but not in the stored transcript
	Revocations      []Revocation `json:"revocations"`
	ClaimCheckpoint  string       `json:"claim_checkpoint"`  // signed, covers run.claimed
	FinishCheckpoint string       `json:"finish_checkpoint"` // signed, the last that init saw
	Exit             Exit         `json:"exit"`
	StartedAt        time.Time    `json:"started_at"`
	FinishedAt       time.Time    `json:"finished_at"`
	Warnings         []string     `json:"warnings"`
}

// An Agent says what ran.
type Agent struct {
	Name             string `json:"name"`
	DefinitionDigest string `json:"definition_digest"`
	ExeDigest        string `json:"exe_digest"`
}

// A Bundle names the policy that decided.
type Bundle struct {
	Digest   string `json:"digest"`
	Sequence uint64 `json:"sequence"`
}

// A Decision is the policy's answer for one key.
type Decision struct {
	Key     string   `json:"key"`
	Effect  string   `json:"effect"`
	Reasons []string `json:"reasons"`
	Grant   string   `json:"grant,omitempty"` // id, when one was issued
}

// An Approval names who said yes to one key.
type Approval struct {
	ID      string   `json:"id"`
	Key     string   `json:"key"`
	Persons []string `json:"persons"`
}

// A Grant is the life of one issued credential.
type Grant struct {
	ID       string    `json:"id"`
	Key      string    `json:"key"`
	Delivery string    `json:"delivery"`
	IssuedAt time.Time `json:"issued_at"`
	EndedAt  time.Time `json:"ended_at,omitzero"` // zero while its end is unknown
	Outcome  string    `json:"outcome"`
}

// A Redaction counts the matches of one form of one key in one stream.
type Redaction struct {
	Key    string `json:"key"`
	Form   string `json:"form"`
	Stream string `json:"stream"`
	N      uint64 `json:"n"`
}

// A Revocation is one that reached the run.
type Revocation struct {
	ID   string    `json:"id"`
	Kind string    `json:"kind"`
	Name string    `json:"name"`
	Mode string    `json:"mode"` // soft or hard
	At   time.Time `json:"at"`
}

// An Exit says how the run ended.
type Exit struct {
	Status int    `json:"status"`
	Reason string `json:"reason"`
}

// check refuses a statement that no run makes.
func (s Statement) check() error {
	if s.Type != StatementType || s.PredicateType != PredicateType {
		return errors.New("not a statement about an agent run")
	}
	if s.Predicate.Run == "" || checkRun(s.Predicate.Run) != nil {
		return errors.New("run is not a ULID")
	}
	seen := map[string]bool{}
	for _, sub := range s.Subject {
		switch sub.Name {
		case "run", "stdout", "stderr", "workspace":
		default:
			return errors.New("unknown subject")
		}
		sum, err := hex.DecodeString(sub.Digest.SHA256)
		if err != nil || len(sum) != sha256.Size || strings.ToLower(sub.Digest.SHA256) != sub.Digest.SHA256 {
			return fmt.Errorf("digest of subject %s is not SHA-256 in lower-case hex", sub.Name)
		}
		if seen[sub.Name] {
			return fmt.Errorf("two subjects %s", sub.Name)
		}
		seen[sub.Name] = true
	}
	if digest, ok := s.subject("run"); !ok || digest != s.Predicate.ManifestDigest {
		return errors.New("subject run is not the manifest")
	}
	return nil
}

// subject returns the digest of the subject of that name.
func (s Statement) subject(name string) (string, bool) {
	for _, sub := range s.Subject {
		if sub.Name == name {
			return sub.Digest.SHA256, true
		}
	}
	return "", false
}

// utc returns s with its times in UTC.
func (s Statement) utc() Statement {
	p := &s.Predicate
	p.StartedAt, p.FinishedAt = p.StartedAt.UTC(), p.FinishedAt.UTC()
	p.Grants = append([]Grant(nil), p.Grants...)
	for i := range p.Grants {
		p.Grants[i].IssuedAt, p.Grants[i].EndedAt = p.Grants[i].IssuedAt.UTC(), p.Grants[i].EndedAt.UTC()
	}
	p.Revocations = append([]Revocation(nil), p.Revocations...)
	for i := range p.Revocations {
		p.Revocations[i].At = p.Revocations[i].At.UTC()
	}
	return s
}

// SignRecord returns the DSSE envelope of stmt, signed with the run's key. Type
// and PredicateType are set if empty, times are written in UTC. The error matches
// ErrRecord when OpenRecord would refuse the result.
func SignRecord(stmt Statement, key ed25519.PrivateKey) ([]byte, error) {
	if stmt.Type == "" {
		stmt.Type = StatementType
	}
	if stmt.PredicateType == "" {
		stmt.PredicateType = PredicateType
	}
	stmt = stmt.utc()
	if err := stmt.check(); err != nil {
		return nil, fmt.Errorf("%w: signing: %w", ErrRecord, err)
	}
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("%w: signing: not an Ed25519 key", ErrRecord)
	}
	payload, err := json.Marshal(stmt)
	if err != nil {
		return nil, fmt.Errorf("encoding record: %w", err)
	}
	signer, err := signature.LoadED25519Signer(key)
	if err != nil {
		return nil, fmt.Errorf("loading run key: %w", err)
	}
	envelope, err := dsse.WrapSigner(signer, PayloadType).SignMessage(bytes.NewReader(payload))
	if err != nil {
		return nil, fmt.Errorf("signing record: %w", err)
	}
	if len(envelope) > MaxRecord {
		return nil, fmt.Errorf("%w: signing: more than %d bytes", ErrRecord, MaxRecord)
	}
	return envelope, nil
}

// An envelopeShape is a DSSE envelope as the DSSE library writes it.
type envelopeShape struct {
	PayloadType string `json:"payloadType"`
	Payload     string `json:"payload"`
	Signatures  []struct {
		KeyID string `json:"keyid"`
		Sig   string `json:"sig"`
	} `json:"signatures"`
}

// OpenRecord verifies an envelope with the run's public key and returns its
// statement, decoded from the very bytes that were verified. Envelope and
// statement must be in the one form that SignRecord writes. Every error matches
// ErrRecord. It does not say that pub is the run's key: the run.claimed entry does.
func OpenRecord(envelope []byte, pub ed25519.PublicKey) (Statement, error) {
	stmt, err := openRecord(envelope, pub)
	if err != nil {
		return Statement{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return stmt, nil
}

func openRecord(envelope []byte, pub ed25519.PublicKey) (Statement, error) {
	if len(envelope) > MaxRecord {
		return Statement{}, fmt.Errorf("more than %d bytes", MaxRecord)
	}
	if len(pub) != ed25519.PublicKeySize {
		return Statement{}, errors.New("not an Ed25519 key")
	}
	// The DSSE library takes several encodings and skips signatures that fail.
	var shape envelopeShape
	if err := canonicalJSON(envelope, &shape); err != nil {
		return Statement{}, fmt.Errorf("envelope: %w", err)
	}
	if len(shape.Signatures) != 1 || shape.Signatures[0].KeyID != "" {
		return Statement{}, errors.New("envelope: want one signature without key id")
	}
	if err := errors.Join(strictBase64(shape.Payload), strictBase64(shape.Signatures[0].Sig)); err != nil {
		return Statement{}, fmt.Errorf("envelope: %w", err)
	}
	verifier, err := signature.LoadED25519Verifier(pub)
	if err != nil {
		return Statement{}, errors.New("not an Ed25519 key")
	}
	var payload []byte
	wrapped := dsse.WrapVerifier(verifier, dsse.WithExpectedPayloadType(PayloadType), dsse.WithDecodedPayload(&payload))
	if err := wrapped.VerifySignature(bytes.NewReader(envelope), nil); err != nil {
		return Statement{}, fmt.Errorf("verifying signature: %w", err)
	}
	var stmt Statement
	if err := canonicalJSON(payload, &stmt); err != nil {
		return Statement{}, fmt.Errorf("statement: %w", err)
	}
	if err := stmt.check(); err != nil {
		return Statement{}, err
	}
	return stmt, nil
}
