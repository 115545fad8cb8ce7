package vaultclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/hashicorp/vault/api"

	"sealed.dev/sealed/internal/sealed"
)

// maxAnswer bounds the answer of Sys, in bytes.
const maxAnswer = 4 << 20

// Sys calls a path that does not answer in Vault's usual envelope, such as
// sys/init, sys/unseal or sys/health, and returns the whole body. path
// may have a query. An empty body is nil. Errors are those of the other methods.
func (c *Client) Sys(ctx context.Context, method, path string, body map[string]any) (map[string]any, error) {
	path, query, _ := strings.Cut(path, "?")
	req := c.api.NewRequest(method, "/v1/"+path)
	var err error
	if req.Params, err = url.ParseQuery(query); err != nil {
		return nil, fmt.Errorf("reading query of %s: %w", path, sealed.ErrInvalid)
	}
	if body != nil {
		if err := req.SetJSONBody(body); err != nil {
			return nil, fmt.Errorf("encoding body of %s: %w", path, err)
		}
	}
	resp, err := c.raw(ctx, req)
	if err != nil {
		return nil, edge("calling", path, err)
	}
	defer resp.Body.Close()
	// The API client lets 429 pass on sys/health, where it means a standby.
	if resp.StatusCode == http.StatusTooManyRequests {
		return nil, fmt.Errorf("calling %s: status %d: %w", path, resp.StatusCode, sealed.ErrUnavailable)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading answer of %s: %w: %w", path, sealed.ErrUnavailable, err)
	}
	if len(b) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var out map[string]any
	if err := dec.Decode(&out); err != nil {
		return nil, fmt.Errorf("decoding answer of %s: malformed JSON: %w", path, sealed.ErrInvalid)
	}
	return out, nil
}

// Snapshot writes a snapshot of Vault's raft storage to w. It needs a token
// that may read sys/storage/raft/snapshot.
func (c *Client) Snapshot(ctx context.Context, w io.Writer) error {
	const path = "sys/storage/raft/snapshot"
	resp, err := c.raw(ctx, c.api.NewRequest(http.MethodGet, "/v1/"+path))
	if err != nil {
		return edge("reading", path, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("copying snapshot: %w", err)
	}
	return nil
}

// raw is the API client's low-level call. It is marked as deprecated in favor
// of typed helpers, which do not exist for these answers.
func (c *Client) raw(ctx context.Context, req *api.Request) (*api.Response, error) {
	//lint:ignore SA1019 see above
	return c.api.RawRequestWithContext(ctx, req)
}

// A Login is what an auth method gave. Its Token is a secret: it is kept out
// of every printed form.
type Login struct {
	Token     Token
	Accessor  string
	EntityID  string
	TTL       int // seconds
	Renewable bool
	Policies  []string
}

// A Token is a Vault token that prints as [REDACTED]; convert it to a string
// to use it.
type Token string

// String implements fmt.Stringer and never shows the token.
func (Token) String() string { return "[REDACTED]" }

// GoString implements fmt.GoStringer and never shows the token.
func (Token) GoString() string { return "[REDACTED]" }

// MarshalText always fails: a token has no place in a document.
func (Token) MarshalText() ([]byte, error) { return nil, errors.New("a token is not encoded") }

// Login writes to the login path of an auth method, such as
// auth/userpass/login/<user>. Vault answers wrong credentials with 400, which
// is given as sealed.ErrDenied.
func (c *Client) Login(ctx context.Context, path string, data map[string]any) (Login, error) {
	s, err := c.api.Logical().WriteWithContext(ctx, path, data)
	if err != nil {
		var resp *api.ResponseError
		if errors.As(err, &resp) && resp.StatusCode == http.StatusBadRequest {
			return Login{}, fmt.Errorf("logging in at %s: %s: %w", path, strings.Join(resp.Errors, "; "), sealed.ErrDenied)
		}
		return Login{}, edge("logging in at", path, err)
	}
	if s == nil || s.Auth == nil || s.Auth.ClientToken == "" || strings.ContainsAny(s.Auth.ClientToken, " \r\n") {
		return Login{}, fmt.Errorf("logging in at %s: no token in the answer: %w", path, sealed.ErrInvalid)
	}
	return Login{
		Token: Token(s.Auth.ClientToken), Accessor: s.Auth.Accessor, EntityID: s.Auth.EntityID,
		TTL: s.Auth.LeaseDuration, Renewable: s.Auth.Renewable, Policies: s.Auth.Policies,
	}, nil
}
