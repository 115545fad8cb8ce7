package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	caTTL   = 365 * 24 * time.Hour
	x509TTL = time.Hour
	jwtTTL  = 5 * time.Minute
	// caMinimum is the rest of its life below which a stored CA is replaced.
	caMinimum = 7 * 24 * time.Hour
	// backdate covers clocks that lag a little.
	backdate  = 10 * time.Second
	stateFile = "ca.pem"
)

// ca holds the two signing keys. They are never logged or returned.
type ca struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	jwtKey *ecdsa.PrivateKey
	kid    string
}

// openCA reads the CA from dir, or makes one and writes it there.
func openCA(dir string, td spiffeid.TrustDomain, now time.Time) (*ca, error) {
	if dir == "" {
		return newCA(td, now)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w", err)
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("examining state directory: %w", err)
	}
	if !st.IsDir() || !ownedByCaller(st) || st.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("opening state directory %s: others may change it", dir)
	}
	path := filepath.Join(dir, stateFile)
	c, err := readCA(path)
	if err == nil && c.cert.NotAfter.Sub(now) >= caMinimum && now.After(c.cert.NotBefore) {
		return c, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if c, err = newCA(td, now); err != nil {
		return nil, err
	}
	return c, c.write(path)
}

func newCA(td spiffeid.TrustDomain, now time.Time) (*ca, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating CA key: %w", err)
	}
	jwtKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating JWT key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"Sealed embedded authority"}},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(caTTL),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:     true, BasicConstraintsValid: true,
		URIs: []*url.URL{td.ID().URL()}, // X509-SVID §3.1: a signing certificate has no path
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parsing CA certificate: %w", err)
	}
	return assemble(cert, key, jwtKey)
}

func assemble(cert *x509.Certificate, key, jwtKey *ecdsa.PrivateKey) (*ca, error) {
	pub, err := x509.MarshalPKIXPublicKey(jwtKey.Public())
	if err != nil {
		return nil, fmt.Errorf("encoding JWT key: %w", err)
	}
	sum := sha256.Sum256(pub)
	return &ca{cert: cert, key: key, jwtKey: jwtKey, kid: hex.EncodeToString(sum[:16])}, nil
}

// write replaces the state file atomically.
func (c *ca) write(path string) error {
	var buf bytes.Buffer
	_ = pem.Encode(&buf, &pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
	for _, k := range []*ecdsa.PrivateKey{c.key, c.jwtKey} {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return fmt.Errorf("encoding CA keys: %w", err)
		}
		_ = pem.Encode(&buf, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	f, err := os.CreateTemp(filepath.Dir(path), stateFile+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing CA: %w", err)
	}
	_, err = f.Write(buf.Bytes())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing CA: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

func readCA(path string) (*ca, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("reading CA: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading CA: %w", err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm() != 0o600 || !ownedByCaller(st) || st.Size() > 64<<10 {
		return nil, fmt.Errorf("reading CA: %s is not a private file of this user", path)
	}
	data := make([]byte, st.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("reading CA: %w", err)
	}
	return parseCA(data)
}

func ownedByCaller(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid()
}

// errState never carries bytes of the file.
var errState = errors.New("reading CA: malformed state file")

func parseCA(data []byte) (*ca, error) {
	var cert *x509.Certificate
	var keys []*ecdsa.PrivateKey
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type == "CERTIFICATE" && cert == nil {
			parsed, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, errState
			}
			cert = parsed
			continue
		}
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		key, ok := parsed.(*ecdsa.PrivateKey)
		if err != nil || !ok || key.Curve != elliptic.P256() {
			return nil, errState
		}
		keys = append(keys, key)
	}
	if cert == nil || len(keys) != 2 || !keys[0].PublicKey.Equal(cert.PublicKey) {
		return nil, errState
	}
	return assemble(cert, keys[0], keys[1])
}

// bundle has the CA's creation time as its sequence number, so that it rises
// with every CA and stays with a stored one.
func (c *ca) bundle(td spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	b := spiffebundle.New(td)
	b.AddX509Authority(c.cert)
	if err := b.AddJWTAuthority(c.kid, c.jwtKey.Public()); err != nil {
		return nil, fmt.Errorf("building bundle: %w", err)
	}
	b.SetSequenceNumber(uint64(c.cert.NotBefore.Unix()))
	b.SetRefreshHint(refreshHint)
	return b, nil
}

// An issued is an X.509-SVID on its way to its owner.
type issued struct {
	chain []byte // DER
	key   []byte // PKCS#8 DER
}

// issueX509 makes a key pair and certifies it for the entry's ID.
func (c *ca) issueX509(e Entry, now time.Time) (issued, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issued{}, fmt.Errorf("generating SVID key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return issued{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"Sealed embedded authority"}},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(x509TTL),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{e.ID.URL()}, DNSNames: e.DNSNames, BasicConstraintsValid: true,
	}
	chain, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	if err != nil {
		return issued{}, fmt.Errorf("signing SVID: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return issued{}, fmt.Errorf("encoding SVID key: %w", err)
	}
	return issued{chain: chain, key: der}, nil
}

// issueJWT signs a JWT-SVID (RFC 7515 compact form, ES256 as in RFC 7518 §3.4:
// the signature is R ‖ S, 32 bytes each).
func (c *ca) issueJWT(id spiffeid.ID, audience []string, now time.Time) (string, error) {
	header, err := json.Marshal(map[string]string{"alg": "ES256", "kid": c.kid, "typ": "JWT"})
	if err != nil {
		return "", fmt.Errorf("encoding JWT header: %w", err)
	}
	claims, err := json.Marshal(map[string]any{
		"sub": id.String(), "aud": audience,
		"iat": now.Unix(), "exp": now.Add(jwtTTL).Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("encoding JWT claims: %w", err)
	}
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, c.jwtKey, digest[:])
	if err != nil {
		return "", fmt.Errorf("signing JWT: %w", err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("generating serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
