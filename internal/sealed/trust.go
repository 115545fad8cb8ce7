package sealed

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// A TrustFile says whom init trusts. It is owned by root, checked by the
// attestor as the very descriptor that init holds open, and named by the claim
// (digest in DomainTrust over its bytes). The launcher can't change it.
type TrustFile struct {
	V             int               `json:"v"` // 1
	Tenant        Name              `json:"tenant"`
	TrustDomain   string            `json:"trust_domain"`
	VaultAddr     string            `json:"vault_addr"` // https://host:port
	VaultCA       string            `json:"vault_ca"`   // PEM
	VaultMount    string            `json:"vault_mount"`
	AuthMount     string            `json:"auth_mount"` // of auth/jwt
	AuthRole      string            `json:"auth_role"`
	Audience      string            `json:"audience"`
	AnswerKey     string            `json:"answer_key"`              // Ed25519 public key, base64 std
	LogKey        string            `json:"log_key"`                 // note verifier key of the log
	SPIFFESocket  string            `json:"spiffe_socket"`           // path on the host
	UpstreamRoots string            `json:"upstream_roots"`          // PEM; the only roots for upstream TLS
	Relay         map[string]string `json:"relay,omitempty"`         // host:port → address, the only way to a private address
	AttestSocket  string            `json:"attest_socket,omitempty"` // registry socket of the attestor, for the launcher
}

// MaxTrustFile bounds a trust file, in bytes.
const MaxTrustFile = 1 << 20

// ParseTrustFile decodes and validates a trust file.
func ParseTrustFile(data []byte) (TrustFile, error) {
	var t TrustFile
	if err := Decode(data, MaxTrustFile, &t); err != nil {
		return t, err
	}
	switch {
	case t.V != 1:
		return t, fieldErr("v", "wants 1")
	case !strings.HasPrefix(t.VaultAddr, "https://"):
		return t, fieldErr("vault_addr", "wants https")
	case t.VaultCA == "" || t.UpstreamRoots == "":
		return t, fieldErr("vault_ca", "wants PEM certificates, as does upstream_roots")
	case t.VaultMount == "" || t.AuthMount == "" || t.AuthRole == "" || t.Audience == "" || t.SPIFFESocket == "":
		return t, fieldErr("vault_mount", "mounts, role, audience and spiffe_socket are required")
	}
	if _, err := ParseName("tenant", string(t.Tenant)); err != nil {
		return t, err
	}
	if !trustDomainRE.MatchString(t.TrustDomain) {
		return t, fieldErr("trust_domain", "wants the name of a SPIFFE trust domain")
	}
	if _, err := t.AnswerPublicKey(); err != nil {
		return t, err
	}
	if !noteVerifierKey(t.LogKey) {
		return t, fieldErr("log_key", "wants the log's verifier key: name+hash+key, as the engine's config shows it")
	}
	return t, nil
}

// noteVerifierKey reports whether text is a verifier key of a signed note with
// Ed25519 (C2SP signed-note): name ‖ + ‖ hash ‖ + ‖ base64(0x01 ‖ public key).
// The hash is the first four bytes of SHA-256(name ‖ \n ‖ 0x01 ‖ public key) in hex.
func noteVerifierKey(text string) bool {
	name, rest, _ := strings.Cut(text, "+")
	hash, encoded, _ := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || name == "" || strings.ContainsAny(name, " \t\r\n") || len(key) != 1+ed25519.PublicKeySize || key[0] != 1 {
		return false
	}
	sum := sha256.Sum256(append([]byte(name+"\n"), key...))
	return hash == hex.EncodeToString(sum[:4])
}

// AnswerPublicKey returns the key that signs the engine's answers.
func (t TrustFile) AnswerPublicKey() (ed25519.PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(t.AnswerKey)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, fieldErr("answer_key", "wants a base64 Ed25519 public key")
	}
	return ed25519.PublicKey(b), nil
}
