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
	"mime"
	"net"
	"net/http"
	"net/url"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	// Timeout bounds one call, from dialing to the last byte.
	Timeout = 3 * time.Second
	// MaxAnswer bounds the answer to one call, in bytes.
	MaxAnswer = 1 << 20

	maxHeader     = 64 << 10
	maxCredential = 8 << 10
)

// A StatusError is an answer other than success. It holds no body;
// InvalidAccessor tells that the body held Vault's error of that name.
type StatusError struct {
	Code            int
	InvalidAccessor bool
}

func (e *StatusError) Error() string { return fmt.Sprintf("the source answered %d", e.Code) }

// Unwrap makes errors.Is(err, sealed.ErrUnavailable) true: to the engine it is
// all one whether a source is down or refuses.
func (e *StatusError) Unwrap() error { return sealed.ErrUnavailable }

// NotFound reports whether err is an answer 404.
func NotFound(err error) bool { return answered(err, http.StatusNotFound) }

func answered(err error, code int) bool {
	var status *StatusError
	return errors.As(err, &status) && status.Code == code
}

// A Client calls one HTTPS server. It is safe for concurrent use.
type Client struct {
	base *url.URL // https://host:port, perhaps with a path
	http *http.Client
}

// NewClient makes a client for https://host:port/path that trusts the PEM
// certificates in ca, or the system's roots when ca is empty. reuse keeps
// connections open. A client that creates things must not: net/http sends a
// GET again when a reused connection dies, and the first one may have been
// carried out. The error matches sealed.ErrInvalid.
func NewClient(address, ca string, reuse bool) (*Client, error) {
	base, err := url.Parse(address)
	if err != nil || base.Scheme != "https" || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("address: %w", sealed.ErrInvalid)
	}
	transport, err := NewTransport(ca, reuse)
	if err != nil {
		return nil, err
	}
	return &Client{base: base, http: &http.Client{
		Timeout:       Timeout,
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// NewTransport makes the transport of a Client, for those that bring a client
// of their own: no proxy, no compression, headers of at most 64 KiB, and the
// trust that NewClient describes. It bounds neither time nor bodies.
func NewTransport(ca string, reuse bool) (*http.Transport, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(ca)) {
			return nil, fmt.Errorf("ca: %w", sealed.ErrInvalid)
		}
	}
	return &http.Transport{
		TLSClientConfig: conf, DisableKeepAlives: !reuse, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
		DisableCompression: true, MaxResponseHeaderBytes: maxHeader, ResponseHeaderTimeout: Timeout,
	}, nil
}

// A Request is one call. Path is below the address, unescaped.
type Request struct {
	Method string
	Path   string
	Query  url.Values
	Header map[string]string
	Body   []byte        // nil: none
	Type   string        // of the body
	Bearer *secret.Value // nil: none
}

// An Answer is what came back. Its owner wipes it.
type Answer struct {
	Code int
	Body []byte
	json bool
}

// Wipe overwrites the body.
func (a Answer) Wipe() { clear(a.Body) }

// OK returns a *StatusError unless the answer is a success.
func (a Answer) OK() error {
	if a.Code < 200 || a.Code > 299 {
		return &StatusError{Code: a.Code}
	}
	return nil
}

// Decode decodes a successful JSON answer. Every error matches
// sealed.ErrUnavailable.
func (a Answer) Decode(out any) error {
	if err := a.OK(); err != nil {
		return err
	}
	if !a.json {
		return fmt.Errorf("reading the source's answer: not declared as JSON: %w", sealed.ErrUnavailable)
	}
	if json.Unmarshal(a.Body, out) != nil {
		return fmt.Errorf("reading the source's answer: malformed: %w", sealed.ErrUnavailable)
	}
	return nil
}

// Do makes one call. Every error matches sealed.ErrUnavailable; an answer of
// any status is no error.
func (c *Client) Do(ctx context.Context, r Request) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	req, err := c.request(ctx, r)
	if err != nil {
		return Answer{}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return Answer{}, fmt.Errorf("calling the source: %s: %w", TransportCause(err), sealed.ErrUnavailable)
	}
	defer resp.Body.Close()
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return Answer{}, fmt.Errorf("reading the source's answer: compressed without being asked to: %w", sealed.ErrUnavailable)
	}
	body, err := ReadLimited(resp.Body)
	if err != nil {
		return Answer{}, err
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return Answer{Code: resp.StatusCode, Body: body, json: media == "application/json"}, nil
}

// ReadLimited reads a body of at most MaxAnswer bytes. Every error matches
// sealed.ErrUnavailable.
func ReadLimited(r io.Reader) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, MaxAnswer+1))
	switch {
	case err != nil:
		clear(body)
		return nil, fmt.Errorf("reading the source's answer: %s: %w", TransportCause(err), sealed.ErrUnavailable)
	case len(body) > MaxAnswer:
		clear(body)
		return nil, fmt.Errorf("reading the source's answer: larger than %d bytes: %w", MaxAnswer, sealed.ErrUnavailable)
	}
	return body, nil
}

func (c *Client) request(ctx context.Context, r Request) (*http.Request, error) {
	u := url.URL{Scheme: c.base.Scheme, Host: c.base.Host, Path: c.base.Path + "/" + r.Path, RawQuery: r.Query.Encode()}
	var body io.Reader
	if r.Body != nil {
		body = bytes.NewReader(r.Body)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("making request to the source: malformed path: %w", sealed.ErrUnavailable)
	}
	req.Header.Set("Accept", "application/json")
	for name, value := range r.Header {
		req.Header.Set(name, value)
	}
	if r.Body != nil {
		req.Header.Set("Content-Type", r.Type)
	}
	if r.Bearer == nil {
		return req, nil
	}
	return req, r.Bearer.Reveal(func(b []byte) error {
		req.Header.Set("Authorization", "Bearer "+string(b))
		return nil
	})
}

// TransportCause names the kind of a failure. net/http's own texts may quote
// what a server sent.
func TransportCause(err error) string {
	var cert *tls.CertificateVerificationError
	var op *net.OpError
	var slow net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &slow) && slow.Timeout():
		return "timed out"
	case errors.As(err, &cert):
		return "its certificate is not trusted"
	case errors.As(err, &op) && op.Op == "dial":
		return "can't connect"
	}
	return "connection failed"
}

// CheckToken refuses a credential that is not one printable word, because it
// goes into a header. The error matches sealed.ErrInvalid and names what was
// wanted.
func CheckToken(credential *secret.Value, what string) error {
	return credential.Reveal(func(b []byte) error {
		if len(b) == 0 || len(b) > maxCredential || bytes.ContainsFunc(b, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return &sealed.FieldError{Field: "credential", Reason: "wants " + what}
		}
		return nil
	})
}
