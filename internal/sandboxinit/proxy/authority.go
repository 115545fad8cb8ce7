package proxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"time"
)

// An authority is the CA of one run. Its key never leaves memory, it lives as
// long as the run, and its certificate is constrained (RFC 5280 §4.2.1.10) to
// the bound hosts: a stolen copy of it can sign for nothing else.
type authority struct {
	pem   []byte
	cert  *x509.Certificate
	key   crypto.Signer
	rand  io.Reader
	now   func() time.Time
	hosts []string

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

const caLife = 25 * time.Hour // a run lasts at most 24 h

func newAuthority(hostPorts []string, now func() time.Time, rnd io.Reader) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rnd)
	if err != nil {
		return nil, fmt.Errorf("making the run's CA: %w", err)
	}
	a := &authority{key: key, rand: rnd, now: now, leaves: map[string]*tls.Certificate{}}
	for _, hp := range hostPorts {
		host, _, err := net.SplitHostPort(hp)
		if err != nil {
			return nil, fmt.Errorf("making the run's CA: malformed host %q", hp)
		}
		if !slices.Contains(a.hosts, host) {
			a.hosts = append(a.hosts, host)
		}
	}
	permitted := a.hosts
	if len(permitted) == 0 {
		permitted = []string{"none.sealed.invalid"} // an empty constraint would mean "any"
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Sealed run CA"},
		NotBefore: now().Add(-time.Minute), NotAfter: now().Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: permitted,
	}
	der, err := x509.CreateCertificate(rnd, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the run's CA: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("making the run's CA: %w", err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a, nil
}

// leaf returns a certificate for one of the bound hosts.
func (a *authority) leaf(host string) (*tls.Certificate, error) {
	if !slices.Contains(a.hosts, host) {
		return nil, fmt.Errorf("signing for %s: not a bound host", host)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leaves[host]; c != nil {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), a.rand)
	if err != nil {
		return nil, fmt.Errorf("signing for %s: %w", host, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(a.leaves) + 2)), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: a.now().Add(-time.Minute), NotAfter: a.now().Add(caLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(a.rand, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("signing for %s: %w", host, err)
	}
	c := &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}
	a.leaves[host] = c
	return c, nil
}
