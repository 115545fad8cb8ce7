package source

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	// Timeout bounds one call, from dialing to the last byte.
	Timeout = 3 * time.Second
	// MaxAnswer bounds the answer to one call, in bytes.
	MaxAnswer = 1 << 20
)

// A StatusError is an answer other than success. It holds no body;
// InvalidAccessor tells that the body held Vault's error of that name.
type StatusError struct {
	Code            int
	InvalidAccessor bool
}

func (e *StatusError) Error() string { return fmt.Sprintf("the upstream Vault answered %d", e.Code) }

// Unwrap makes errors.Is(err, sealed.ErrUnavailable) true: to the engine it is
// all one whether a source is down or refuses.
func (e *StatusError) Unwrap() error { return sealed.ErrUnavailable }

// A Vault is a client for one mount of an upstream Vault. It is safe for
// concurrent use.
type Vault struct {
	base      *url.URL // https://host:port
	mount     string
	namespace string
	token     *secret.Value
	client    *http.Client
}

// NewVault makes a client from a valid configuration and takes ownership of
// token. reuse keeps connections open. A client that creates things must not:
// net/http sends a GET again when a reused connection dies, and the first one
// may have been carried out.
func NewVault(cfg sealed.SourceConfig, token *secret.Value, reuse bool) (*Vault, error) {
	base, err := url.Parse(cfg.Address)
	if err != nil || base.Scheme != "https" || base.Host == "" || base.User != nil {
		return nil, fmt.Errorf("opening source %s: address: %w", cfg.Name, sealed.ErrInvalid)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CA != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(cfg.CA)) {
			return nil, fmt.Errorf("opening source %s: ca: %w", cfg.Name, sealed.ErrInvalid)
		}
	}
	if err := token.Reveal(checkToken); err != nil {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, err)
	}
	v := &Vault{base: base, mount: strings.Trim(cfg.Mount, "/"), namespace: cfg.Namespace, token: token}
	v.client = &http.Client{
		Timeout:       Timeout,
		Transport:     &http.Transport{TLSClientConfig: conf, DisableKeepAlives: !reuse, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return v, nil
}

func checkToken(b []byte) error {
	if len(b) == 0 || len(b) > 4096 || bytes.ContainsFunc(b, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("credential: wants a Vault token: %w", sealed.ErrInvalid)
	}
	return nil
}

// A Call is one request. Path is below /v1/, unescaped.
type Call struct {
	Method string
	Path   string
	Query  url.Values
	Body   any           // nil: none
	Token  *secret.Value // nil: the source's own
}

// MountPath returns the path of something below the mount. It refuses a ref
// that a server could take for another path.
func (v *Vault) MountPath(prefix, ref string) (string, error) {
	for seg := range strings.SplitSeq(ref, "/") {
		if seg == "" || seg == "." || seg == ".." || strings.ContainsFunc(seg, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
			return "", &sealed.FieldError{Field: "ref.path", Reason: "wants a relative path without empty or dot segments"}
		}
	}
	return v.mount + "/" + prefix + ref, nil
}

// Mount returns the path of the mount.
func (v *Vault) Mount() string { return v.mount }

// Do makes one call and decodes a successful answer into out, if that is not
// nil. Every error matches sealed.ErrUnavailable; an answer that is not a
// success is a *StatusError.
func (v *Vault) Do(ctx context.Context, c Call, out any) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	req, err := v.request(ctx, c)
	if err != nil {
		return err
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return fmt.Errorf("calling the upstream Vault: %s: %w", transportCause(err), sealed.ErrUnavailable)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	defer clear(body)
	if err != nil {
		return fmt.Errorf("reading the upstream Vault's answer: %s: %w", transportCause(err), sealed.ErrUnavailable)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return &StatusError{Code: resp.StatusCode, InvalidAccessor: bytes.Contains(body, []byte(`"invalid accessor"`))}
	}
	if len(body) > MaxAnswer {
		return fmt.Errorf("reading the upstream Vault's answer: larger than %d bytes: %w", MaxAnswer, sealed.ErrUnavailable)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("reading the upstream Vault's answer: malformed: %w", sealed.ErrUnavailable)
	}
	return nil
}

func (v *Vault) request(ctx context.Context, c Call) (*http.Request, error) {
	u := url.URL{Scheme: v.base.Scheme, Host: v.base.Host, Path: "/v1/" + c.Path, RawQuery: c.Query.Encode()}
	var body io.Reader
	if c.Body != nil {
		doc, err := json.Marshal(c.Body)
		if err != nil {
			return nil, errors.New("encoding request to the upstream Vault: not a JSON value")
		}
		body = bytes.NewReader(doc)
	}
	req, err := http.NewRequestWithContext(ctx, c.Method, u.String(), body)
	if err != nil {
		return nil, errors.New("making request to the upstream Vault: malformed path")
	}
	req.Header.Set("X-Vault-Request", "true")
	if v.namespace != "" {
		req.Header.Set("X-Vault-Namespace", v.namespace)
	}
	token := c.Token
	if token == nil {
		token = v.token
	}
	return req, token.Reveal(func(b []byte) error {
		req.Header.Set("X-Vault-Token", string(b))
		return nil
	})
}

// transportCause names the kind of failure. net/http's own texts may quote
// what a server sent.
func transportCause(err error) string {
	var cert *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "timed out"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.As(err, &cert):
		return "its certificate is not trusted"
	case errors.As(err, &op) && op.Op == "dial":
		return "can't connect"
	}
	return "connection failed"
}

// StringField picks one field of an answer's data as a value. Only a JSON
// string is a value: numbers and objects have no one spelling.
func StringField(data map[string]json.RawMessage, field string) (*secret.Value, error) {
	raw, ok := data[field]
	if !ok {
		return nil, fmt.Errorf("picking field %s: the source has no such field: %w", field, sealed.ErrUnavailable)
	}
	var s string
	if json.Unmarshal(raw, &s) != nil || s == "" {
		return nil, fmt.Errorf("picking field %s: not a string, or empty: %w", field, sealed.ErrUnavailable)
	}
	return secret.New([]byte(s)), nil
}

// Wipe overwrites the fields of an answer's data.
func Wipe(data map[string]json.RawMessage) {
	for _, raw := range data {
		clear(raw)
	}
}

// CheckMount reports whether the token sees a mount of a type at the client's
// mount path. It reads no value.
func (v *Vault) CheckMount(ctx context.Context, wantType string) error {
	var answer struct {
		Data struct {
			Type    string            `json:"type"`
			Options map[string]string `json:"options"`
		} `json:"data"`
	}
	if err := v.Do(ctx, Call{Method: http.MethodGet, Path: "sys/internal/ui/mounts/" + v.mount}, &answer); err != nil {
		return err
	}
	if wantType == "" {
		return nil
	}
	if answer.Data.Type != wantType {
		return fmt.Errorf("checking mount: it is of another type than %s: %w", wantType, sealed.ErrUnavailable)
	}
	if wantType == "kv" && answer.Data.Options["version"] != "2" {
		return fmt.Errorf("checking mount: it is not KV version 2: %w", sealed.ErrUnavailable)
	}
	return nil
}
