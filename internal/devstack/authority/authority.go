// Package authority is a SPIFFE authority for one machine: a Workload API, a
// bundle endpoint and a local CA around the attestor that SPIRE would use.
//
// # Idea
//
// Demonstrations and single machines have no SPIRE. They run this instead, and
// nothing else changes: init speaks the same Workload API, the same attestor
// judges it, the engine reads the same bundle endpoint. What changes is the
// trust domain, which is always sealed.ReservedTrustDomain.
//
// # Guarantee
//
// An SVID is issued only to a process that the attestor accepted at the moment
// of the call, and only for an entry whose selectors it has, all of them. The
// process is pinned by a pidfd from the moment it connected; a relayed
// connection is judged as the process that opened it.
//
// # What it does not guarantee
//
// Whoever can read the state directory, which is the user who runs it or root,
// is the CA. There is no node attestation, no revocation and no rotation of
// the CA within its life. A production mount refuses its trust domain (R25).
//
// # Formats
//
// The Workload API is that of the SPIFFE standards, with X.509-SVIDs of one
// hour and JWT-SVIDs of five minutes (ES256). The state file ca.pem holds the
// CA certificate, the CA key and the JWT key as PEM blocks, with mode 0600.
package authority

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sealed.dev/sealed/internal/sealed"
)

// ReservedTrustDomain is the only trust domain this authority serves.
const ReservedTrustDomain = sealed.ReservedTrustDomain

// refreshHint tells readers of the bundle how often to look again.
const refreshHint = time.Minute

// An Attestor tells the selectors of a pinned process; *spireattestor.Attestor
// is one. No selectors and no error means: no workload of ours.
type Attestor interface {
	Attest(ctx context.Context, pid int) ([]string, error)
}

// An Entry gives an identity to every process that has all its selectors,
// spelled as the attestor returns them ("tenant:acme").
type Entry struct {
	ID        spiffeid.ID
	Selectors []string
	// DNSNames go into the X.509-SVID, as those of a SPIRE entry do. The engine
	// reads the attested isolation from them.
	DNSNames []string
}

// Config is what New needs.
type Config struct {
	// Dir keeps the CA across restarts; empty keeps it in memory. It is made
	// with mode 0700 and must belong to the caller.
	Dir string
	// TrustDomain is ReservedTrustDomain; the zero value means it too.
	TrustDomain spiffeid.TrustDomain
	// Attestor is required.
	Attestor Attestor
	// Entries are fixed for the authority's life.
	Entries []Entry
	// Clock is the source of time; nil means time.Now.
	Clock func() time.Time
	// Log receives refusals; nil discards.
	Log *slog.Logger
}

// An Authority issues SVIDs. All methods are safe for concurrent use.
type Authority struct {
	td       spiffeid.TrustDomain
	attestor Attestor
	entries  []Entry
	clock    func() time.Time
	log      *slog.Logger
	ca       *ca
	bundle   *spiffebundle.Bundle
}

// New loads the CA from cfg.Dir, or makes one. Errors of the configuration
// wrap sealed.ErrInvalid.
func New(cfg Config) (*Authority, error) {
	if cfg.TrustDomain.IsZero() {
		cfg.TrustDomain = spiffeid.RequireTrustDomainFromString(ReservedTrustDomain)
	}
	if cfg.TrustDomain.Name() != ReservedTrustDomain {
		return nil, &sealed.FieldError{Field: "trust_domain", Reason: "the embedded authority serves " + ReservedTrustDomain + " only"}
	}
	if cfg.Attestor == nil {
		return nil, &sealed.FieldError{Field: "attestor", Reason: "required"}
	}
	for _, e := range cfg.Entries {
		if err := e.validate(cfg.TrustDomain); err != nil {
			return nil, err
		}
	}
	a := &Authority{td: cfg.TrustDomain, attestor: cfg.Attestor, entries: slices.Clone(cfg.Entries), clock: cfg.Clock, log: cfg.Log}
	if a.clock == nil {
		a.clock = time.Now
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if a.ca, err = openCA(cfg.Dir, a.td, a.clock()); err != nil {
		return nil, fmt.Errorf("opening authority: %w", err)
	}
	if a.bundle, err = a.ca.bundle(a.td); err != nil {
		return nil, fmt.Errorf("opening authority: %w", err)
	}
	return a, nil
}

// validate demands what makes an entry safe: an ID of this trust domain, and
// selectors that name what the ID names.
func (e Entry) validate(td spiffeid.TrustDomain) error {
	if !e.ID.MemberOf(td) {
		return &sealed.FieldError{Field: "entries", Reason: "SPIFFE ID outside the trust domain"}
	}
	_, tenant, agent, err := sealed.ParseAgentSPIFFEID(e.ID.String())
	if err != nil {
		return err
	}
	for _, want := range []string{"tenant:" + string(tenant), "agent:" + string(agent)} {
		if !slices.Contains(e.Selectors, want) {
			return &sealed.FieldError{Field: "entries", Reason: "an entry requires the selectors of its own tenant and agent"}
		}
	}
	for _, key := range []string{"init_sha256:", "isolation:"} {
		if !slices.ContainsFunc(e.Selectors, func(s string) bool { return strings.HasPrefix(s, key) }) {
			return &sealed.FieldError{Field: "entries", Reason: "an entry requires a selector " + key}
		}
	}
	return nil
}

// errNoIdentity is deliberately the same for a stranger, a refused process and
// a process without an entry.
var errNoIdentity = errors.New("no identity issued")

// identities attests the peer and returns the matching entries, at least one
// and one per ID.
func (a *Authority) identities(ctx context.Context, p *peerProcess) ([]Entry, error) {
	if !p.alive() {
		return nil, errNoIdentity
	}
	selectors, err := a.attestor.Attest(ctx, p.pid)
	if err != nil {
		a.log.WarnContext(ctx, "workload refused", "pid", p.pid, "error", err)
		return nil, errNoIdentity
	}
	// Alive before and after: the number meant this process all the while.
	if !p.alive() {
		return nil, errNoIdentity
	}
	var matching []Entry
	for _, e := range a.entries {
		known := slices.ContainsFunc(matching, func(m Entry) bool { return m.ID == e.ID })
		if containsAll(selectors, e.Selectors) && !known {
			matching = append(matching, e)
		}
	}
	if len(matching) == 0 {
		return nil, errNoIdentity
	}
	return matching, nil
}

func containsAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// Bundle returns a copy of the trust bundle, with X.509 and JWT authorities.
func (a *Authority) Bundle() *spiffebundle.Bundle { return a.bundle.Clone() }

// BundleHandler serves the bundle as SPIFFE Trust Domain and Bundle §4 defines
// it; the keys with use jwt-svid are also what a reader of JWKS needs. It is
// plain HTTP: the caller wraps it in TLS.
func (a *Authority) BundleHandler() http.Handler {
	h, err := federation.NewHandler(a.td, a.bundle)
	if err != nil { // only options can fail, and there are none
		return http.NotFoundHandler()
	}
	return h
}
