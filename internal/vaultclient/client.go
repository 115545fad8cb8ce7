// Package vaultclient talks to a Vault server, and to Sealed's engine in it.
//
// It is the one place that links Vault's API client. A Client is bound to one
// address, one set of roots and one token when it is made. It never retries (a
// call that issues must not be repeated blindly; calls that may be repeated
// carry an idempotency key), never follows a redirect to another host, and
// gives every refusal as one of the sentinels of package sealed.
//
// # Guarantee
//
// New reads nothing from the environment: neither address nor token nor proxy
// can be changed from there. A token leaves only over TLS, or to a loopback
// address.
//
// # What it does not guarantee
//
// The token is an ordinary string in memory. Error texts carry what the server
// said; Sealed's engine puts no secrets there, a foreign plugin may.
package vaultclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"sealed.dev/sealed/internal/sealed"
)

// callTimeout bounds one call, the body included.
const callTimeout = 30 * time.Second

// A Client is safe for concurrent use.
type Client struct {
	api *api.Client

	addr, namespace string
	http            *http.Client
}

// New returns a client of the server at addr (https://host:port; http only for
// a loopback address) that trusts the PEM certificates in caPEM alone, or the
// system's roots if it is empty. The token may be empty. Errors wrap
// sealed.ErrInvalid.
func New(addr string, caPEM []byte, token string) (*Client, error) {
	h, err := httpClient(addr, caPEM, nil)
	if err != nil {
		return nil, err
	}
	return build(addr, "", h, token)
}

// FromEnv returns a client as Vault's own command would make it: VAULT_ADDR,
// VAULT_CACERT, VAULT_NAMESPACE, VAULT_TOKEN or else the file ~/.vault-token,
// and the usual proxy variables. The address has no default: a command that
// issues credentials must be told whom it asks.
func FromEnv(getenv func(string) string) (*Client, error) {
	var ca []byte
	if path := getenv("VAULT_CACERT"); path != "" {
		var err error
		if ca, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("reading VAULT_CACERT: %w: %w", sealed.ErrInvalid, err)
		}
	}
	if getenv("VAULT_ADDR") == "" {
		return nil, fmt.Errorf("finding Vault: VAULT_ADDR is not set: %w", sealed.ErrInvalid)
	}
	token := getenv("VAULT_TOKEN")
	if token == "" {
		if b, err := os.ReadFile(filepath.Join(getenv("HOME"), ".vault-token")); err == nil {
			token = strings.TrimSpace(string(b))
		}
	}
	h, err := httpClient(getenv("VAULT_ADDR"), ca, http.ProxyFromEnvironment)
	if err != nil {
		return nil, err
	}
	return build(getenv("VAULT_ADDR"), getenv("VAULT_NAMESPACE"), h, token)
}

func httpClient(addr string, caPEM []byte, proxy func(*http.Request) (*url.URL, error)) (*http.Client, error) {
	if err := checkAddr(addr); err != nil {
		return nil, err
	}
	var roots *x509.CertPool
	if len(caPEM) > 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(caPEM) {
			return nil, fmt.Errorf("reading Vault's CA: no PEM certificate: %w", sealed.ErrInvalid)
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 proxy,
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			ForceAttemptHTTP2:     true,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: callTimeout,
			MaxIdleConnsPerHost:   64,
			IdleConnTimeout:       90 * time.Second,
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// build sets whatever api.NewClient would otherwise take from the environment.
func build(addr, namespace string, h *http.Client, token string) (*Client, error) {
	c, err := api.NewClient(&api.Config{Address: addr, Timeout: callTimeout, DisableRedirects: true, HttpClient: h})
	if err != nil {
		return nil, fmt.Errorf("making Vault client: %w: %w", sealed.ErrInvalid, err)
	}
	c.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	if namespace != "" {
		c.SetNamespace(namespace)
	}
	c.SetMaxRetries(0)
	c.SetWrappingLookupFunc(func(string, string) string { return "" }) // else VAULT_WRAP_TTL
	c.SetToken(token)
	return &Client{api: c, addr: addr, namespace: namespace, http: h}, nil
}

// checkAddr: TLS, unless the packets never leave this host.
func checkAddr(addr string) error {
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("parsing Vault's address: wants https://host:port: %w", sealed.ErrInvalid)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "https" || u.Scheme == "http" && ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("parsing Vault's address: wants https: %w", sealed.ErrInvalid)
}

// WithToken returns a client of the same server with another token. Both share
// their connections.
func (c *Client) WithToken(token string) (*Client, error) {
	return build(c.addr, c.namespace, c.http, token)
}

// Read reads a path; data becomes query parameters and may be nil. A path
// without an answer is sealed.ErrNotFound.
func (c *Client) Read(ctx context.Context, path string, data map[string]string) (map[string]any, error) {
	query := make(map[string][]string, len(data))
	for k, v := range data {
		query[k] = []string{v}
	}
	s, err := c.api.Logical().ReadWithDataWithContext(ctx, path, query)
	if err != nil {
		return nil, edge("reading", path, err)
	}
	if s == nil {
		return nil, fmt.Errorf("reading %s: %w", path, sealed.ErrNotFound)
	}
	return s.Data, nil
}

// Write updates a path. The answer is nil if the server sent none.
func (c *Client) Write(ctx context.Context, path string, data map[string]any) (map[string]any, error) {
	s, err := c.api.Logical().WriteWithContext(ctx, path, data)
	if err != nil {
		return nil, edge("writing", path, err)
	}
	if s == nil {
		return nil, nil
	}
	return s.Data, nil
}

// List lists the keys under a path. None at all is no error.
func (c *Client) List(ctx context.Context, path string) ([]string, error) {
	s, err := c.api.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, edge("listing", path, err)
	}
	if s == nil {
		return nil, nil
	}
	raw, _ := s.Data["keys"].([]any)
	keys := make([]string, 0, len(raw))
	for _, k := range raw {
		name, ok := k.(string)
		if !ok {
			return nil, fmt.Errorf("listing %s: malformed answer: %w", path, sealed.ErrInvalid)
		}
		keys = append(keys, name)
	}
	return keys, nil
}

// Delete deletes a path. A path that is not there is no error, as in Vault.
func (c *Client) Delete(ctx context.Context, path string) error {
	if _, err := c.api.Logical().DeleteWithContext(ctx, path); err != nil {
		return edge("deleting", path, err)
	}
	return nil
}

// edge is the one mapping of Vault's errors.
func edge(doing, path string, err error) error {
	var resp *api.ResponseError
	if !errors.As(err, &resp) {
		// No answer: refused, reset, timed out, or a certificate we don't trust.
		return fmt.Errorf("%s %s: %w: %w", doing, path, sealed.ErrUnavailable, err)
	}
	said := plain(resp.Errors)
	if said == "" {
		said = http.StatusText(resp.StatusCode)
	}
	kind := sentinel(resp.StatusCode)
	said = strings.TrimSuffix(said, ": "+kind.Error()) // the engine ends with it too
	return fmt.Errorf("%s %s: %s: %w", doing, path, said, kind)
}

// plain is one line of what Vault said. Vault frames errors as a list: "2 errors
// occurred:" and then a line with a bullet for each.
func plain(errs []string) string {
	var out []string
	for line := range strings.Lines(strings.Join(errs, "\n")) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "* ")
		if line != "" && !strings.HasSuffix(line, " occurred:") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "; ")
}

func sentinel(status int) error {
	switch status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge:
		return sealed.ErrInvalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return sealed.ErrDenied
	case http.StatusNotFound:
		return sealed.ErrNotFound
	case http.StatusConflict:
		return sealed.ErrConflict
	case http.StatusPreconditionRequired:
		return sealed.ErrApprovalRequired
	}
	return sealed.ErrUnavailable
}
