package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/install"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

const (
	defaultAuthMount   = "jwt-sealed"
	defaultAttestorCmd = "spire-attestor-sealed"
	systemRoots        = "/etc/ssl/certs/ca-certificates.crt"
	maxPEM             = 4 << 20
	maxBundleBytes     = 512 << 10 // the engine's limit
)

// A targetFlags is what install and tenant create are told.
type targetFlags struct {
	tenant, trustDomain, authMount, audience  string
	bundleEndpoint, bundleCA, bundle, person  string
	policyKey, policyKeyID                    string
	trustFile, hostTrustFile, upstreamRoots   string
	spiffeSocket, registrySocket              string
	spireSocket, initFile, attestor, attestAt string
	runUIDs                                   string
	parents, agents                           []string
	launchers                                 []int
	relay                                     map[string]string
	prune, noBuiltin, second                  bool
	plugin                                    pluginFlags
}

func (f *targetFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.trustDomain, "trust-domain", "", "SPIFFE trust domain of the agents; never changes")
	fl.StringVar(&f.authMount, "auth-mount", defaultAuthMount, "auth mount for agents; tenants of one trust domain may share it")
	fl.StringVar(&f.audience, "audience", "vault://sealed", "audience that JWT-SVIDs have to name")
	fl.StringVar(&f.bundleEndpoint, "bundle-endpoint", "", "https URL of SPIRE's bundle endpoint, as Vault reaches it")
	fl.StringVar(&f.bundleCA, "bundle-ca", "", "PEM file with the only roots for the endpoint")
	fl.StringVar(&f.bundle, "bundle", "", "file with the trust bundle as the endpoint serves it (default: fetched by the engine)")
	fl.StringVar(&f.person, "person-claim", "", "entity metadata that names the human (default: the entity is the person)")
	fl.StringVar(&f.policyKey, "policy-key", "", "signing key: its public half and the default policy are put in if there are none")
	fl.StringVar(&f.policyKeyID, "policy-key-id", "policy-1", "id of that key")
	fl.BoolVar(&f.second, "second-person", true, "what widens waits for a second person (=false: not on a mount made now)")
	fl.BoolVar(&f.noBuiltin, "no-builtin", false, "do not add the engine's own store as the source builtin")
	fl.StringVar(&f.trustFile, "trust-file", "", "write the hosts' trust file here (wants --ca-file)")
	fl.StringVar(&f.hostTrustFile, "host-trust-file", defaultTrustFile, "where the hosts have it")
	fl.StringVar(&f.upstreamRoots, "upstream-roots", systemRoots, "PEM file with the roots that sandboxes trust for upstreams")
	fl.StringToStringVar(&f.relay, "relay", nil, "HOST:PORT=ADDRESS of a private network that sandboxes may reach, for the trust file")
	fl.StringVar(&f.spiffeSocket, "spiffe-socket", "/run/spire/sockets/agent.sock", "Workload API on the hosts")
	fl.StringVar(&f.registrySocket, "registry-socket", "/run/sealed/attestor/registry.sock", "attestor's registry on the hosts")
	fl.StringVar(&f.spireSocket, "spire-socket", "", "SPIRE server's own socket, to make the entries; else commands are printed")
	fl.StringSliceVar(&f.parents, "spire-parent", nil, "SPIFFE ID of a SPIRE agent, or of an alias of some (repeatable)")
	fl.StringSliceVar(&f.agents, "agent", []string{"claude-code", "codex", "gemini", "custom"}, "kind of agent that gets an identity (repeatable)")
	fl.IntSliceVar(&f.launchers, "launcher", []int{0}, "uid of the hosts that may start sandboxes (repeatable)")
	fl.StringVar(&f.initFile, "init", "", "sealed-init as the hosts have it; without it nothing is said about SPIRE")
	fl.StringVar(&f.attestor, "attestor", "", "your copy of the attestor, to pin its digest")
	fl.StringVar(&f.attestAt, "attestor-path", "/usr/libexec/sealed/"+defaultAttestorCmd, "where the hosts have it")
	fl.StringVar(&f.runUIDs, "run-uids", "700000-799999", "uids for sandboxes on the hosts")
	fl.BoolVar(&f.prune, "prune-entries", false, "remove the tenant's entries of another sealed-init or launcher")
}

func (f targetFlags) target(ctx context.Context, a *app, c *vaultclient.Client) (install.Target, error) {
	t := install.Target{
		Mount: a.mount, Tenant: sealed.Name(f.tenant), TrustDomain: f.trustDomain, AuthMount: f.authMount, Audience: f.audience,
		BundleEndpoint: f.bundleEndpoint, PersonClaim: f.person, Builtin: !f.noBuiltin, OnePerson: !f.second,
	}
	if f.tenant == "" || f.trustDomain == "" || f.bundleEndpoint == "" || f.bundleCA == "" {
		return t, usagef("wants a tenant, --trust-domain, --bundle-endpoint and --bundle-ca")
	}
	var err error
	if t.Plugin, err = f.plugin.plugin(ctx, c); err != nil {
		return t, err
	}
	for path, to := range map[string]*string{f.bundleCA: &t.BundleCA, f.bundle: &t.Bundle} {
		if path == "" {
			continue
		}
		b, err := a.document(path, maxPEM)
		if err != nil {
			return t, err
		}
		*to = string(b)
	}
	if t.Bundle == "" {
		if t.Bundle, err = fetchBundle(ctx, t.BundleEndpoint, t.BundleCA); err != nil {
			a.talk("the bundle endpoint does not answer here; the engine will ask it: %v", err)
		}
	}
	if err := f.addPolicy(ctx, &t); err != nil {
		return t, err
	}
	if err := f.addSPIRE(&t); err != nil {
		return t, err
	}
	return t, f.addTrust(a, &t)
}

// fetchBundle gets the trust bundle as the engine would, so that nothing waits for
// the engine's first look: pinned roots, no redirect, 3 s.
func fetchBundle(ctx context.Context, endpoint, ca string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ca)) {
		return "", fmt.Errorf("fetching trust bundle: no PEM certificate in --bundle-ca: %w", sealed.ErrInvalid)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return "", fmt.Errorf("fetching trust bundle: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("fetching trust bundle: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("fetching trust bundle: status %d: %w", resp.StatusCode, sealed.ErrUnavailable)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBundleBytes))
	if err != nil {
		return "", fmt.Errorf("fetching trust bundle: %w", err)
	}
	return string(b), nil
}

// plugin measures the file, and asks it for its version where none was named.
func (f pluginFlags) plugin(ctx context.Context, c *vaultclient.Client) (install.Plugin, error) {
	p := install.Plugin{Version: f.version, Command: f.command}
	var err error
	if f.file == "" {
		if p.Version == "" {
			p.Version, err = install.LatestVersion(ctx, c)
		}
		if errors.Is(err, sealed.ErrNotFound) {
			err = &hintError{err: err, hint: "name its file with --plugin"}
		}
		return p, err
	}
	if p.Command == "" {
		p.Command = filepath.Base(f.file)
	}
	if p.SHA256, err = hashFile(f.file); err != nil {
		return p, err
	}
	if p.Version == "" {
		p.Version, err = askVersion(ctx, f.file)
	}
	return p, err
}

// askVersion runs the plug-in with -version and an empty environment.
func askVersion(ctx context.Context, file string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", file, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, abs, "-version")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return "", &hintError{err: fmt.Errorf("asking %s for its version: %w", file, err), hint: "name it with --plugin-version"}
	}
	return strings.TrimSpace(string(out)), nil
}

// addPolicy signs the default policies, which are used if none is in force.
func (f targetFlags) addPolicy(ctx context.Context, t *install.Target) error {
	if f.policyKey == "" {
		return nil
	}
	key, err := readSigningKey(f.policyKey)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("encoding the public key: %w", err)
	}
	t.PolicyKeys = map[string]string{f.policyKeyID: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))}
	raw, err := opabundle.Build(ctx, rego.FS(), opabundle.Manifest{Revision: "default", Sequence: 1, Expires: time.Now().Add(bundleLife)})
	if err != nil {
		return err
	}
	t.PolicyBundle, err = opabundle.Sign(ctx, raw, key, f.policyKeyID)
	return err
}

func (f targetFlags) addSPIRE(t *install.Target) error {
	if f.initFile == "" {
		if f.spireSocket != "" {
			return usagef("--spire-socket wants --init, whose digest the entries require")
		}
		return nil
	}
	s := &install.SPIRE{
		Socket: f.spireSocket, Parents: f.parents, Launchers: f.launchers, Prune: f.prune,
		Attestor: f.attestAt, RegistrySocket: f.registrySocket, TrustFile: f.hostTrustFile, RunUIDs: f.runUIDs,
	}
	for _, agent := range f.agents {
		s.Agents = append(s.Agents, sealed.Name(agent))
	}
	var err error
	if s.InitSHA256, err = hashFile(f.initFile); err != nil {
		return err
	}
	if f.attestor != "" {
		if s.AttestorSHA256, err = hashFile(f.attestor); err != nil {
			return err
		}
	}
	t.SPIRE = s
	return nil
}

func (f targetFlags) addTrust(a *app, t *install.Target) error {
	if f.trustFile == "" {
		return nil
	}
	if a.caFile == "" {
		return usagef("--trust-file wants --ca-file: sandboxes trust the CA in it alone")
	}
	ca, err := a.document(a.caFile, maxPEM)
	if err != nil {
		return err
	}
	roots, err := a.document(f.upstreamRoots, maxPEM)
	if err != nil {
		return err
	}
	path, err := filepath.Abs(f.trustFile)
	if err != nil {
		return fmt.Errorf("finding the trust file: %w", err)
	}
	t.TrustFile = &install.TrustFile{
		Path: path, VaultAddr: a.addr, VaultCA: string(ca), UpstreamRoots: string(roots),
		SPIFFESocket: f.spiffeSocket, AttestSocket: f.registrySocket, Relay: f.relay,
	}
	return nil
}
