package vaultplugin

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// The attestor grades a sandbox, and SPIRE puts the grade into the leaf as a
// DNS name under this suffix. The workload can't choose it.
const (
	isolationSuffix = ".isolation.sealed.internal"
	maxChain        = 8
)

// A refusal is a claim that was turned down: what is a constant for the log,
// the caller only learns "refused".
type refusal struct{ what string }

func (r *refusal) Error() string { return "claim refused: " + r.what }

func refused(what string) error { return &refusal{what: what} }

// A provenClaim is a claim whose signatures hold: somebody with the key of an
// SVID of this agent kind, and with the run key it names, said this.
type provenClaim struct {
	sealed.Claim
	spiffeID  string
	isolation string // as attested
	runKey    ed25519.PublicKey
}

// proveClaim checks both signatures and the SVID chain. spiffeID is that of
// the caller's Vault token; the SVID has to be of the same identity.
func proveClaim(cr sealed.ClaimRequest, c sealed.Claim, spiffeID string, bundle *spiffebundle.Bundle, now time.Time) (provenClaim, error) {
	leaf, err := verifySVID(cr.SVID, spiffeID, bundle, now)
	if err != nil {
		return provenClaim{}, err
	}
	signed := sealed.SigningBytes(sealed.DomainClaim, []byte(cr.Payload))
	svidSig, err := base64.StdEncoding.DecodeString(cr.SVIDSignature)
	if err != nil || !verifyECDSA(leaf, signed, svidSig) {
		return provenClaim{}, refused("svid_signature")
	}
	runKey, err := parseRunKey(c.RunKey)
	if err != nil {
		return provenClaim{}, refused("run_key")
	}
	runSig, err := base64.StdEncoding.DecodeString(cr.RunSignature)
	if err != nil || !ed25519.Verify(runKey, signed, runSig) {
		return provenClaim{}, refused("run_signature")
	}
	if err := secret.ValidatePublic(c.HPKEKey); err != nil {
		return provenClaim{}, refused("hpke_key")
	}
	if nonce, err := base64.StdEncoding.DecodeString(c.Nonce); err != nil || len(nonce) != 32 {
		return provenClaim{}, refused("nonce")
	}
	return provenClaim{Claim: c, spiffeID: spiffeID, isolation: attestedIsolation(leaf), runKey: runKey}, nil
}

func parseRunKey(s string) (ed25519.PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != ed25519.PublicKeySize || base64.StdEncoding.EncodeToString(b) != s {
		return nil, fmt.Errorf("parsing run key: %w", sealed.ErrInvalid)
	}
	return ed25519.PublicKey(b), nil
}

// verifySVID returns the leaf of a chain that ends in the trust bundle and is
// the X509-SVID of exactly spiffeID.
func verifySVID(chain []string, spiffeID string, bundle *spiffebundle.Bundle, now time.Time) (*x509.Certificate, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return nil, refused("svid")
	}
	certs := make([]*x509.Certificate, 0, len(chain))
	for _, text := range chain {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, refused("svid")
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, refused("svid")
		}
		certs = append(certs, cert)
	}
	id, _, err := x509svid.Verify(certs, bundle, x509svid.WithTime(now))
	if err != nil {
		return nil, refused("svid")
	}
	if id.String() != spiffeID {
		return nil, refused("spiffe_id")
	}
	return certs[0], nil
}

// verifyECDSA accepts ECDSA on P-256 with SHA-256 only, which is what SPIRE
// issues by default.
func verifyECDSA(leaf *x509.Certificate, signed, sig []byte) bool {
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return false
	}
	sum := sha256.Sum256(signed)
	return ecdsa.VerifyASN1(pub, sum[:], sig)
}

// attestedIsolation reads the grade from the leaf. Missing, unknown or
// contradicting grades are the weakest one.
func attestedIsolation(leaf *x509.Certificate) string {
	grade := ""
	for _, name := range leaf.DNSNames {
		g, ok := strings.CutSuffix(name, isolationSuffix)
		if !ok {
			continue
		}
		if grade != "" && grade != g {
			return sealed.IsolationSameUID
		}
		grade = g
	}
	if grade == "own-uid" {
		return sealed.IsolationOwnUID
	}
	return sealed.IsolationSameUID
}

// ticketMatches compares in constant time. A used-up ticket matches nothing.
func ticketMatches(r runRow, ticket string) bool {
	got := sealed.DigestOf(sealed.DomainTicket, []byte(ticket))
	return r.Ticket != "" && subtle.ConstantTimeCompare([]byte(got), []byte(r.Ticket)) == 1
}

// A check is one fact of a measurement with the name it is refused under.
type check struct {
	what string
	ok   bool
}

// measured compares what init found with the manifest and with what a sandbox
// has to be (R05). It returns the name of the first fact that is wrong.
func measured(r runRow, def sealed.AgentDefinition, c provenClaim) (what string) {
	m, got := r.m, c.Measurement
	for _, k := range []check{
		{"isolation", c.isolation == m.Sandbox.Isolation},
		{"command_digest", got.CommandDigest == m.CommandDigest},
		{"input_digest", got.InputDigest == m.InputDigest},
		{"workspace_digest", got.WorkspaceDigest == m.WorkspaceDigest},
		{"exe_digest", sealed.Digest(got.ExeDigest).Validate("exe_digest") == nil && (def.AnyBinary || slices.Contains(def.Digests, got.ExeDigest))},
		{"trust_digest", got.TrustDigest.Validate("trust_digest") == nil},
		{"backend", got.Backend == m.Sandbox.Backend},
		{"interactive", got.Interactive == m.Sandbox.Interactive},
		{"interfaces", slices.Equal(got.Interfaces, []string{"lo"})},
		{"cap_eff", zeroHex(got.CapEff)},
		{"cap_bnd", zeroHex(got.CapBnd)},
		{"no_new_privs", got.NoNewPrivs},
		{"seccomp", got.Seccomp == 2},
		{"uid_map", oneUser(got.UIDMap, got.UID)},
		{"pid", got.PID == 1},
		{"root_read_only", got.RootReadOnly},
	} {
		if !k.ok {
			return k.what
		}
	}
	return ""
}

// zeroHex reports whether s is a capability mask with no bit set.
func zeroHex(s string) bool {
	v, err := strconv.ParseUint(s, 16, 64)
	return err == nil && v == 0
}

// oneUser reports whether a uid_map line (user_namespaces(7): inside, outside,
// length) maps exactly the process's own uid, which is not 0. The second
// column is relative to the parent namespace, which may be a nested one, and so
// says nothing about the host: that no uid of the host's root is mapped is
// checked by the attestor, from outside.
func oneUser(line string, uid int) bool {
	inside, err := strconv.Atoi(line[:max(strings.IndexByte(line, ' '), 0)])
	fields := strings.Fields(line)
	return err == nil && len(fields) == 3 && inside == uid && uid > 0 && fields[2] == "1"
}
