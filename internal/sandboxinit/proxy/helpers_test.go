package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	canary      = "cnry_4f9a0b7c1d2e8f3a5b6c7d8e9f0a1b2c"
	placeholder = "sealed-00112233445566778899aabbccddeeff00112233"
	boundHost   = "api.bound.test"
)

// A rig is a proxy in front of a real TLS upstream that names itself boundHost.
type rig struct {
	t      *testing.T
	p      *Proxy
	addr   string
	mu     sync.Mutex
	events []string
	dials  []string
	seen   []*http.Request // as the upstream got them
}

func newRig(t *testing.T, change func(*Config), upstream http.HandlerFunc) *rig {
	t.Helper()
	r := &rig{t: t}
	if upstream == nil {
		upstream = func(w http.ResponseWriter, req *http.Request) { _, _ = io.WriteString(w, "hello") }
	}
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.seen = append(r.seen, req.Clone(context.Background()))
		r.mu.Unlock()
		upstream(w, req)
	}))
	ca, err := newAuthority([]string{boundHost + ":443", "other.test:443"}, time.Now, testRand{})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.leaf(boundHost)
	if err != nil {
		t.Fatal(err)
	}
	up.TLS = &tls.Config{Certificates: []tls.Certificate{*leaf}}
	up.StartTLS()
	t.Cleanup(up.Close)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.pem)
	set := redact.NewSet()
	if err := set.Add("API_KEY", []byte(canary), redact.Options{}); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Roots: roots, Set: set, ControlToken: "control-token", Network: sealed.NetworkNone, Hosts: []string{boundHost + ":443"},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			r.mu.Lock()
			r.dials = append(r.dials, addr)
			r.mu.Unlock()
			return (&net.Dialer{}).DialContext(ctx, "tcp", up.Listener.Addr().String())
		},
		Event: func(typ, key, detail string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, typ+" "+key+" "+detail)
		},
	}
	if change != nil {
		change(&cfg)
	}
	if r.p, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	if err := r.p.Set(Binding{ID: "API_KEY", Key: "API_KEY", Placeholder: placeholder, Value: secret.New([]byte(canary)),
		Rule: sealed.Binding{Host: boundHost, Methods: []string{"GET", "POST"}, Paths: []string{"/v1/**"}, Header: "Authorization", Format: "Bearer {}"}}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.p.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	r.addr = l.Addr().String()
	for {
		r.p.mu.Lock()
		ready := r.p.port != ""
		r.p.mu.Unlock()
		if ready {
			return r
		}
	}
}

type testRand struct{}

func (testRand) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i*7 + len(p))
	}
	return len(p), nil
}

// without switches a check off by name: the negative control.
func (r *rig) without(name string) {
	r.p.checks = slices.DeleteFunc(slices.Clone(r.p.checks), func(c check) bool { return c.name == name })
}

// raw sends bytes to the loopback port and returns the status line and body.
func (r *rig) raw(request string) (status int, body string) {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return exchangeRaw(r.t, conn, strings.ReplaceAll(request, "ADDR", r.addr))
}

func exchangeRaw(t *testing.T, conn net.Conn, request string) (int, string) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		return 0, err.Error()
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// connect opens a CONNECT and then TLS with the given SNI.
func (r *rig) connect(authority, sni string) (*tls.Conn, int) {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, &http.Request{Method: "CONNECT"})
	if err != nil {
		return nil, 0
	}
	if resp.StatusCode != 200 {
		return nil, resp.StatusCode
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.p.CA())
	c := tls.Client(buffered{conn, br}, &tls.Config{RootCAs: roots, ServerName: sni, InsecureSkipVerify: sni == ""}) //nolint:gosec // the test sends no SNI on purpose
	if err := c.Handshake(); err != nil {
		return nil, -1
	}
	return c, 200
}

func (r *rig) leaked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.seen, func(q *http.Request) bool { return strings.Contains(q.Header.Get("Authorization"), canary) })
}

func (r *rig) upstreamSaw() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.seen)
}
