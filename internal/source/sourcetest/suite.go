package sourcetest

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/source"
)

// Canary is in everything that a hostile upstream sends. No error may show it.
const Canary = "canary-5c1d-do-not-show"

// A Source is what every kind of source does.
type Source interface {
	Prepare(ctx context.Context, ref sealed.KeyRef) (handle string, err error)
	Mint(ctx context.Context, ref sealed.KeyRef, handle string) (source.Minted, error)
	Renew(ctx context.Context, handle string) (time.Duration, error)
	Revoke(ctx context.Context, handle string) error
	Check(ctx context.Context) error
	Keep(ctx context.Context) error
	Revocable() bool
}

// A Case is one kind of source for the conformance suite.
type Case struct {
	// Config points the source at a server.
	Config func(address, ca string) sealed.SourceConfig
	// Open opens it with a login that Good accepts.
	Open func(cfg sealed.SourceConfig) (Source, error)
	// Good makes an upstream that behaves: one server's life.
	Good func() http.Handler
	// Ref is what Good has, and Want its value. Empty: any value will do.
	Ref  sealed.KeyRef
	Want string
	// BadRefs are refused before any call, with sealed.ErrInvalid.
	BadRefs []sealed.KeyRef
	// Type is the content type of the upstream's answers. Empty:
	// application/json.
	Type string
	// Retries is set for one whose reads net/http may send again.
	Retries bool
}

// Run checks a source against the contract of the engine, with an upstream
// that behaves and with ones that do not.
func Run(t *testing.T, c Case) {
	t.Helper()
	for _, v := range c.Violations(t) {
		t.Error(v)
	}
}

// Violations returns what is wrong with a source. Run reports it; a control
// that is switched off must show here.
func (c Case) Violations(t testing.TB) []string {
	t.Helper()
	out := c.contract(t)
	for name, use := range map[string]use{"": mints, "newest version: ": tells} {
		for _, v := range c.hostilities(t, use) {
			out = append(out, name+v)
		}
	}
	return append(out, c.strangers()...)
}

// A use of a source says whether it gave anything.
type use func(ctx context.Context, s Source, ref sealed.KeyRef) (gave bool, err error)

func mints(ctx context.Context, s Source, ref sealed.KeyRef) (bool, error) {
	m, err := get(ctx, s, ref)
	return m.Value != nil, err
}

// hostilities checks a use with upstreams that do not behave.
func (c Case) hostilities(t testing.TB, use use) (out []string) {
	t.Helper()
	steps, told := c.steps(use)
	if !told {
		return nil
	}
	if steps == 0 {
		return []string{"the source makes no call"}
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	slots := make(chan struct{}, 24)
	typ := c.Type
	if typ == "" {
		typ = "application/json"
	}
	for _, h := range hostile(typ) {
		for step := range steps {
			slots <- struct{}{}
			all.Go(func() {
				defer func() { <-slots }()
				if problem := c.survive(use, h, step); problem != "" {
					mu.Lock()
					defer mu.Unlock()
					out = append(out, fmt.Sprintf("%s at call %d: %s", h.name, step, problem))
				}
			})
		}
	}
	all.Wait()
	return out
}

// get prepares and mints, as the engine does.
func get(ctx context.Context, s Source, ref sealed.KeyRef) (source.Minted, error) {
	handle, err := s.Prepare(ctx, ref)
	if err != nil {
		return source.Minted{}, err
	}
	return s.Mint(ctx, ref, handle)
}

// reveal returns a copy of a value.
func reveal(m source.Minted) (out string) {
	_ = m.Value.Reveal(func(b []byte) error { out = string(b); return nil })
	return out
}

// start starts a server on loopback and returns the PEM of its certificate.
func start(h http.Handler) (srv *httptest.Server, ca string) {
	srv = httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	return srv, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
}

// A counter counts the calls to a handler.
type counter struct {
	mu    sync.Mutex
	calls int
	last  string // method
	serve func(call int, w http.ResponseWriter, r *http.Request)
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	call := c.calls
	c.calls++
	c.last = r.Method
	c.mu.Unlock()
	// Only who has read the body learns that the client is gone.
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	c.serve(call, w, r)
}

func (c *counter) seen() (calls int, last string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls, c.last
}

// contract checks the source with an upstream that behaves.
func (c Case) contract(t testing.TB) (out []string) {
	t.Helper()
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	good := c.Good()
	n := &counter{serve: func(_ int, w http.ResponseWriter, r *http.Request) { good.ServeHTTP(w, r) }}
	srv, ca := start(n)
	defer srv.Close()
	cfg := c.Config(srv.URL, ca)
	if err := cfg.Validate(); err != nil {
		bad("its configuration is refused: %v", err)
	}
	s, err := c.Open(cfg)
	if err != nil {
		return append(out, fmt.Sprintf("opening: %v", err))
	}
	ctx := context.Background()
	if calls, _ := n.seen(); calls > 0 {
		bad("opening called the upstream")
	}
	for _, ref := range c.BadRefs {
		before, _ := n.seen()
		m, err := get(ctx, s, ref)
		if after, _ := n.seen(); !errors.Is(err, sealed.ErrInvalid) || m.Value != nil || after != before {
			bad("reference %+v: %v, %d calls", ref, err, after-before)
		}
	}
	if err := s.Check(ctx); err != nil {
		bad("checking: %v", err)
	}
	m, err := get(ctx, s, c.Ref)
	if got := reveal(m); err != nil || got == "" || (c.Want != "" && got != c.Want) {
		bad("minting: %v, right value %v", err, got == c.Want)
	}
	if cfg.Kind() == "static" {
		out = append(out, c.versions(ctx, s, m)...)
	}
	if fmt.Sprintf("%v%+v%#v", m.Value, m.Value, m.Value) != strings.Repeat("[REDACTED]", 3) {
		bad("the value prints")
	}
	if s.Revocable() != cfg.Revocable() || s.Revocable() != (m.Handle != "") || (m.Max > 0 && !cfg.Renewable()) {
		bad("revocable %v, handle %q, can be renewed for %s: not what the configuration says", s.Revocable(), m.Handle, m.Max)
	}
	if !cfg.Renewable() {
		if _, err := s.Renew(ctx, m.Handle); !errors.Is(err, sealed.ErrUnavailable) {
			bad("renewing what can't be renewed: %v", err)
		}
	}
	for _, handle := range []string{m.Handle, m.Handle, ""} {
		if err := s.Revoke(ctx, handle); err != nil {
			bad("revoking %q: %v", handle, err)
		}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if m, err := get(gone, s, c.Ref); err == nil || m.Value != nil {
		bad("minting for a caller who is gone: %v", err)
	}
	return out
}

// steps counts the calls of one use; ok is false where the source has no such
// use.
func (c Case) steps(use use) (steps int, ok bool) {
	good := c.Good()
	n := &counter{serve: func(_ int, w http.ResponseWriter, r *http.Request) { good.ServeHTTP(w, r) }}
	srv, ca := start(n)
	defer srv.Close()
	s, err := c.Open(c.Config(srv.URL, ca))
	if err != nil {
		return 0, true
	}
	_, err = use(context.Background(), s, c.Ref)
	calls, _ := n.seen()
	return calls, !errors.Is(err, errNoUse)
}

// strangers checks that only the configured CA is trusted, for every server
// that a source talks to.
func (c Case) strangers() (out []string) {
	n := &counter{serve: func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }}
	srv, ca := start(n)
	defer srv.Close()
	for name, trusted := range map[string]string{"another CA": otherCA, "the system's roots": ""} {
		s, err := c.Open(c.Config(srv.URL, trusted))
		if err != nil {
			out = append(out, fmt.Sprintf("opening with %s: %v", name, err))
			continue
		}
		_, err = get(context.Background(), s, c.Ref)
		if calls, _ := n.seen(); !errors.Is(err, sealed.ErrUnavailable) || calls > 0 {
			out = append(out, fmt.Sprintf("trusting %s: %v, %d calls reached a stranger", name, err, calls))
		}
		if s.Check(context.Background()) == nil {
			out = append(out, "the check trusts a stranger")
		}
	}
	if s, err := c.Open(c.Config(srv.URL, ca)); err == nil {
		if _, err := get(context.Background(), s, c.Ref); err == nil {
			out = append(out, "minted from a server that says nothing")
		}
	}
	return out
}
