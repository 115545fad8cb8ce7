package vaultplugin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

const (
	maxTrustBundle = 512 << 10 // stored in one entry, JSON in JSON
	trustTimeout   = 3 * time.Second
)

// trustRow is the trust bundle and where it is refreshed from.
type trustRow struct {
	Document string `json:"document"` // SPIFFE bundle (JWKS), as received
	Sequence uint64 `json:"sequence"`
	Endpoint string `json:"endpoint,omitempty"`
	CA       string `json:"ca,omitempty"` // PEM; the only roots for the endpoint
	// RefreshedAt is when Document last changed.
	RefreshedAt time.Time `json:"refreshed_at"`
}

func (b *backend) pathTrustBundle() []*framework.Path {
	return []*framework.Path{{
		Pattern:      "config/trust-bundle",
		DisplayAttrs: display("trust-bundle"),
		Fields: map[string]*framework.FieldSchema{
			"bundle":   {Type: framework.TypeString, Description: "A SPIFFE bundle document (JSON). Its spiffe_sequence must rise."},
			"endpoint": {Type: framework.TypeString, Description: "https URL of a SPIFFE bundle endpoint (profile https_web). Empty with ca empty: no refresh."},
			"ca":       {Type: framework.TypeString, Description: "PEM certificates: the only roots for the endpoint."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   b.op("Read the trust bundle.", b.trustRead),
			logical.UpdateOperation: b.op("Push a trust bundle, or name the endpoint to refresh it from.", b.trustWrite),
		},
		HelpSynopsis: "Whose SVIDs the mount accepts.",
		HelpDescription: "A bundle replaces the stored one only when its sequence is higher; the same sequence with other content is refused. " +
			"A push that adds an authority, and another endpoint or CA, wait for a second person (proposals/trust).",
	}}
}

// trustBundle returns the trust bundle, or sealed.ErrUnavailable when there is
// none. The caller must not change it.
func (b *backend) trustBundle(ctx context.Context, s logical.Storage) (*spiffebundle.Bundle, error) {
	return b.nouns.trust.get("", func() (*spiffebundle.Bundle, error) {
		cfg, err := b.config(ctx, s)
		if err != nil {
			return nil, err
		}
		var row trustRow
		if _, err := get(ctx, s, storeTrustBundle, &row); err != nil {
			return nil, err
		}
		if row.Document == "" {
			return nil, fmt.Errorf("loading trust bundle: none was pushed or fetched: %w", sealed.ErrUnavailable)
		}
		bundle, err := parseTrustBundle(cfg.TrustDomain, row.Document)
		if err != nil {
			return nil, fmt.Errorf("decoding stored %s: malformed", storeTrustBundle)
		}
		return bundle, nil
	})
}

// parseTrustBundle accepts a bundle with a sequence and an X.509 authority.
func parseTrustBundle(domain, document string) (*spiffebundle.Bundle, error) {
	if len(document) > maxTrustBundle {
		return nil, invalid("bundle", "larger than 512 KiB")
	}
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return nil, err
	}
	bundle, err := spiffebundle.Parse(td, []byte(document))
	if err != nil {
		return nil, invalid("bundle", "not a SPIFFE bundle document")
	}
	if _, ok := bundle.SequenceNumber(); !ok {
		return nil, invalid("bundle", "wants a spiffe_sequence")
	}
	if len(bundle.X509Authorities()) == 0 {
		return nil, invalid("bundle", "wants at least one X.509 authority")
	}
	return bundle, nil
}

func (b *backend) trustRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	var row trustRow
	ok, err := get(ctx, req.Storage, storeTrustBundle, &row)
	if err != nil || !ok {
		return nil, err
	}
	return map[string]any{
		"bundle": row.Document, "sequence": fmt.Sprint(row.Sequence), "endpoint": row.Endpoint, "ca": row.CA,
		"refreshed_at": row.RefreshedAt.UTC().Format(time.RFC3339),
	}, nil
}

// A trustPush is what is written by hand. Nil leaves what is there.
type trustPush struct {
	Bundle   *string `json:"bundle,omitempty"`
	Endpoint *string `json:"endpoint,omitempty"`
	CA       string  `json:"ca,omitempty"`
}

// parseTrustPush reads the text of a proposal.
func parseTrustPush(doc string) (trustPush, error) {
	var p trustPush
	if err := sealed.Decode([]byte(doc), maxProposal, &p); err != nil {
		return p, fmt.Errorf("reading proposal: %w", err)
	}
	return p, p.validate()
}

func (p trustPush) validate() error {
	switch {
	case p.Bundle == nil && p.Endpoint == nil:
		return invalid("bundle", "wants a bundle or an endpoint")
	case p.Endpoint == nil && p.CA != "":
		return invalid("ca", "only together with endpoint")
	case p.Endpoint != nil:
		return validateEndpoint(*p.Endpoint, p.CA)
	}
	return nil
}

// text is that part of a row which the push replaces; of no row it is empty.
func (p trustPush) text(row trustRow) string {
	if row == (trustRow{}) {
		return ""
	}
	old := trustPush{}
	if p.Endpoint != nil {
		old.Endpoint, old.CA = &row.Endpoint, row.CA
	}
	if p.Bundle != nil {
		old.Bundle = &row.Document
	}
	return textOf(old)
}

// trustTextNow is what the push in a proposal would replace now.
func trustTextNow(ctx context.Context, s logical.Storage, content string) (string, error) {
	p, err := parseTrustPush(content)
	if err != nil {
		return "", err
	}
	var row trustRow
	_, err = get(ctx, s, storeTrustBundle, &row)
	return p.text(row), err
}

func (b *backend) trustWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	p := trustPush{CA: text(d, "ca")}
	for field, to := range map[string]**string{"bundle": &p.Bundle, "endpoint": &p.Endpoint} {
		if v, ok := d.GetOk(field); ok {
			given := v.(string)
			*to = &given
		}
	}
	if err := p.validate(); err != nil {
		return nil, err
	}
	return b.pushTrust(ctx, req, p, nil)
}

func (b *backend) pushTrust(ctx context.Context, req *logical.Request, p trustPush, yes *consent) (answer map[string]any, err error) {
	cfg, err := b.config(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	gate := func(old, next trustRow) (bool, error) {
		widens, err := trustWidens(cfg.TrustDomain, old, next)
		if err != nil {
			return false, err
		}
		answer, err = b.gate(ctx, req, widening{kind: sealed.ProposalTrust, before: p.text(old), after: textOf(p), widens: widens}, yes)
		return answer == nil, err
	}
	err = b.changeTrust(ctx, req.Storage, yes.sign(map[string]any{"by": b.actor(req)}), gate, func(row *trustRow) error {
		if p.Endpoint != nil {
			row.Endpoint, row.CA = *p.Endpoint, p.CA
		}
		if p.Bundle != nil {
			row.Document = *p.Bundle
		}
		return nil
	})
	return answer, err
}

func validateEndpoint(endpoint, ca string) error {
	if endpoint == "" && ca == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return invalid("endpoint", "wants an https URL without credentials")
	}
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(ca)) {
		return invalid("ca", "wants PEM certificates")
	}
	return nil
}

// changeTrust applies a change under one lock: validate, ask gate (nil: nobody is
// asked), log, write. A row that comes out the same is not written and not logged.
func (b *backend) changeTrust(ctx context.Context, s logical.Storage, body map[string]any, gate func(old, next trustRow) (bool, error), change func(*trustRow) error) error {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return err
	}
	defer b.locks.lock(storeTrustBundle)()
	var old trustRow
	if _, err := get(ctx, s, storeTrustBundle, &old); err != nil {
		return err
	}
	row := old
	if err := change(&row); err != nil {
		return err
	}
	if row.Document != old.Document {
		if err := succeed(cfg.TrustDomain, old, &row); err != nil {
			return err
		}
	}
	if row == old {
		return nil
	}
	if gate != nil {
		if now, err := gate(old, row); !now || err != nil {
			return err
		}
	}
	if row.Document != old.Document {
		row.RefreshedAt = b.now().UTC()
	}
	body["sequence"], body["endpoint_changed"] = row.Sequence, row.Endpoint != old.Endpoint || row.CA != old.CA
	if _, err := b.record(ctx, s, audit.Event{Type: "trust.changed", Body: body, Essential: true}); err != nil {
		return err
	}
	defer b.nouns.trust.drop()
	return put(ctx, s, storeTrustBundle, row)
}

// succeed checks that row's document may follow old's and sets its sequence.
// The same bundle written differently leaves the old document in place.
func succeed(domain string, old trustRow, row *trustRow) error {
	next, err := parseTrustBundle(domain, row.Document)
	if err != nil {
		return err
	}
	seq, _ := next.SequenceNumber()
	if old.Document != "" {
		prev, err := parseTrustBundle(domain, old.Document)
		if err != nil {
			return fmt.Errorf("decoding stored %s: malformed", storeTrustBundle)
		}
		switch {
		case seq < old.Sequence:
			return fmt.Errorf("changing trust bundle: sequence %d is below the stored %d: %w", seq, old.Sequence, sealed.ErrConflict)
		case seq == old.Sequence && !next.Equal(prev):
			return fmt.Errorf("changing trust bundle: sequence %d is stored with other content: %w", seq, sealed.ErrConflict)
		case seq == old.Sequence:
			row.Document = old.Document
			return nil
		}
	}
	row.Sequence = seq
	return nil
}

// refreshTrustBundle fetches the bundle from the configured endpoint. It runs
// on the worker, never inside a request. Without an endpoint it does nothing.
func (b *backend) refreshTrustBundle(ctx context.Context) error {
	s := b.storage
	var row trustRow
	if _, err := get(ctx, s, storeTrustBundle, &row); err != nil || row.Endpoint == "" {
		return err
	}
	document, err := fetchTrustBundle(ctx, row.Endpoint, row.CA)
	if err != nil {
		return err
	}
	return b.changeTrust(ctx, s, map[string]any{"by": "endpoint"}, nil, func(now *trustRow) error {
		if now.Endpoint != row.Endpoint || now.CA != row.CA {
			return fmt.Errorf("refreshing trust bundle: the endpoint changed meanwhile: %w", sealed.ErrConflict)
		}
		now.Document = document
		return nil
	})
}

// fetchTrustBundle gets a document over https with pinned roots: no proxy, no
// redirect, 3 s, 512 KiB.
func fetchTrustBundle(ctx context.Context, endpoint, ca string) (string, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(ca)) {
		return "", errors.New("refreshing trust bundle: no pinned CA")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: trustTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return "", fmt.Errorf("refreshing trust bundle: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("refreshing trust bundle: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("refreshing trust bundle: the endpoint answered %d", resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxTrustBundle+1))
	if err != nil {
		return "", fmt.Errorf("refreshing trust bundle: %w", err)
	}
	if len(data) > maxTrustBundle {
		return "", errors.New("refreshing trust bundle: the answer is larger than 512 KiB")
	}
	return string(data), nil
}
