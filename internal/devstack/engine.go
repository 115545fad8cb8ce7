package devstack

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

const (
	// bundleLife of the default policy. A stack that is older denies everything
	// until a new bundle is uploaded, as any mount does.
	bundleLife     = 90 * 24 * time.Hour
	maxSPIFFEBytes = 512 << 10
	systemRoots    = "/etc/ssl/certs/ca-certificates.crt"
)

// setUpEngine registers, mounts and configures the engine. A new build of the
// plug-in replaces the running one.
func (b *bringUp) setUpEngine(ctx context.Context, policy *policyBundle) error {
	b.cfg.progress("setting up the engine", 0, 0)
	if err := b.registerPlugin(ctx); err != nil {
		return fmt.Errorf("registering the engine: %w", err)
	}
	if b.ready() {
		return nil
	}
	if err := b.mountEngine(ctx); err != nil {
		return fmt.Errorf("mounting the engine: %w", err)
	}
	if err := b.configureEngine(ctx); err != nil {
		return fmt.Errorf("configuring the engine: %w", err)
	}
	if err := b.uploadPolicy(ctx, policy); err != nil {
		return fmt.Errorf("uploading the policy: %w", err)
	}
	source, err := json.Marshal(sealed.SourceConfig{Name: "builtin", Type: sealed.SourceBuiltin})
	if err != nil {
		return fmt.Errorf("encoding source: %w", err)
	}
	if _, err := b.root.Write(ctx, Mount+"/sources/builtin", map[string]any{"source": string(source)}); err != nil {
		return fmt.Errorf("adding the built-in source: %w", err)
	}
	return nil
}

func (b *bringUp) registerPlugin(ctx context.Context) error {
	sum, err := fileSHA256(b.l.private("plugins", binPlugin))
	if err != nil {
		return err
	}
	if sum == b.state.PluginHash {
		return nil
	}
	_, err = b.root.Write(ctx, "sys/plugins/catalog/secret/"+binPlugin, map[string]any{"sha256": sum, "command": binPlugin})
	if err != nil {
		return err
	}
	if b.state.PluginHash != "" {
		if _, err := b.root.Write(ctx, "sys/plugins/reload/backend", map[string]any{"plugin": binPlugin}); err != nil {
			return err
		}
	}
	return b.change(func(s *state) { s.PluginHash = sum })
}

func (b *bringUp) mountEngine(ctx context.Context) error {
	have, err := b.root.Read(ctx, "sys/mounts", nil)
	if err != nil {
		return err
	}
	if _, ok := have[Mount+"/"]; ok {
		return nil
	}
	_, err = b.root.Write(ctx, "sys/mounts/"+Mount, map[string]any{
		"type": binPlugin, "description": "Sealed, tenant " + string(b.cfg.Tenant),
		"config": map[string]any{"default_lease_ttl": "1h", "max_lease_ttl": "24h", "listing_visibility": "hidden"},
	})
	return err
}

func (b *bringUp) configureEngine(ctx context.Context) error {
	accessor, err := b.agentAuth(ctx)
	if err != nil {
		return err
	}
	_, err = b.root.Write(ctx, Mount+"/config", map[string]any{
		"tenant": string(b.cfg.Tenant), "trust_domain": b.state.TrustDomain, "agent_accessor": accessor,
		"person_claim": personClaim, "allow_embedded": b.cfg.Identity == IdentityEmbedded,
		"second_person": false, // on this machine one person plays them all
	})
	if err != nil {
		return err
	}
	// The bundle is pushed as well, so that nothing waits for the first refresh.
	document, err := b.spiffeBundle(ctx)
	if err != nil {
		return err
	}
	_, err = b.root.Write(ctx, Mount+"/config/trust-bundle", map[string]any{
		"bundle": string(document), "endpoint": b.bundleURL(), "ca": string(b.ca.pem),
	})
	return err
}

// spiffeBundle fetches the bundle document from the stack's endpoint.
func (b *bringUp) spiffeBundle(ctx context.Context) ([]byte, error) {
	roots := x509.NewCertPool()
	roots.AddCert(b.ca.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 3 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.bundleURL(), nil)
	if err != nil {
		return nil, fmt.Errorf("fetching SPIFFE bundle: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetching SPIFFE bundle: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetching SPIFFE bundle: status %d: %w", resp.StatusCode, sealed.ErrUnavailable)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxSPIFFEBytes))
}

// policyBundle is the default policy, built and signed.
type policyBundle struct {
	raw       []byte
	publicKey string // PEM
}

// policyBundle builds the default policy from this program's own copy. The
// signing key stays in the private directory, for policies that a developer
// uploads later.
func (b *bringUp) policyBundle(ctx context.Context) (*policyBundle, error) {
	if b.ready() {
		return nil, nil
	}
	private, public, err := policyKey(b.l)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(private)
	if block == nil {
		return nil, errors.New("reading policy key: no PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("reading policy key: malformed")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("reading policy key: not ECDSA")
	}
	raw, err := opabundle.Build(ctx, rego.FS(), opabundle.Manifest{
		Revision: "default", Sequence: 1, Expires: time.Now().Add(bundleLife),
	})
	if err != nil {
		return nil, fmt.Errorf("building the default policy: %w", err)
	}
	if raw, err = opabundle.Sign(ctx, raw, key, PolicyKeyID); err != nil {
		return nil, fmt.Errorf("signing the default policy: %w", err)
	}
	return &policyBundle{raw: raw, publicKey: string(public)}, nil
}

// policyKey reads the key pair, or makes it.
func policyKey(l layout) (private, public []byte, err error) {
	private, err = os.ReadFile(l.private("policy-key.pem"))
	if err == nil {
		public, err = os.ReadFile(l.private("policy-key.pub.pem"))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return private, public, err
	}
	if private, public, err = opabundle.GenerateKey(); err != nil {
		return nil, nil, err
	}
	if err := writeFile(l.private("policy-key.pub.pem"), public, 0o600); err != nil {
		return nil, nil, err
	}
	return private, public, writeFile(l.private("policy-key.pem"), private, 0o600)
}

func (b *bringUp) uploadPolicy(ctx context.Context, policy *policyBundle) error {
	status, err := b.root.Read(ctx, Mount+"/policy", nil)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		return err
	}
	if digest, _ := status["digest"].(string); digest != "" {
		return nil
	}
	have, err := b.root.Read(ctx, Mount+"/config/policy-keys", nil)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		return err
	}
	if keys, _ := have["keys"].(string); keys == "" || keys == "{}" || keys == "null" {
		doc, err := json.Marshal(map[string]string{PolicyKeyID: policy.publicKey})
		if err != nil {
			return err
		}
		if _, err := b.root.Write(ctx, Mount+"/config/policy-keys", map[string]any{"keys": string(doc)}); err != nil {
			return err
		}
	}
	_, err = b.root.Write(ctx, Mount+"/policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString(policy.raw)})
	return err
}

// writeTrust writes the trust file, readable by everyone and writable by its
// owner alone. Without any root it names the stack's own CA, which speaks for
// loopback only: no upstream is trusted then.
func (b *bringUp) writeTrust(ctx context.Context) error {
	cfg, err := b.root.Read(ctx, Mount+"/config", nil)
	if err != nil {
		return fmt.Errorf("writing trust file: %w", err)
	}
	answerKey, _ := cfg["answer_key"].(string)
	logKey, _ := cfg["log_key"].(string)
	roots, err := os.ReadFile(systemRoots)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing trust file: %w", err)
	}
	roots = append(roots, b.cfg.UpstreamRoots...)
	if len(roots) == 0 {
		roots = b.ca.pem
	}
	t := sealed.TrustFile{
		V: 1, Tenant: b.cfg.Tenant, TrustDomain: b.state.TrustDomain,
		VaultAddr: b.state.VaultAddr, VaultCA: string(b.ca.pem), VaultMount: Mount,
		AuthMount: AuthMount, AuthRole: AuthRole, Audience: Audience,
		AnswerKey: answerKey, LogKey: logKey,
		SPIFFESocket: b.l.workloadSocket(), UpstreamRoots: string(roots), Relay: b.cfg.Relay,
		AttestSocket: b.l.registrySocket(),
	}
	doc, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding trust file: %w", err)
	}
	if _, err := sealed.ParseTrustFile(doc); err != nil {
		return fmt.Errorf("writing trust file: %w", err)
	}
	doc = append(doc, '\n')
	// Replacing the file would end the attestation of sandboxes that start
	// right now: they hold the old one.
	if old, err := os.ReadFile(b.l.trust()); err == nil && bytes.Equal(old, doc) {
		return nil
	}
	return writeFile(b.l.trust(), doc, 0o644)
}
