package devstack

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sealed.dev/sealed/internal/devstack/authority"
	"sealed.dev/sealed/internal/sealed"
	spireattestor "sealed.dev/sealed/spire-attestor"
)

// authorityConfig is private/authority.json, written by Up and read by
// RunAuthority in a process of its own.
type authorityConfig struct {
	Dir            string        `json:"dir"` // of the CA
	WorkloadSocket string        `json:"workload_socket"`
	RegistrySocket string        `json:"registry_socket"`
	BundleAddr     string        `json:"bundle_addr"`
	CertFile       string        `json:"cert_file"`
	KeyFile        string        `json:"key_file"`
	TrustFile      string        `json:"trust_file"`
	InitSHA256     string        `json:"init_sha256"`
	Tenant         sealed.Name   `json:"tenant"`
	Agents         []sealed.Name `json:"agents"`
	Launchers      []int         `json:"launchers"`
	Entries        []entry       `json:"entries"`
}

// maxAuthorityConfig bounds the file, in bytes.
const maxAuthorityConfig = 1 << 20

// startAuthority starts the embedded authority, anew if its configuration is
// another than the running one's.
func (b *bringUp) startAuthority(ctx context.Context) error {
	cfg := authorityConfig{
		Dir: b.l.private("authority"), WorkloadSocket: b.l.workloadSocket(), RegistrySocket: b.l.registrySocket(),
		BundleAddr: b.state.BundleAddr, CertFile: b.l.private("bundle-cert.pem"), KeyFile: b.l.private("bundle-key.pem"),
		TrustFile: b.l.trust(), InitSHA256: b.init, Tenant: b.cfg.Tenant, Agents: agents(),
		Launchers: b.state.Launchers, Entries: b.entries(),
	}
	doc, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the authority's configuration: %w", err)
	}
	path := b.l.private("authority.json")
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the authority's configuration: %w", err)
	}
	if b.running("authority") && bytes.Equal(old, doc) {
		return nil
	}
	if err := b.clear(ctx, "authority"); err != nil {
		return err
	}
	if err := writeFile(path, doc, 0o600); err != nil {
		return err
	}
	argv := append(append([]string{}, b.cfg.Self...), "--config", path)
	return b.start(ctx, "authority", argv, b.bundleReady)
}

// RunAuthority is the process of the embedded authority: it serves the
// Workload API, the attestor's registry and the bundle endpoint until ctx ends
// or one of them fails; it returns nil if ctx ended it. Its log goes to stderr. configFile comes from Up.
func RunAuthority(ctx context.Context, configFile string) error {
	data, err := os.ReadFile(configFile)
	if err != nil {
		return fmt.Errorf("running authority: %w", err)
	}
	var cfg authorityConfig
	if err := sealed.Decode(data, maxAuthorityConfig, &cfg); err != nil {
		return fmt.Errorf("running authority: reading %s: %w", configFile, err)
	}
	err = cfg.serve(ctx, slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	if err != nil && !(ctx.Err() != nil && errors.Is(err, context.Cause(ctx))) {
		return fmt.Errorf("running authority: %w", err)
	}
	return nil
}

func (cfg authorityConfig) serve(ctx context.Context, log *slog.Logger) error {
	attestor, err := spireattestor.New(cfg.attestor(log))
	if err != nil {
		return err
	}
	entries, err := cfg.entries()
	if err != nil {
		return err
	}
	auth, err := authority.New(authority.Config{Dir: cfg.Dir, Attestor: attestor, Entries: entries, Log: log})
	if err != nil {
		return err
	}
	registry, err := spireattestor.ListenRegistry(cfg.RegistrySocket)
	if err != nil {
		return err
	}
	defer registry.Close()
	workload, err := listenWorkload(cfg.WorkloadSocket)
	if err != nil {
		return err
	}
	defer workload.Close()
	return parallel(ctx,
		func(ctx context.Context) error { return ended(ctx, "registry", attestor.Serve(ctx, registry)) },
		func(ctx context.Context) error { return ended(ctx, "Workload API", auth.Serve(ctx, workload)) },
		func(ctx context.Context) error { return cfg.serveBundle(ctx, auth.BundleHandler()) },
	)
}

// ended makes an error of a server that stopped without being told to.
func ended(ctx context.Context, what string, err error) error {
	if err == nil && ctx.Err() == nil {
		return fmt.Errorf("serving %s: it stopped", what)
	}
	return err
}

func (cfg authorityConfig) attestor(log *slog.Logger) spireattestor.Config {
	launchers := map[uint32]spireattestor.Launcher{}
	for _, uid := range cfg.Launchers {
		launchers[uint32(uid)] = spireattestor.Launcher{Tenant: cfg.Tenant, Agents: cfg.Agents}
	}
	out := spireattestor.Config{
		TrustFile: cfg.TrustFile, InitSHA256: []string{cfg.InitSHA256}, Launchers: launchers, Log: log,
		AllowUserInit: os.Geteuid() != 0,
	}
	if os.Geteuid() == 0 {
		out.RunUIDs = spireattestor.UIDRange{Min: runUIDMin, Max: runUIDMax}
	}
	return out
}

func (cfg authorityConfig) entries() ([]authority.Entry, error) {
	var out []authority.Entry
	for _, e := range cfg.Entries {
		id, err := spiffeid.FromString(e.ID)
		if err != nil {
			return nil, fmt.Errorf("reading entry: %w", err)
		}
		out = append(out, authority.Entry{ID: id, Selectors: e.Selectors, DNSNames: e.DNSNames})
	}
	return out, nil
}

// listenWorkload makes the socket of the Workload API, for everyone: who a
// caller is, is asked of the kernel.
func listenWorkload(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listening on Workload API: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on Workload API: %w", err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		return nil, errors.Join(fmt.Errorf("listening on Workload API: %w", err), l.Close())
	}
	return l, nil
}

func (cfg authorityConfig) serveBundle(ctx context.Context, h http.Handler) error {
	cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("serving bundle endpoint: %w", err)
	}
	l, err := net.Listen("tcp4", cfg.BundleAddr)
	if err != nil {
		return fmt.Errorf("serving bundle endpoint: %w", err)
	}
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 3 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.ServeTLS(l, "", ""); ctx.Err() == nil {
		return fmt.Errorf("serving bundle endpoint: %w", err)
	}
	return nil
}
