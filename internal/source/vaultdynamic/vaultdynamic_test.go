package vaultdynamic_test

import (
	"context"
	"errors"
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
	if m.Handle != handle || m.TTL <= 0 || m.TTL > 10*time.Minute {
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
	for range 2 { // idempotent
		if err := s.Revoke(ctx, handle); err != nil {
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
