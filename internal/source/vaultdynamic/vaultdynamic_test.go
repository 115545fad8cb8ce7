package vaultdynamic_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
	"sealed.dev/sealed/internal/source/sourcetest"
	"sealed.dev/sealed/internal/source/vaultdynamic"
)

const policy = `
path "auth/token/create" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "pki/issue/+" { capabilities = ["read", "update"] }
`

var _ interface {
	Prepare(context.Context, sealed.KeyRef) (string, error)
	Mint(context.Context, sealed.KeyRef, string) (source.Minted, error)
} = (*vaultdynamic.Source)(nil)

func start(t *testing.T) (*sourcetest.Server, *vaultdynamic.Source) {
	t.Helper()
	srv := sourcetest.Start(t)
	srv.Do(http.MethodPost, "sys/mounts/pki", map[string]any{"type": "pki"})
	srv.Do(http.MethodPost, "pki/root/generate/internal", map[string]any{"common_name": "root"})
	role := map[string]any{"require_cn": false, "allow_any_name": true, "generate_lease": true, "ttl": "10m", "key_type": "ec", "key_bits": 256}
	srv.Do(http.MethodPost, "pki/roles/ci", role)
	role["generate_lease"] = false
	srv.Do(http.MethodPost, "pki/roles/unleased", role)
	s, err := vaultdynamic.Open(srv.Config(sealed.SourceVaultDynamic, "pki"), secret.New(srv.Token(policy)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return srv, s
}

// revoked counts the certificates that the upstream has taken back.
func revoked(srv *sourcetest.Server) int {
	out := srv.Do("LIST", "pki/certs", nil)
	n := 0
	for _, serial := range out["data"].(map[string]any)["keys"].([]any) {
		data := srv.Do(http.MethodGet, "pki/cert/"+serial.(string), nil)["data"].(map[string]any)
		if at, ok := data["revocation_time"].(float64); ok && at > 0 {
			n++
		}
	}
	return n
}

// settle waits for Vault's own lease revocation, which runs behind the answer.
func settle(t *testing.T, srv *sourcetest.Server, want int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); revoked(srv) != want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d certificates revoked upstream, want %d", revoked(srv), want)
		}
	}
}

func TestRealVault(t *testing.T) {
	srv, s := start(t)
	ctx, ref := context.Background(), sealed.KeyRef{Path: "issue/ci", Field: "private_key"}
	if err := s.Check(ctx); err != nil {
		t.Error(err)
	}
	handle, err := s.Prepare(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Mint(ctx, ref, handle)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(m.Handle, handle+" pki/issue/ci/") || m.TTL <= 0 || m.TTL > 10*time.Minute || m.Max != 0 {
		t.Errorf("%+v", m)
	}
	_ = m.Value.Reveal(func(b []byte) error {
		if !strings.HasPrefix(string(b), "-----BEGIN") {
			t.Error("the value is no private key")
		}
		return nil
	})
	if _, err := s.Mint(ctx, ref, handle); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("a handle worked twice: %v", err)
	}
	if got := revoked(srv); got != 0 {
		t.Fatalf("%d revoked before anybody asked", got)
	}
	for _, h := range []string{m.Handle, m.Handle, handle} { // idempotent
		if err := s.Revoke(ctx, h); err != nil {
			t.Error(err)
		}
	}
	settle(t, srv, 1)
	if err := s.Revoke(ctx, "no-such-accessor"); err != nil {
		t.Errorf("not there is success: %v", err)
	}
}

// TestCrash: after Prepare or Mint the process dies; another process knows the
// stored handle only, and takes back what there is.
func TestCrash(t *testing.T) {
	srv, s := start(t)
	ctx, ref := context.Background(), sealed.KeyRef{Path: "issue/ci", Field: "private_key"}
	again, err := vaultdynamic.Open(srv.Config(sealed.SourceVaultDynamic, "pki"), secret.New(srv.Token(policy)), nil)
	if err != nil {
		t.Fatal(err)
	}
	prepared, err := s.Prepare(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Mint(ctx, ref, prepared); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("minted without the token: %v", err)
	}
	if err := again.Revoke(ctx, prepared); err != nil {
		t.Error(err)
	}
	minted, err := s.Prepare(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mint(ctx, ref, minted); err != nil {
		t.Fatal(err)
	}
	if err := again.Revoke(ctx, minted); err != nil {
		t.Error(err)
	}
	settle(t, srv, 1)
}

func TestRefusals(t *testing.T) {
	_, s := start(t)
	ctx := context.Background()
	for name, ref := range map[string]sealed.KeyRef{
		"no lease":   {Path: "issue/unleased", Field: "private_key"},
		"no field":   {Path: "issue/ci", Field: "none"},
		"not a text": {Path: "issue/ci", Field: "expiration"},
		"forbidden":  {Path: "roles/ci", Field: "x"},
	} {
		handle, err := s.Prepare(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Mint(ctx, ref, handle); !errors.Is(err, sealed.ErrUnavailable) || strings.Contains(err.Error(), "BEGIN") {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Revoke(ctx, handle); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Prepare(ctx, sealed.KeyRef{Path: "../sys"}); !errors.Is(err, sealed.ErrInvalid) {
		t.Error(err)
	}
}

// TestRealRenewal: a lease that the upstream lets us prolong is prolonged, and
// ends with the child token that made it.
func TestRealRenewal(t *testing.T) {
	srv := sourcetest.Start(t, "-dev-leased-kv")
	srv.Do(http.MethodPost, "sys/mounts/leased", map[string]any{"type": "kv", "options": map[string]any{"version": "1"}})
	srv.Do(http.MethodPost, "leased/creds", map[string]any{"password": "value-with-a-lease", "ttl": "120s"})
	token := srv.Token(`
path "auth/token/create" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "sys/leases/renew" { capabilities = ["update"] }
path "leased/creds" { capabilities = ["read"] }`)
	s, err := vaultdynamic.Open(srv.Config(sealed.SourceVaultDynamic, "leased"), secret.New(token), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, ref := t.Context(), sealed.KeyRef{Path: "creds", Field: "password"}
	handle, err := s.Prepare(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Mint(ctx, ref, handle)
	if err != nil {
		t.Fatal(err)
	}
	if m.TTL != 2*time.Minute || m.Max <= 50*time.Minute || m.Max > vaultdynamic.MaxTTL {
		t.Errorf("%+v", m)
	}
	if left, err := s.Renew(ctx, m.Handle); err != nil || left <= 0 || left > vaultdynamic.MaxTTL {
		t.Errorf("renewing: %s, %v", left, err)
	}
	if err := s.Revoke(ctx, m.Handle); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err = s.Renew(ctx, m.Handle); errors.Is(err, sealed.ErrUnavailable) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a lease outlived the child token")
		}
	}
	if _, err := s.Renew(ctx, handle); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("a handle without a lease was renewed: %v", err)
	}
}

// TestRealParameters: ssh/creds and pki/issue want to be told something.
func TestRealParameters(t *testing.T) {
	srv := sourcetest.Start(t)
	srv.Do(http.MethodPost, "sys/mounts/ssh", map[string]any{"type": "ssh"})
	srv.Do(http.MethodPost, "ssh/roles/otp", map[string]any{"key_type": "otp", "default_user": "ci", "cidr_list": "10.0.0.0/8"})
	token := srv.Token(`
path "auth/token/create" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "ssh/creds/otp" { capabilities = ["update"] }`)
	s, err := vaultdynamic.Open(srv.Config(sealed.SourceVaultDynamic, "ssh"), secret.New(token), nil)
	if err != nil {
		t.Fatal(err)
	}
	for ref, ok := range map[string]bool{"creds/otp?ip=10.1.2.3": true, "creds/otp?ip=192.0.2.1": false} {
		ref := sealed.KeyRef{Path: ref, Field: "key"}
		handle, err := s.Prepare(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Mint(t.Context(), ref, handle)
		if ok != (err == nil) || ok != (m.Value != nil) {
			t.Errorf("%s: %v", ref.Path, err)
		}
		if err := s.Revoke(t.Context(), handle); err != nil {
			t.Error(err)
		}
	}
}

// double answers as a Vault does that makes a credential. It is a double.
func double() http.Handler {
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, r *http.Request, token, body string) {
		w.Header().Set("Content-Type", "application/json")
		if r.Header.Get("X-Vault-Token") != token {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, body)
	}
	mux.HandleFunc("GET /v1/sys/internal/ui/mounts/db", func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, "s.own", `{"data":{"type":"database"}}`)
	})
	mux.HandleFunc("POST /v1/auth/token/create", func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, "s.own", `{"auth":{"client_token":"s.child","accessor":"accessor-of-child"}}`)
	})
	mux.HandleFunc("POST /v1/auth/token/revoke-accessor", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /v1/db/creds/ci", func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, "s.child", `{"lease_id":"db/creds/ci/x","lease_duration":600,"renewable":true,"data":{"password":"value-of-the-upstream"}}`)
	})
	return mux
}

func TestConformance(t *testing.T) {
	sourcetest.Run(t, sourcetest.Case{
		Config: func(address, ca string) sealed.SourceConfig {
			return sealed.SourceConfig{Name: "db", Type: sealed.SourceVaultDynamic, Address: address, CA: ca, Mount: "db"}
		},
		Open: func(cfg sealed.SourceConfig) (sourcetest.Source, error) {
			return vaultdynamic.Open(cfg, secret.New([]byte("s.own")), nil)
		},
		Good:    double,
		Ref:     sealed.KeyRef{Path: "creds/ci", Field: "password"},
		Want:    "value-of-the-upstream",
		BadRefs: []sealed.KeyRef{{Path: "../x"}, {Path: "a//b"}, {Path: ""}, {Path: "a?x=1&x=2"}, {Path: "a?=1"}, {Path: "a?"}, {Path: "a", Version: "1"}},
	})
}
