package devstack

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"time"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	certLife = 5 * 365 * 24 * time.Hour
)

// devCA signs the certificates of the stack's own listeners and nothing else:
// it is constrained to loopback addresses, so that a stack whose CA somebody
// adds to a trust store can't speak for any other host.
type devCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// openCA reads the CA of the stack, or makes it: the certificate public, the
// key with mode 0600 in the private directory.
func openCA(l layout, now time.Time) (*devCA, error) {
	keyPEM, err := os.ReadFile(l.private("ca-key.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return makeCA(l, now)
	}
	if err != nil {
		return nil, fmt.Errorf("opening CA: %w", err)
	}
	certPEM, err := os.ReadFile(l.ca())
	if err != nil {
		return nil, fmt.Errorf("opening CA: %w", err)
	}
	ca := &devCA{pem: certPEM}
	if ca.cert, err = parseCert(certPEM); err != nil {
		return nil, fmt.Errorf("opening CA: %w", err)
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("opening CA: the key is no PEM")
	}
	if ca.key, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
		return nil, errors.New("opening CA: malformed key")
	}
	return ca, nil
}

func makeCA(l layout, now time.Time) (*devCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making CA: %w", err)
	}
	loopback4 := &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}
	loopback6 := &net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)}
	t, err := certTemplate("Sealed development CA", now, caLife)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign
	t.PermittedDNSDomainsCritical = true
	t.PermittedDNSDomains = []string{"localhost"}
	t.PermittedIPRanges = []*net.IPNet{loopback4, loopback6}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making CA: %w", err)
	}
	ca := &devCA{key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("making CA: %w", err)
	}
	if err := writeFile(l.ca(), ca.pem, 0o644); err != nil {
		return nil, err
	}
	return ca, writeKey(l.private("ca-key.pem"), key)
}

// issue writes <name>-cert.pem and <name>-key.pem for a listener on 127.0.0.1.
func (ca *devCA) issue(l layout, name string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("issuing certificate: %w", err)
	}
	t, err := certTemplate("Sealed development "+name, now, certLife)
	if err != nil {
		return err
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1).To4()}
	t.DNSNames = []string{"localhost"}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, key.Public(), ca.key)
	if err != nil {
		return fmt.Errorf("issuing certificate: %w", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := writeFile(l.private(name+"-cert.pem"), cert, 0o600); err != nil {
		return err
	}
	return writeKey(l.private(name+"-key.pem"), key)
}

// certTemplate starts an hour ago, for machines whose clocks differ.
func certTemplate(name string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("making serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
	}, nil
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding key: %w", err)
	}
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func parseCert(certPEM []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return nil, errors.New("parsing certificate: no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}
