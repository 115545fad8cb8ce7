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
// The source's token needs "update" on auth/token/create and
// auth/token/revoke-accessor, and on <mount>/<path> "read", with "update" too
// where the path only takes writes (PKI): without "read" the upstream answers
// 403 and not the 405 that tells so. The child inherits its policies and lives
// an hour at most. Nobody renews the source's token: give it a period that its
// owner renews, or a long life.
//
// # What it does not guarantee
//
// A path that answers without a lease (PKI without generate_lease) can't be
// taken back, and is refused after the fact: the child is revoked, what was
// signed stays signed. The token of a child is kept in memory between Prepare
// and Mint only; a crash there leaves a token that nobody knows, for an hour.
package vaultdynamic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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

// Open makes a source and takes ownership of token; now nil means time.Now. It
// makes no call. The error matches sealed.ErrInvalid.
func Open(cfg sealed.SourceConfig, token *secret.Value, now func() time.Time) (*Source, error) {
	v, err := source.NewVault(cfg, token, false)
	if err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	return &Source{vault: v, now: now, children: make(map[string]child)}, nil
}

// Prepare creates the child token and returns its accessor, to be stored
// before Mint.
func (s *Source) Prepare(ctx context.Context, ref sealed.KeyRef) (string, error) {
	if _, err := s.vault.MountPath("", ref.Path); err != nil {
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
	if answer.Auth.Token == "" || answer.Auth.Accessor == "" {
		return "", fmt.Errorf("creating child token: the answer has none: %w", sealed.ErrUnavailable)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	s.children[answer.Auth.Accessor] = child{token: secret.New([]byte(answer.Auth.Token)), at: s.now()}
	return answer.Auth.Accessor, nil
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
	if got.LeaseID == "" || got.LeaseDuration <= 0 {
		return source.Minted{}, fmt.Errorf("creating credential: the path returns no lease, so it can't be revoked: %w", sealed.ErrUnavailable)
	}
	value, err := source.StringField(got.Data, ref.Field)
	if err != nil {
		return source.Minted{}, fmt.Errorf("creating credential: %w", err)
	}
	ttl := min(time.Duration(min(got.LeaseDuration, int64(MaxTTL/time.Second)))*time.Second, MaxTTL)
	return source.Minted{Value: value, Handle: handle, TTL: ttl}, nil
}

// create reads the path; one that only takes writes says so with 405 and has
// done nothing, and only then is it written to.
func (s *Source) create(ctx context.Context, ref sealed.KeyRef, token *secret.Value) (answer, error) {
	var got answer
	path, err := s.vault.MountPath("", ref.Path)
	if err != nil {
		return got, err
	}
	err = s.vault.Do(ctx, source.Call{Method: http.MethodGet, Path: path, Token: token}, &got)
	var status *source.StatusError
	if errors.As(err, &status) && status.Code == http.StatusMethodNotAllowed {
		err = s.vault.Do(ctx, source.Call{Method: http.MethodPost, Path: path, Token: token, Body: map[string]any{}}, &got)
	}
	return got, err
}

// Revoke revokes the child token of handle and with it every lease it made. A
// token that is gone is success: its leases went before it.
func (s *Source) Revoke(ctx context.Context, handle string) error {
	if handle == "" {
		return nil
	}
	s.take(handle).Destroy()
	err := s.vault.Do(ctx, source.Call{Method: http.MethodPost, Path: "auth/token/revoke-accessor", Body: map[string]any{"accessor": handle}}, nil)
	var status *source.StatusError
	if errors.As(err, &status) && (status.Code == http.StatusNotFound || status.InvalidAccessor) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("revoking child token: %w", err)
	}
	return nil
}

// Check reports whether the token sees the mount.
func (s *Source) Check(ctx context.Context) error { return s.vault.CheckMount(ctx, "") }

// Revocable reports true.
func (*Source) Revocable() bool { return true }
