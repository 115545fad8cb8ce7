package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// A door is one kept-alive TLS connection to Vault, with the settings of
// sealed-init. Everything that is compared goes through one.
type door struct {
	client *http.Client
	base   string
	token  string
}

func newDoor(addr string, ca []byte) (*door, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("reading Vault's CA: no PEM certificate")
	}
	return &door{
		client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 1, MaxConnsPerHost: 1, DisableCompression: true,
		}},
		base: addr + "/v1/",
	}, nil
}

// twin returns a door to the same place with a connection of its own.
func (d *door) twin() *door {
	again := *d.client
	if t, ok := d.client.Transport.(*http.Transport); ok {
		again.Transport = t.Clone()
	}
	return &door{client: &again, base: d.base, token: d.token}
}

// An answer of Vault, as far as it is read.
type answer struct {
	Data    map[string]any `json:"data"`
	LeaseID string         `json:"lease_id"`
	Auth    struct {
		Token string `json:"client_token"`
	} `json:"auth"`
	Errors []string `json:"errors"`

	took time.Duration // from the request to the answer
}

func (d *door) call(ctx context.Context, method, path string, body any) (answer, error) {
	var a answer
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return a, fmt.Errorf("encoding request %s: %w", path, err)
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, d.base+path, in)
	path, _, _ = strings.Cut(path, "?")
	if err != nil {
		return a, fmt.Errorf("building request %s: %w", path, err)
	}
	req.Header.Set("X-Vault-Request", "true")
	req.Header.Set("X-Vault-Token", d.token)
	start := time.Now()
	resp, err := d.client.Do(req)
	if err != nil {
		return a, fmt.Errorf("calling %s: %w", path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 2<<20))
	if err != nil {
		return a, fmt.Errorf("reading answer of %s: %w", path, err)
	}
	if len(raw) > 0 && json.Unmarshal(raw, &a) != nil {
		return a, fmt.Errorf("reading answer of %s: malformed", path)
	}
	if resp.StatusCode >= 300 {
		return a, fmt.Errorf("calling %s: status %d: %s", path, resp.StatusCode, strings.Join(a.Errors, "; "))
	}
	a.took = time.Since(start)
	return a, nil
}

// A guest plays sealed-init for one run of the guest mount: real signatures,
// real sealing, an invented measurement.
type guest struct {
	door      *door
	run       sealed.RunID
	answerKey ed25519.PublicKey
	key       ed25519.PrivateKey
	hpke      *secret.PrivateKey
}

// claim takes the run and binds fresh keys to it.
func (g *guest) claim(ctx context.Context, m *maker, q sealed.Enqueued, measured sealed.Measurement) error {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("making run key: %w", err)
	}
	hpke, err := secret.GenerateKey()
	if err != nil {
		return err
	}
	g.run, g.key, g.hpke = q.Run, key, hpke
	payload, err := json.Marshal(sealed.Claim{
		Run: q.Run, Ticket: q.Ticket, Measurement: measured, RunKey: base64.StdEncoding.EncodeToString(pub), HPKEKey: hpke.Public(),
		Nonce: base64.StdEncoding.EncodeToString(make([]byte, 32)),
	})
	if err != nil {
		return fmt.Errorf("encoding claim: %w", err)
	}
	sig, err := m.sign(sealed.DomainClaim, payload)
	if err != nil {
		return err
	}
	req, err := json.Marshal(sealed.ClaimRequest{
		Payload: string(payload), SVID: []string{base64.StdEncoding.EncodeToString(m.leaf)}, SVIDSignature: sig,
		RunSignature: base64.StdEncoding.EncodeToString(ed25519.Sign(key, sealed.SigningBytes(sealed.DomainClaim, payload))),
	})
	if err != nil {
		return fmt.Errorf("encoding claim: %w", err)
	}
	r, err := g.door.call(ctx, http.MethodPut, guestMount+"/runs/"+string(q.Run)+"/claim", map[string]string{"claim": string(req)})
	if err != nil {
		return err
	}
	return g.open(r, &sealed.ClaimAnswer{})
}

// open checks the engine's signature.
func (g *guest) open(r answer, v any) error {
	text, _ := r.Data["answer"].(string)
	var signed sealed.Signed
	if err := sealed.Decode([]byte(text), sealed.MaxDocument, &signed); err != nil {
		return err
	}
	return signed.Open(sealed.DomainAnswer, g.answerKey, v)
}

// send writes a signed document to a path, or reads the path with it.
func (g *guest) send(ctx context.Context, method, path string, doc any) (answer, error) {
	signed, err := sealed.Sign(sealed.DomainRequest, doc, g.key)
	if err != nil {
		return answer{}, err
	}
	b, err := json.Marshal(signed)
	if err != nil {
		return answer{}, fmt.Errorf("encoding request: %w", err)
	}
	if method == http.MethodGet {
		return g.door.call(ctx, method, guestMount+"/"+path+"?"+url.Values{"request": {string(b)}}.Encode(), nil)
	}
	return g.door.call(ctx, method, guestMount+"/"+path, map[string]string{"request": string(b)})
}

// A credential is what creds gave.
type credential struct {
	answer sealed.CredsAnswer
	lease  string
	took   time.Duration // of the call, without what the guest did before and after
}

// ask asks for a new grant.
func (g *guest) ask(ctx context.Context) (answer, error) {
	idem, err := sealed.NewULID(time.Now(), nil)
	if err != nil {
		return answer{}, err
	}
	path := "runs/" + string(g.run) + "/creds/" + string(keyName)
	return g.send(ctx, http.MethodGet, path, sealed.CredsRequest{Run: g.run, Path: path, Idempotency: idem, Delivery: sealed.DeliveryProxy})
}

// creds makes a new grant and opens its value, as sealed-init does.
func (g *guest) creds(ctx context.Context) (credential, error) {
	r, err := g.ask(ctx)
	if err != nil {
		return credential{}, err
	}
	c := credential{lease: r.LeaseID, took: r.took}
	if err := g.open(r, &c.answer); err != nil {
		return c, err
	}
	v, err := g.hpke.Open(secret.Context{Run: string(g.run), Grant: string(c.answer.Grant), Key: string(keyName)}, c.answer.Ciphertext)
	if err != nil {
		return c, err
	}
	v.Destroy()
	return c, nil
}

// confirm names the lease; only then sealed-init uses a value.
func (g *guest) confirm(ctx context.Context, c credential) error {
	path := "runs/" + string(g.run) + "/confirm"
	r, err := g.send(ctx, http.MethodPut, path, sealed.ConfirmRequest{Run: g.run, Path: path, Grant: c.answer.Grant, LeaseID: c.lease, Epoch: c.answer.Epoch})
	if err != nil {
		return err
	}
	return g.open(r, &sealed.ConfirmAnswer{})
}
