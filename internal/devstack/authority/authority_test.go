package authority_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sealed.dev/sealed/internal/devstack/authority"
	"sealed.dev/sealed/internal/sealed"
)

var (
	td       = spiffeid.RequireTrustDomainFromString(authority.ReservedTrustDomain)
	claudeID = spiffeid.RequireFromPath(td, "/sealed/tenant/acme/agent/claude-code")
	codexID  = spiffeid.RequireFromPath(td, "/sealed/tenant/acme/agent/codex")
)

func entry(id spiffeid.ID, tenant, agent string) authority.Entry {
	return authority.Entry{ID: id, Selectors: []string{"tenant:" + tenant, "agent:" + agent, "init_sha256:aa", "isolation:own_uid"}}
}

// answers is an attestor with one answer for everybody.
type answers struct {
	selectors []string
	err       error
	pid       atomic.Int64
}

func (a *answers) Attest(_ context.Context, pid int) ([]string, error) {
	a.pid.Store(int64(pid))
	return a.selectors, a.err
}

func claude() *answers {
	return &answers{selectors: append(entry(claudeID, "acme", "claude-code").Selectors, "backend:local")}
}

func start(t *testing.T, cfg authority.Config) (a *authority.Authority, addr string) {
	t.Helper()
	if cfg.Entries == nil {
		cfg.Entries = []authority.Entry{entry(claudeID, "acme", "claude-code"), entry(codexID, "acme", "codex")}
	}
	a, err := authority.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "authority-") // short: sun_path holds 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return a, "unix://" + socket
}

func TestWorkloadAPI(t *testing.T) {
	at := claude()
	a, addr := start(t, authority.Config{Attestor: at})
	opt := workloadapi.WithAddr(addr)
	ctx := t.Context()

	x, err := workloadapi.FetchX509SVID(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := x509svid.Verify(x.Certificates, a.Bundle())
	if err != nil || id != claudeID {
		t.Errorf("X509-SVID = %v, %v; want %v", id, err, claudeID)
	}
	if life := time.Until(x.Certificates[0].NotAfter); life > time.Hour {
		t.Errorf("X509-SVID lives %v, want at most 1 h", life)
	}
	if got := int(at.pid.Load()); got != os.Getpid() {
		t.Errorf("attested process %d, want the caller %d", got, os.Getpid())
	}

	j, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "vault"}, opt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(j.Marshal(), a.Bundle(), []string{"vault"}); err != nil {
		t.Errorf("JWT-SVID does not verify: %v", err)
	}
	if _, err := jwtsvid.ParseAndValidate(j.Marshal(), a.Bundle(), []string{"other"}); err == nil {
		t.Error("JWT-SVID verifies for another audience")
	}
	if life := time.Until(j.Expiry); life > 5*time.Minute {
		t.Errorf("JWT-SVID lives %v, want at most 5 min", life)
	}
	if _, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "vault", Subject: codexID}, opt); status.Code(err) != codes.PermissionDenied {
		t.Errorf("JWT-SVID of another agent: %v, want PermissionDenied", err)
	}
	if v, err := workloadapi.ValidateJWTSVID(ctx, j.Marshal(), "vault", opt); err != nil || v.ID != claudeID {
		t.Errorf("ValidateJWTSVID = %v, %v", v, err)
	}
	if _, err := workloadapi.ValidateJWTSVID(ctx, j.Marshal()[:len(j.Marshal())-4]+"AAAA", "vault", opt); err == nil {
		t.Error("ValidateJWTSVID accepts a forged signature")
	}
	if set, err := workloadapi.FetchX509Bundles(ctx, opt); err != nil || !set.Has(td) {
		t.Errorf("FetchX509Bundles: %v", err)
	}
	if set, err := workloadapi.FetchJWTBundles(ctx, opt); err != nil || !set.Has(td) {
		t.Errorf("FetchJWTBundles: %v", err)
	}
}

// TestNoIdentity: every method refuses a caller without a matching entry.
func TestNoIdentity(t *testing.T) {
	tests := map[string]*answers{
		"stranger":                 {},
		"refused by the attestor":  {selectors: claude().selectors, err: errors.New("not alone")},
		"one selector missing":     {selectors: []string{"tenant:acme", "agent:claude-code", "init_sha256:aa"}},
		"prefix of a tenant (D06)": {selectors: []string{"tenant:acme-2", "agent:claude-code", "init_sha256:aa", "isolation:own_uid"}},
	}
	for name, at := range tests {
		t.Run(name, func(t *testing.T) {
			_, addr := start(t, authority.Config{Attestor: at})
			opt := workloadapi.WithAddr(addr)
			_, x := workloadapi.FetchX509SVID(t.Context(), opt)
			_, j := workloadapi.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "vault"}, opt)
			_, xb := workloadapi.FetchX509Bundles(t.Context(), opt)
			_, jb := workloadapi.FetchJWTBundles(t.Context(), opt)
			_, v := workloadapi.ValidateJWTSVID(t.Context(), "a.b.c", "vault", opt)
			for method, err := range map[string]error{"x509": x, "jwt": j, "x509 bundles": xb, "jwt bundles": jb, "validate": v} {
				if status.Code(err) != codes.PermissionDenied {
					t.Errorf("%s: %v, want PermissionDenied", method, err)
				}
			}
		})
	}
}

func TestSecurityHeaderRequired(t *testing.T) {
	_, addr := start(t, authority.Config{Attestor: claude()})
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	client := workload.NewSpiffeWorkloadAPIClient(cc)
	req := &workload.JWTSVIDRequest{Audience: []string{"vault"}}
	if _, err := client.FetchJWTSVID(t.Context(), req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("unary without header: %v, want InvalidArgument", err)
	}
	stream, err := client.FetchX509SVID(t.Context(), &workload.X509SVIDRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("stream without header: %v, want InvalidArgument", err)
	}
	with := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	if _, err := client.FetchJWTSVID(with, req); err != nil {
		t.Errorf("with header: %v", err)
	}
	if _, err := client.FetchJWTSVID(with, &workload.JWTSVIDRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no audience: %v, want InvalidArgument", err)
	}
}

func TestBundleEndpoint(t *testing.T) {
	a, _ := start(t, authority.Config{Attestor: claude()})
	srv := httptest.NewTLSServer(a.BundleHandler())
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := spiffebundle.Read(td, resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !b.Equal(a.Bundle()) {
		t.Error("endpoint serves another bundle")
	}
	if _, ok := b.SequenceNumber(); !ok {
		t.Error("bundle has no sequence number")
	}
	if hint, ok := b.RefreshHint(); !ok || hint <= 0 {
		t.Error("bundle has no refresh hint")
	}
	if len(b.X509Authorities()) != 1 || len(b.JWTAuthorities()) != 1 {
		t.Error("bundle wants one X.509 and one JWT authority")
	}
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	// The standard client, with the endpoint's certificate pinned.
	got, err := federation.FetchBundle(t.Context(), td, srv.URL, federation.WithWebPKIRoots(roots))
	if err != nil || !got.Equal(b) {
		t.Errorf("federation client: %v", err)
	}
}

func TestStateSurvivesRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, _ := start(t, authority.Config{Attestor: claude(), Dir: dir})
	second, _ := start(t, authority.Config{Attestor: claude(), Dir: dir})
	if !first.Bundle().Equal(second.Bundle()) {
		t.Error("restart made another CA")
	}
	state := filepath.Join(dir, "ca.pem")
	st, err := os.Stat(state)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("state file: %v, %v; want 0600", st.Mode(), err)
	}
	t.Run("expiring CA is replaced, sequence rises", func(t *testing.T) {
		later := func() time.Time { return time.Now().Add(360 * 24 * time.Hour) }
		third, err := authority.New(authority.Config{Attestor: claude(), Dir: dir, Clock: later})
		if err != nil {
			t.Fatal(err)
		}
		before, _ := first.Bundle().SequenceNumber()
		after, _ := third.Bundle().SequenceNumber()
		if after <= before {
			t.Errorf("sequence %d after %d", after, before)
		}
	})
	for name, damage := range map[string]func() error{
		"readable by others": func() error { return os.Chmod(state, 0o644) },
		"garbage":            func() error { return errors.Join(os.WriteFile(state, []byte("x"), 0o600), os.Chmod(state, 0o600)) },
		"link": func() error {
			return errors.Join(os.Rename(state, state+".real"), os.Symlink(state+".real", state))
		},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(state)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			if _, err := authority.New(authority.Config{Attestor: claude(), Dir: dir}); err == nil {
				t.Error("New accepts the state file")
			}
			_ = os.Remove(state)
			if err := os.WriteFile(state, data, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestConfigRefused(t *testing.T) {
	other := spiffeid.RequireTrustDomainFromString("example.org")
	good := entry(claudeID, "acme", "claude-code")
	tests := map[string]authority.Config{
		"no attestor":                       {},
		"another trust domain (R25)":        {Attestor: claude(), TrustDomain: other},
		"entry of another trust domain":     {Attestor: claude(), Entries: []authority.Entry{entry(spiffeid.RequireFromPath(other, claudeID.Path()), "acme", "claude-code")}},
		"entry that is no agent":            {Attestor: claude(), Entries: []authority.Entry{entry(spiffeid.RequireFromPath(td, "/admin"), "acme", "claude-code")}},
		"entry without selectors":           {Attestor: claude(), Entries: []authority.Entry{{ID: claudeID}}},
		"entry with another tenant":         {Attestor: claude(), Entries: []authority.Entry{entry(claudeID, "other", "claude-code")}},
		"entry with another agent":          {Attestor: claude(), Entries: []authority.Entry{entry(claudeID, "acme", "codex")}},
		"entry without measured executable": {Attestor: claude(), Entries: []authority.Entry{{ID: claudeID, Selectors: good.Selectors[:2]}}},
	}
	for name, cfg := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := authority.New(cfg); !errors.Is(err, sealed.ErrInvalid) {
				t.Errorf("New = %v, want ErrInvalid", err)
			}
		})
	}
	t.Run("control: the good entry", func(t *testing.T) {
		if _, err := authority.New(authority.Config{Attestor: claude(), Entries: []authority.Entry{good}}); err != nil {
			t.Error(err)
		}
	})
}
