// Package proxy delivers credentials inside a sandbox: it swaps a run's
// placeholder for the value, in bound requests only, on their way out.
//
// # What it serves, on one loopback port
//
//   - http://127.0.0.1:PORT/b/<id>/…: base-URL endpoint of a binding.
//   - CONNECT host:port: for a bound host TLS is terminated with a per-run CA
//     and each request is checked; other hosts are tunnelled when the network
//     mode allows it.
//   - /sealed/…: the agent's side door, given by the caller.
//
// # Guarantee
//
// A value is written into one header of a request that was parsed,
// canonicalised and rebuilt here, whose CONNECT authority, SNI and Host name
// the bound host, whose method and path the binding allows, that carried the
// run's own placeholder and no other credential, over TLS verified with the
// caller's roots. Redirects are not followed.
//
// What the agent sends on such a request (headers, body) passes the redactor
// before the value is put in: a value that the agent holds by env delivery, a
// token or a placeholder does not go to a model as a prompt. In a URL it is
// refused. Answers pass the redactor, too, and the agent, who reads them and
// may have chosen what they repeat, learns nothing but whole matches: what is
// held back depends on the position in the stream only (R22). The last few
// hundred bytes of an answer come when it goes on or ends, or, in an event
// stream or JSON lines, with the end of their event or line. An answer that
// pauses for ten minutes is cut.
//
// # What it does not guarantee
//
// An allowed API can still be used as a covert channel. An opaque tunnel to an
// unbound host can't be looked into, and neither can a request body that the
// agent has compressed. A value that an upstream spreads over several events of
// a stream, or over far more bytes than it has, is found too late to be masked
// whole.
package proxy

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// Event types that the proxy reports.
const (
	EventUsed        = "proxy.used"
	EventDenied      = "egress.denied"
	EventForeignAuth = "egress.foreign_auth"
	EventAllowed     = "egress.allowed"
)

// A Config makes a Proxy. Dial, Roots, Set and ControlToken are required.
type Config struct {
	// Dial opens a connection to host:port outside the sandbox. It enforces
	// the run's list again.
	Dial  func(ctx context.Context, addr string) (net.Conn, error)
	Roots *x509.CertPool // the only roots for upstream TLS
	// Hosts are the host:port of every binding the run may ever get. They are
	// never tunnelled, and the per-run CA can sign for nothing else.
	Hosts        []string
	Network      string   // a sealed.Network mode
	Allow        []string // hosts of mode allowlist, as in sealed.SandboxSpec
	Set          *redact.Set
	Event        func(typ, key, detail string) // may be nil; detail is a host or a fixed code
	Redacted     func([]redact.Count)          // may be nil; hears of what was masked in both directions
	Control      http.Handler                  // may be nil
	ControlToken string
	Clock        func() time.Time // nil: time.Now
	Rand         io.Reader        // nil: crypto/rand
}

// A Binding is one live way to use one value.
type Binding struct {
	ID          string // path segment of the endpoint: KEY or KEY.N
	Key         sealed.KeyName
	Rule        sealed.Binding
	Placeholder string
	Value       *secret.Value
}

// A live binding, with the context that its requests run under.
type live struct {
	Binding
	ctx  context.Context
	stop context.CancelFunc
}

// A Proxy is safe for concurrent use.
type Proxy struct {
	cfg       Config
	ca        *authority
	transport *http.Transport
	checks    []check
	slots     chan struct{} // bounds the requests under way
	idle      time.Duration // see idleLimit
	plain     bool          // switches request scrubbing off, for a test
	ordinary  bool          // switches the steady hold-back off, for a test

	mu       sync.Mutex
	bindings map[string]*live // by ID
	frozen   bool
	thaw     context.Context // ends when the proxy is frozen
	freeze   context.CancelFunc
	port     string
}

// Limits of a run.
const (
	maxInFlight = 64
	maxHeader   = 64 << 10
	maxBody     = 64 << 20
	// maxHeld is the longest request body that is scrubbed as a whole.
	maxHeld = 1 << 20
	// idleLimit is how long an upstream may pause within an answer.
	idleLimit = 10 * time.Minute
)

// New makes a proxy with no binding.
func New(cfg Config) (*Proxy, error) {
	if cfg.Dial == nil || cfg.Roots == nil || cfg.Set == nil || cfg.ControlToken == "" {
		return nil, errors.New("making proxy: Dial, Roots, Set and ControlToken are required")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Event == nil {
		cfg.Event = func(string, string, string) {}
	}
	if cfg.Redacted == nil {
		cfg.Redacted = func([]redact.Count) {}
	}
	ca, err := newAuthority(cfg.Hosts, cfg.Clock, cfg.Rand)
	if err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, ca: ca, bindings: map[string]*live{}, checks: requestChecks(), slots: make(chan struct{}, maxInFlight), idle: idleLimit}
	p.thaw, p.freeze = context.WithCancel(context.Background())
	p.transport = &http.Transport{
		DialTLSContext: p.dialUpstream,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("plain HTTP is not used")
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		ResponseHeaderTimeout:  2 * time.Minute,
		MaxResponseHeaderBytes: maxHeader,
		Protocols:              onlyHTTP1(),
	}
	return p, nil
}

func onlyHTTP1() *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(true)
	return &p
}

// dialUpstream opens verified TLS to a bound host.
func (p *Proxy) dialUpstream(ctx context.Context, _, addr string) (net.Conn, error) {
	raw, err := p.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	conn := tls.Client(raw, &tls.Config{RootCAs: p.cfg.Roots, ServerName: host, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Time: p.cfg.Clock})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("checking the certificate of %s: %w", host, err), raw.Close())
	}
	return conn, nil
}

// CA returns the certificate of the per-run CA, in PEM.
func (p *Proxy) CA() []byte { return p.ca.pem }

// Set adds or replaces a binding. Its host must be one of Config.Hosts.
func (p *Proxy) Set(b Binding) error {
	if b.ID == "" || b.Placeholder == "" || b.Value == nil {
		return fmt.Errorf("setting binding %q: id, placeholder and value are required: %w", b.ID, sealed.ErrInvalid)
	}
	if !slices.Contains(p.cfg.Hosts, b.Rule.HostPort()) {
		return fmt.Errorf("setting binding %q: host %s was not announced: %w", b.ID, b.Rule.Host, sealed.ErrInvalid)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.bindings[b.ID]; old != nil {
		old.stop()
	}
	l := &live{Binding: b}
	l.ctx, l.stop = context.WithCancel(context.Background())
	p.bindings[b.ID] = l
	return nil
}

// Remove drops every binding of a key and cuts its requests under way.
func (p *Proxy) Remove(key sealed.KeyName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, l := range p.bindings {
		if l.Key == key {
			l.stop()
			delete(p.bindings, id)
		}
	}
	p.transport.CloseIdleConnections()
}

// Freeze stops everything that goes out, and cuts what is under way, until it
// is lifted.
func (p *Proxy) Freeze(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on == p.frozen {
		return
	}
	p.frozen = on
	if on {
		p.freeze()
		return
	}
	p.thaw, p.freeze = context.WithCancel(context.Background())
}

// leave returns a context that ends with the request, with a freeze, and with
// the binding (nil for none); ok is false while frozen.
func (p *Proxy) leave(ctx context.Context, l *live) (context.Context, context.CancelFunc, bool) {
	p.mu.Lock()
	frozen, thaw := p.frozen, p.thaw
	p.mu.Unlock()
	if frozen {
		return nil, nil, false
	}
	ctx, cancel := context.WithCancel(ctx)
	stops := []func() bool{context.AfterFunc(thaw, cancel)}
	if l != nil {
		stops = append(stops, context.AfterFunc(l.ctx, cancel))
	}
	return ctx, func() {
		for _, s := range stops {
			s()
		}
		cancel()
	}, true
}

// byID returns a live binding.
func (p *Proxy) byID(id string) *live {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bindings[id]
}

// byHost returns the live bindings of a host:port, ordered by ID.
func (p *Proxy) byHost(hostPort string) []*live {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*live
	for _, l := range p.bindings {
		if l.Rule.HostPort() == hostPort {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b *live) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Serve serves on a loopback listener until ctx ends.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return fmt.Errorf("serving the proxy: %w", err)
	}
	p.mu.Lock()
	p.port = port
	p.mu.Unlock()
	srv := &http.Server{
		Handler: http.HandlerFunc(p.serve), MaxHeaderBytes: maxHeader, ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: log.New(io.Discard, "", 0), Protocols: onlyHTTP1(),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the proxy: %w", err)
	}
	return nil
}

// serve routes one request of the loopback port.
func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect {
		p.connect(w, r)
		return
	}
	if r.URL.IsAbs() || r.URL.Host != "" {
		p.deny(w, EventDenied, "", "plain_http", http.StatusForbidden, "plain http:// is not proxied; use https://, or the base URL of the key")
		return
	}
	if err := p.local(r); err != nil {
		p.deny(w, EventDenied, "", "cross_origin", http.StatusForbidden, err.Error())
		return
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/sealed/"):
		p.control(w, r)
	case strings.HasPrefix(r.URL.Path, "/b/"):
		p.endpoint(w, r)
	default:
		refuse(w, http.StatusNotFound, "nothing here; a key's base URL is /b/KEY/")
	}
}

// local refuses what a web page or a rebound name would send (R15).
func (p *Proxy) local(r *http.Request) error {
	p.mu.Lock()
	port := p.port
	p.mu.Unlock()
	if r.Host != "127.0.0.1:"+port && r.Host != "localhost:"+port {
		return errors.New("the Host header must name this endpoint")
	}
	if r.Header.Get("Origin") != "" {
		return errors.New("requests from web pages are refused")
	}
	if s := r.Header.Get("Sec-Fetch-Site"); s != "" && s != "none" && s != "same-origin" {
		return errors.New("requests from other sites are refused")
	}
	return nil
}

func (p *Proxy) control(w http.ResponseWriter, r *http.Request) {
	got := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if p.cfg.Control == nil || subtle.ConstantTimeCompare([]byte(got), []byte(p.cfg.ControlToken)) != 1 {
		refuse(w, http.StatusForbidden, "wants Authorization: Bearer $SEALED_TOKEN")
		return
	}
	p.cfg.Control.ServeHTTP(w, r)
}

// endpoint serves /b/<id>/<rest>.
func (p *Proxy) endpoint(w http.ResponseWriter, r *http.Request) {
	id, _, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/b/"), "/")
	l := p.byID(id)
	if l == nil {
		refuse(w, http.StatusServiceUnavailable, "no live credential for this binding; see `sealed keys`")
		return
	}
	rest := strings.TrimPrefix(r.URL.EscapedPath(), "/b/"+id)
	if rest == "" {
		rest = "/"
	}
	p.forward(w, r, rest, []*live{l})
}

// deny reports an event and refuses.
func (p *Proxy) deny(w http.ResponseWriter, event, key, detail string, status int, msg string) {
	p.cfg.Event(event, key, detail)
	refuse(w, status, msg)
}

// refuse answers in the shape that API clients print.
func refuse(w http.ResponseWriter, status int, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Connection", "close")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "{\"type\":\"error\",\"error\":{\"type\":\"sealed\",\"message\":%q}}\n", "sealed: "+msg)
}
