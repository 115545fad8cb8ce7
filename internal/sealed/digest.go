package sealed

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"
)

// A Domain separates the digests and signatures of different documents.
type Domain string

// The domains. A domain is never reused for another format.
const (
	DomainManifest  Domain = "sealed.manifest.v1"
	DomainCommand   Domain = "sealed.command.v1"
	DomainInput     Domain = "sealed.input.v1"
	DomainAgent     Domain = "sealed.agent-definition.v1"
	DomainKeySpec   Domain = "sealed.key.v1"
	DomainApproval  Domain = "sealed.approval.v1"
	DomainTicket    Domain = "sealed.ticket.v1"
	DomainClaim     Domain = "sealed.claim.v1"
	DomainRequest   Domain = "sealed.request.v1"
	DomainAnswer    Domain = "sealed.answer.v1"
	DomainTrust     Domain = "sealed.trust.v1"
	DomainWorkspace Domain = "sealed.workspace.v1"
	DomainRedacted  Domain = "sealed.redacted-input.v1"

	// DomainEffectiveKey is for a key after the cascade.
	DomainEffectiveKey Domain = "sealed.effective-key.v1"
)

// A Digest is a lower-case hex SHA-256. The zero value means "none".
type Digest string

// DigestOf returns the digest of data in a domain.
func DigestOf(d Domain, data []byte) Digest {
	h := sha256.New()
	h.Write([]byte(d))
	h.Write([]byte{0})
	h.Write(data)
	return Digest(hex.EncodeToString(h.Sum(nil)))
}

// Validate refuses anything that is not 64 lower-case hex digits.
func (d Digest) Validate(field string) error {
	if len(d) != 64 {
		return fieldErr(field, "wants 64 hex digits")
	}
	for _, c := range d {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fieldErr(field, "wants lower-case hex digits")
		}
	}
	return nil
}

// CommandDigest digests an argument vector. Arguments keep their bounds: the
// digest is over their JSON array, so ["a b"] and ["a","b"] differ. JSON can't
// tell arguments apart that are not UTF-8: they have no digest (""), which
// Validate refuses.
func CommandDigest(argv []string) Digest {
	if slices.ContainsFunc(argv, func(a string) bool { return !utf8.ValidString(a) }) {
		return ""
	}
	b, err := json.Marshal(argv)
	if err != nil { // a []string always marshals
		return ""
	}
	return DigestOf(DomainCommand, b)
}

// A Signed document carries the exact bytes that were signed beside the
// signature. Payload is opaque until Open has accepted it.
type Signed struct {
	Payload   string `json:"payload"`   // the document, JSON text
	Signature string `json:"signature"` // Ed25519 over domain ‖ 0x00 ‖ payload, base64 std
}

// Sign encodes v and signs it with key in a domain.
func Sign(d Domain, v any, key ed25519.PrivateKey) (Signed, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return Signed{}, fmt.Errorf("encoding %s: %w", d, err)
	}
	return Signed{Payload: string(b), Signature: base64.StdEncoding.EncodeToString(ed25519.Sign(key, SigningBytes(d, b)))}, nil
}

// Open verifies the signature, which has one spelling, and only then decodes
// the payload into v, strictly. An error wraps ErrInvalid and says nothing about which part failed
// to verify.
func (s Signed) Open(d Domain, key ed25519.PublicKey, v any) error {
	sig, err := base64.StdEncoding.DecodeString(s.Signature)
	if err != nil || base64.StdEncoding.EncodeToString(sig) != s.Signature || len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, SigningBytes(d, []byte(s.Payload)), sig) {
		return fmt.Errorf("verifying %s: bad signature: %w", d, ErrInvalid)
	}
	return Decode([]byte(s.Payload), MaxDocument, v)
}

// SigningBytes is what a signature in a domain covers.
func SigningBytes(d Domain, payload []byte) []byte {
	out := make([]byte, 0, len(d)+1+len(payload))
	out = append(out, d...)
	out = append(out, 0)
	return append(out, payload...)
}

// MaxDocument bounds every signed document, in bytes.
const MaxDocument = 1 << 20
