package sandboxinit

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// maxAnswer bounds an answer of Vault, in bytes.
const maxAnswer = 2 << 20

// engine speaks to the one Vault of the trust file, over TLS 1.3 with the
// trust file's CA and nothing else: no proxy variables, no system roots, no
// redirects, no retries of what writes (see ask for the rest).
type engine struct {
	http  *http.Client
	base  string
	mount string
	token string // this run's Vault token; never leaves this process
}

// dialFunc opens a connection to Vault; the bytes are relayed by the host.
type dialFunc func(ctx context.Context) (net.Conn, error)

func newEngine(t sealed.TrustFile, dial dialFunc) (*engine, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(t.VaultCA)) {
		return nil, fmt.Errorf("reading trust file: vault_ca holds no certificate: %w", sealed.ErrInvalid)
	}
	u, err := url.Parse(t.VaultAddr)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("reading trust file: malformed vault_addr: %w", sealed.ErrInvalid)
	}
	cfg := &tls.Config{RootCAs: roots, ServerName: u.Hostname(), MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	transport := &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			raw, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, cfg)
			if err := conn.HandshakeContext(ctx); err != nil {
				_ = raw.Close()
				return nil, fmt.Errorf("checking the certificate of Vault: %w", err)
			}
			return conn, nil
		},
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       time.Minute,
		ResponseHeaderTimeout: 15 * time.Second,
		DisableCompression:    true,
	}
	return &engine{
		http: &http.Client{
			Transport:     transport,
			Timeout:       20 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		base:  "https://" + u.Host + "/v1/",
		mount: t.VaultMount,
	}, nil
}

// reply is the part of a Vault answer that init reads.
type reply struct {
	Data          map[string]any `json:"data"`
	LeaseID       string         `json:"lease_id"`
	LeaseDuration int64          `json:"lease_duration"`
	Renewable     bool           `json:"renewable"`
	Auth          *struct {
		ClientToken   string `json:"client_token"`
		LeaseDuration int64  `json:"lease_duration"`
	} `json:"auth"`
	Errors []string `json:"errors"`
}

// write sends one PUT; see send.
func (e *engine) write(ctx context.Context, path string, body any) (*reply, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encoding request %s: %w", path, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, e.base+path, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("building request %s: %w", path, err)
	}
	req.Header.Set("Content-Type", "application/json")
	return e.send(req, path)
}

// send sends a request to path. A status of 300 and above becomes an error that
// wraps the sentinel of that status; the text is the engine's own, which names
// fields and reasons, never values.
func (e *engine) send(req *http.Request, path string) (*reply, error) {
	req.Header.Set("X-Vault-Request", "true")
	if e.token != "" {
		req.Header.Set("X-Vault-Token", e.token)
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("calling %s: %w (%w)", path, sealed.ErrUnavailable, err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading answer of %s: %w", path, sealed.ErrUnavailable)
	}
	var r reply
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &r); err != nil {
			return nil, fmt.Errorf("reading answer of %s: malformed: %w", path, sealed.ErrUnavailable)
		}
	}
	if resp.StatusCode >= 300 {
		return nil, statusErr(path, resp.StatusCode, r.Errors)
	}
	return &r, nil
}

func statusErr(path string, status int, errs []string) error {
	msg := http.StatusText(status)
	if len(errs) > 0 && errs[0] != "" {
		// Vault frames a plug-in's error as a list of one.
		msg = strings.TrimPrefix(strings.TrimSpace(errs[0]), "1 error occurred:\n\t* ")
	}
	kind := sealed.ErrUnavailable
	switch status {
	case http.StatusBadRequest:
		kind = sealed.ErrInvalid
	case http.StatusForbidden, http.StatusNotFound:
		kind = sealed.ErrDenied
	case http.StatusConflict:
		kind = sealed.ErrConflict
	case http.StatusPreconditionRequired:
		kind = sealed.ErrApprovalRequired
	}
	return fmt.Errorf("calling %s: %w: %s", path, kind, sealed.CleanReason(msg))
}

// login exchanges the JWT-SVID for this run's token.
func (e *engine) login(ctx context.Context, t sealed.TrustFile, jwt string) (ttl time.Duration, err error) {
	r, err := e.write(ctx, "auth/"+t.AuthMount+"/login", map[string]string{"role": t.AuthRole, "jwt": jwt})
	if err != nil {
		return 0, fmt.Errorf("logging in to Vault: %w", err)
	}
	if r.Auth == nil || r.Auth.ClientToken == "" {
		return 0, fmt.Errorf("logging in to Vault: no token in the answer: %w", sealed.ErrUnavailable)
	}
	e.token = r.Auth.ClientToken
	return time.Duration(r.Auth.LeaseDuration) * time.Second, nil
}

// run writes to a path below the engine's mount.
func (e *engine) run(ctx context.Context, path string, body any) (*reply, error) {
	return e.write(ctx, e.mount+"/"+path, body)
}

// ask reads a path below the engine's mount, with a document in a field of the
// query; see send. If a kept connection breaks before the first byte of the answer,
// Go's transport sends it once more: watch changes nothing, and creds with the
// same idempotency resume.
func (e *engine) ask(ctx context.Context, path, field, document string) (*reply, error) {
	path = e.mount + "/" + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.base+path+"?"+url.Values{field: {document}}.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("building request %s: %w", path, err)
	}
	return e.send(req, path)
}

func (e *engine) renewToken(ctx context.Context) error {
	_, err := e.write(ctx, "auth/token/renew-self", map[string]string{})
	return err
}

func (e *engine) renewLease(ctx context.Context, lease string, increment time.Duration) (time.Duration, error) {
	r, err := e.write(ctx, "sys/leases/renew", map[string]any{"lease_id": lease, "increment": int(increment.Seconds())})
	if err != nil {
		return 0, err
	}
	return time.Duration(r.LeaseDuration) * time.Second, nil
}

// revokeToken ends the run's token and with it every lease that hangs on it.
func (e *engine) revokeToken(ctx context.Context) error {
	_, err := e.write(ctx, "auth/token/revoke-self", map[string]string{})
	return err
}
