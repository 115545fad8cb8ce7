package harness

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Hosts are the names that the upstream always serves.
func Hosts() []string { return []string{"api.test", "admin.test", "other.test"} }

// An Upstream is a DOUBLE of API providers on this machine. It is careless: it
// repeats what it was sent. The last element of a path says what it does:
//
//	echo    repeats method, path, headers and body
//	stream  writes ten lines, each flushed
//	hold    writes one line and waits until the client goes, or Release
//
// Anything else is greeted.
type Upstream struct {
	Addr string // 127.0.0.1:port, for every host
	CA   []byte // PEM

	hosts []string
	srv   *http.Server

	mu       sync.Mutex
	requests []Request
	handlers map[string]http.Handler
	conns    int
	held     []*held
}

// A Request is one that arrived.
type Request struct {
	Host, Method, Path string // Path with its query
	Header             http.Header
	Body               []byte
}

func startUpstream(hosts []string) (*Upstream, error) {
	cert, ca, err := serverCert(hosts)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting upstream: %w", err)
	}
	u := &Upstream{Addr: l.Addr().String(), CA: ca, hosts: hosts, handlers: map[string]http.Handler{}}
	u.srv = &http.Server{
		Handler: u, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0), ConnState: u.count,
	}
	go func() { _ = u.srv.ServeTLS(l, "", "") }() // ends with close
	return u, nil
}

func (u *Upstream) close() { _ = u.srv.Close() }

func (u *Upstream) relay() map[string]string {
	out := map[string]string{}
	for _, h := range u.hosts {
		out[h+":443"] = u.Addr
	}
	return out
}

func (u *Upstream) count(_ net.Conn, s http.ConnState) {
	if s == http.StateNew {
		u.mu.Lock()
		u.conns++
		u.mu.Unlock()
	}
}

// Connections is how many connections were accepted so far.
func (u *Upstream) Connections() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.conns
}

// Requests returns those for a host whose path begins with prefix.
func (u *Upstream) Requests(host, prefix string) []Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []Request
	for _, r := range u.requests {
		if r.Host == host && strings.HasPrefix(r.Path, prefix) {
			out = append(out, r)
		}
	}
	return out
}

// Handle lets h answer for a host as long as the test lasts. Requests are
// kept as always.
func (u *Upstream) Handle(t testing.TB, host string, h http.Handler) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.handlers[host] = h
	t.Cleanup(func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.handlers, host)
	})
}

// Release lets every held request go on that has arrived by now and whose path
// begins with prefix.
func (u *Upstream) Release(prefix string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.held = slices.DeleteFunc(u.held, func(h *held) bool {
		if !strings.HasPrefix(h.path, prefix) {
			return false
		}
		close(h.release)
		return true
	})
}

// A held request waits until release is closed.
type held struct {
	path    string
	release chan struct{}
}

func (u *Upstream) hold(path string) *held {
	u.mu.Lock()
	defer u.mu.Unlock()
	h := &held{path: path, release: make(chan struct{})}
	u.held = append(u.held, h)
	return h
}

// ServeHTTP keeps the request and answers it.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 32<<20))
	if err != nil {
		http.Error(w, "reading body", http.StatusBadRequest)
		return
	}
	req := Request{Host: r.Host, Method: r.Method, Path: r.URL.RequestURI(), Header: r.Header.Clone(), Body: body}
	u.mu.Lock()
	u.requests = append(u.requests, req)
	handler := u.handlers[r.Host]
	u.mu.Unlock()
	if handler != nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
		handler.ServeHTTP(w, r)
		return
	}
	switch path.Base(r.URL.Path) {
	case "echo":
		_, _ = fmt.Fprintf(w, "%s %s\n", req.Method, req.Path)
		_ = req.Header.Write(w)
		_, _ = w.Write(body)
	case "stream":
		for i := range 10 {
			_, _ = fmt.Fprintf(w, "line %d\n", i)
			_ = http.NewResponseController(w).Flush()
		}
	case "hold":
		h := u.hold(r.URL.Path)
		w.Header().Set("Content-Type", "application/x-ndjson") // framed by lines: each comes as it is written
		_, _ = io.WriteString(w, "held here until released\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-h.release:
		}
	default:
		_, _ = fmt.Fprintf(w, "hello from %s\n", r.Host)
	}
}

// serverCert makes a CA that is limited to the hosts, and a certificate.
func serverCert(hosts []string) (cert tls.Certificate, ca []byte, err error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, nil, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Upstream double CA"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		PermittedDNSDomains: slices.Clone(hosts), PermittedDNSDomainsCritical: true,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, caKey.Public(), caKey)
	if err != nil {
		return cert, nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: hosts[0]}, DNSNames: hosts,
		NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), caKey)
	if err != nil {
		return cert, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}), nil
}
