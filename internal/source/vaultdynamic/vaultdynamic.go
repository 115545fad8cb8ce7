// Package vaultdynamic is the source of credentials that a Vault makes on
// demand and takes back: database, cloud, PKI and the like.
//
// # Idea
//
// A lease id is known only after the credential exists, too late to survive a
// crash in between. So each credential gets a token of its own: Prepare creates
// a child of the source's token and returns its accessor, which the engine
// stores; Mint creates the credential with that child; Revoke revokes the child
// by its accessor, and Vault revokes every lease of it, whether or not anybody
// learned their ids.
//
// A reference is a path below the mount, read; or, with parameters, as in
// "issue/ci?common_name=ci.example.com", written to with them as the body. The
// handle is the child's accessor and, once it is known, the id of the lease:
// "ACCESSOR LEASE". Renewing prolongs the lease, never beyond the child.
//
// The source's token needs "update" on auth/token/create,
// auth/token/revoke-accessor, auth/token/renew-self and, for leases that can be
// renewed, sys/leases/renew; and on <mount>/<path> "read" without parameters
// and "update" with them. Where a path without parameters only takes writes, both:
// without "read" the upstream answers 403 and not the 405 that tells so. The
// child inherits its policies and lives an hour at most.
//
// A child ends with its parent. With a login by AppRole or JWT, give the role a
// period of an hour or more: a token that a restart of the engine leaves behind
// is not renewed, and takes what it made with it when it ends.
//
// # What it does not guarantee
//
// A path that answers without a lease (PKI without generate_lease, ssh/sign)
// can't be taken back, and is refused after the fact: the child is revoked, what was
// signed stays signed. The token of a child is kept in memory between Prepare
// and Mint only; a crash there leaves a token that nobody knows, for an hour.
//
// An upstream that dies while it revokes a child may forget the child and keep
// its leases until they end, an hour at most: afterwards it calls the child unknown, which
// counts as revoked.
package vaultdynamic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

const (
	// MaxTTL bounds every credential of this source.
	MaxTTL = time.Hour
	// prepared children that nobody minted with are forgotten after this.
	maxPrepared = time.Minute
	// what a child may have lost of its hour when its credential exists.
	prepareMargin = 10 * time.Second
)

// A Source creates credentials at one mount. It is safe for concurrent use.
type Source struct {
	vault *source.Vault
	now   func() time.Time

	mu       sync.Mutex
	children map[string]child // by accessor
}

// child is a token between Prepare and Mint.
type child struct {
	token *secret.Value
	at    time.Time
}

// Open makes a source and takes ownership of credential; now nil means
// time.Now. It makes no call. The error matches sealed.ErrInvalid.
func Open(cfg sealed.SourceConfig, credential *secret.Value, now func() time.Time) (*Source, error) {
	if now == nil {
		now = time.Now
	}
	v, err := source.NewVault(cfg, credential, false, now)
	if err != nil {
		return nil, err
	}
	return &Source{vault: v, now: now, children: make(map[string]child)}, nil
}

// Prepare creates the child token and returns its accessor, to be stored
// before Mint.
func (s *Source) Prepare(ctx context.Context, ref sealed.KeyRef) (string, error) {
	if _, _, err := s.target(ref); err != nil {
		return "", err
	}
	var answer struct {
		Auth struct {
			Token    string `json:"client_token"`
			Accessor string `json:"accessor"`
		} `json:"auth"`
	}
	ttl := MaxTTL.String()
	call := source.Call{Method: http.MethodPost, Path: "auth/token/create", Body: map[string]any{
		"ttl": ttl, "explicit_max_ttl": ttl, "no_default_policy": true, "renewable": false, "type": "service", "display_name": "sealed-grant",
	}}
	if err := s.vault.Do(ctx, call, &answer); err != nil {
		return "", fmt.Errorf("creating child token: %w", err)
	}
	if answer.Auth.Token == "" || answer.Auth.Accessor == "" || strings.ContainsAny(answer.Auth.Accessor, " \r\n") {
		return "", fmt.Errorf("creating child token: the answer has none: %w", sealed.ErrUnavailable)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	s.children[answer.Auth.Accessor] = child{token: secret.New([]byte(answer.Auth.Token)), at: s.now()}
	return answer.Auth.Accessor, nil
}

// target returns the path and the parameters of a reference.
func (s *Source) target(ref sealed.KeyRef) (path string, params map[string]string, err error) {
	if err := source.Unversioned(ref); err != nil {
		return "", nil, err
	}
	path, params, err = source.SplitRef(ref.Path)
	if err != nil {
		return "", nil, err
	}
	path, err = s.vault.MountPath("", path)
	return path, params, err
}

// forget drops children whose Mint never came. The caller holds mu.
func (s *Source) forget() {
	for accessor, c := range s.children {
		if s.now().Sub(c.at) > maxPrepared {
			c.token.Destroy()
			delete(s.children, accessor)
		}
	}
}

// take returns the child of a handle, once.
func (s *Source) take(handle string) *secret.Value {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.children[handle]
	delete(s.children, handle)
	return c.token
}

// answer is what a path that creates a credential returns.
type answer struct {
	LeaseID       string                     `json:"lease_id"`
	LeaseDuration int64                      `json:"lease_duration"`
	Renewable     bool                       `json:"renewable"`
	Data          map[string]json.RawMessage `json:"data"`
}

// Mint creates the credential with the child of handle and picks ref.Field. A
// handle works once. After an error the caller revokes the handle.
func (s *Source) Mint(ctx context.Context, ref sealed.KeyRef, handle string) (source.Minted, error) {
	token := s.take(handle)
	if token == nil {
		return source.Minted{}, fmt.Errorf("creating credential: its token is gone: %w", sealed.ErrUnavailable)
	}
	defer token.Destroy()
	got, err := s.create(ctx, ref, token)
	if err != nil {
		return source.Minted{}, fmt.Errorf("creating credential: %w", err)
	}
	defer source.Wipe(got.Data)
	if !plainLease(got.LeaseID) || got.LeaseDuration <= 0 {
		return source.Minted{}, fmt.Errorf("creating credential: the path returns no lease, so it can't be revoked: %w", sealed.ErrUnavailable)
	}
	value, err := source.StringField(got.Data, ref.Field)
	if err != nil {
		return source.Minted{}, fmt.Errorf("creating credential: %w", err)
	}
	m := source.Minted{Value: value, Handle: handle + " " + got.LeaseID, TTL: lasts(got.LeaseDuration)}
	if got.Renewable {
		m.Max = MaxTTL - prepareMargin
	}
	return m, nil
}

// plainLease accepts a lease id that can be kept in a handle.
func plainLease(id string) bool {
	return id != "" && len(id) <= 1024 && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' })
}

// lasts turns seconds of an answer into a TTL.
func lasts(seconds int64) time.Duration {
	return time.Duration(min(seconds, int64(MaxTTL/time.Second))) * time.Second
}

// create reads the path, or writes the parameters to it. A path that only
// takes writes says so with 405 and has done nothing, and only then is it
// written to.
func (s *Source) create(ctx context.Context, ref sealed.KeyRef, token *secret.Value) (answer, error) {
	var got answer
	path, params, err := s.target(ref)
	if err != nil {
		return got, err
	}
	write := source.Call{Method: http.MethodPost, Path: path, Token: token, Body: params}
	if len(params) > 0 {
		return got, s.vault.Do(ctx, write, &got)
	}
	err = s.vault.Do(ctx, source.Call{Method: http.MethodGet, Path: path, Token: token}, &got)
	var status *source.StatusError
	if errors.As(err, &status) && status.Code == http.StatusMethodNotAllowed {
		write.Body = map[string]string{}
		err = s.vault.Do(ctx, write, &got)
	}
	return got, err
}

// Renew prolongs the lease of handle as far as the upstream lets it, and
// returns how long it lasts from now. Every error matches
// sealed.ErrUnavailable.
func (s *Source) Renew(ctx context.Context, handle string) (time.Duration, error) {
	_, lease, ok := strings.Cut(handle, " ")
	if !ok {
		return 0, fmt.Errorf("renewing: the credential has no lease: %w", sealed.ErrUnavailable)
	}
	var got answer
	call := source.Call{Method: http.MethodPost, Path: "sys/leases/renew", Body: map[string]any{"lease_id": lease}}
	if err := s.vault.Do(ctx, call, &got); err != nil {
		return 0, fmt.Errorf("renewing lease: %w", err)
	}
	if got.LeaseID != lease || got.LeaseDuration <= 0 {
		return 0, fmt.Errorf("renewing lease: the answer is about another one: %w", sealed.ErrUnavailable)
	}
	return lasts(got.LeaseDuration), nil
}

// Revoke revokes the child token of handle and with it every lease it made. A
// token that is gone is success: its leases went before it.
func (s *Source) Revoke(ctx context.Context, handle string) error {
	accessor, _, _ := strings.Cut(handle, " ")
	if accessor == "" {
		return nil
	}
	s.take(accessor).Destroy()
	err := s.vault.Do(ctx, source.Call{Method: http.MethodPost, Path: "auth/token/revoke-accessor", Body: map[string]any{"accessor": accessor}}, nil)
	var status *source.StatusError
	if errors.As(err, &status) && (status.Code == http.StatusNotFound || status.InvalidAccessor) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("revoking child token: %w", err)
	}
	return nil
}

// Keep renews the source's own token when that is due.
func (s *Source) Keep(ctx context.Context) error { return s.vault.Keep(ctx) }

// Check reports whether the token sees the mount.
func (s *Source) Check(ctx context.Context) error { return s.vault.CheckMount(ctx, "") }

// Revocable reports true.
func (*Source) Revocable() bool { return true }
