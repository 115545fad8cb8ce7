package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sealed.dev/sealed/internal/sealed"
)

const (
	guestDomain   = "bench.sealed.test"
	guestTenant   = sealed.Name("bench")
	guestAudience = "vault://bench"
)

// A maker is a SPIFFE authority of its own. The engine is measured from a
// program that plays sealed-init, which no attestor would let through; so it
// talks to a mount that trusts this authority and holds nothing.
type maker struct {
	key    *ecdsa.PrivateKey // of the CA, and of JWTs
	ca     *x509.Certificate
	leaf   []byte // X509-SVID, DER
	svid   *ecdsa.PrivateKey
	spiffe string
}

func newMaker() (*maker, error) {
	m := &maker{spiffe: "spiffe://" + guestDomain + sealed.AgentSPIFFEPath(guestTenant, agentName)}
	var err error
	if m.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("making CA: %w", err)
	}
	if m.svid, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("making SVID: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), URIs: []*url.URL{{Scheme: "spiffe", Host: guestDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &m.key.PublicKey, m.key)
	if err != nil {
		return nil, fmt.Errorf("making CA: %w", err)
	}
	if m.ca, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("making CA: %w", err)
	}
	id, err := url.Parse(m.spiffe)
	if err != nil {
		return nil, fmt.Errorf("making SVID: %w", err)
	}
	// The name says what an attestor would have graded: a uid of its own.
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(12 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{id}, DNSNames: []string{"own-uid.isolation.sealed.internal"},
	}
	if m.leaf, err = x509.CreateCertificate(rand.Reader, leaf, m.ca, &m.svid.PublicKey, m.key); err != nil {
		return nil, fmt.Errorf("making SVID: %w", err)
	}
	return m, nil
}

// bundle is the SPIFFE bundle document.
func (m *maker) bundle() (string, error) {
	td, err := spiffeid.TrustDomainFromString(guestDomain)
	if err != nil {
		return "", fmt.Errorf("making bundle: %w", err)
	}
	b := spiffebundle.New(td)
	b.AddX509Authority(m.ca)
	b.SetSequenceNumber(1)
	doc, err := b.Marshal()
	return string(doc), err
}

// publicKey verifies JWTs; PEM.
func (m *maker) publicKey() (string, error) {
	der, err := x509.MarshalPKIXPublicKey(&m.key.PublicKey)
	if err != nil {
		return "", fmt.Errorf("encoding key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

// jwt is a JWT-SVID: RFC 7519 with ES256 (RFC 7518 §3.4).
func (m *maker) jwt() (string, error) {
	now := time.Now()
	claims, err := json.Marshal(map[string]any{"sub": m.spiffe, "aud": guestAudience, "iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(10 * time.Minute).Unix()})
	if err != nil {
		return "", fmt.Errorf("making JWT: %w", err)
	}
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + enc.EncodeToString(claims)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, m.key, sum[:])
	if err != nil {
		return "", fmt.Errorf("signing JWT: %w", err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return signed + "." + enc.EncodeToString(sig), nil
}

// sign signs as the holder of the X509-SVID.
func (m *maker) sign(d sealed.Domain, payload []byte) (string, error) {
	sum := sha256.Sum256(sealed.SigningBytes(d, payload))
	sig, err := ecdsa.SignASN1(rand.Reader, m.svid, sum[:])
	if err != nil {
		return "", fmt.Errorf("signing claim: %w", err)
	}
	return base64.StdEncoding.EncodeToString(sig), nil
}
