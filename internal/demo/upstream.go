package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// upstream is a DOUBLE of two API providers, api.demo.test and
// admin.demo.test, on this machine. It is careless: it repeats the credential
// that it was sent.
type upstream struct {
	addr string
	ca   []byte // PEM

	mu   sync.Mutex
	seen map[string][]string // host → credentials, in order
	held chan struct{}       // closed when the first /v1/hold has arrived
	once sync.Once
}

func startUpstream(ctx context.Context) (*upstream, error) {
	u := &upstream{seen: map[string][]string{}, held: make(chan struct{})}
	cert, ca, err := selfSigned("api.demo.test", "admin.demo.test")
	if err != nil {
		return nil, err
	}
	u.ca = ca
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the demo's API: %w", err)
	}
	u.addr = l.Addr().String()
	srv := &http.Server{Handler: u, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ReadHeaderTimeout: 5 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	go func() {
		if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			_ = l.Close()
		}
	}()
	return u, nil
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	u.mu.Lock()
	u.seen[r.Host] = append(u.seen[r.Host], key)
	u.mu.Unlock()
	if r.URL.Path != "/v1/hold" {
		_, _ = fmt.Fprintf(w, "hello, your token is %s\n", key)
		return
	}
	u.once.Do(func() { close(u.held) })
	_, _ = io.WriteString(w, "held\n")
	_ = http.NewResponseController(w).Flush()
	select {
	case <-r.Context().Done():
	case <-time.After(time.Minute):
	}
}

// saw reports whether a host got exactly this credential, and no other.
func (u *upstream) saw(host, key string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, k := range u.seen[host] {
		if k != key {
			return false
		}
	}
	return len(u.seen[host]) > 0
}

func selfSigned(names ...string) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("making the demo's certificate: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Sealed demo API"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, PermittedDNSDomains: names, PermittedDNSDomainsCritical: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("making the demo's certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
