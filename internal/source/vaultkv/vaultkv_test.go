package vaultkv_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source/sourcetest"
	"sealed.dev/sealed/internal/source/vaultkv"
)

func TestRealVault(t *testing.T) {
	srv := sourcetest.Start(t)
	srv.Do(http.MethodPost, "sys/mounts/team/kv", map[string]any{"type": "kv", "options": map[string]any{"version": "2"}})
	srv.Do(http.MethodPost, "sys/mounts/old", map[string]any{"type": "kv", "options": map[string]any{"version": "1"}})
	for _, v := range []string{"first", "second"} {
		srv.Do(http.MethodPost, "team/kv/data/ci/github", map[string]any{"data": map[string]any{"token": v, "value": "plain", "number": 7}})
	}
	srv.Do(http.MethodPost, "team/kv/data/other", map[string]any{"data": map[string]any{"token": "canary-other"}})
	token := srv.Token(`path "team/kv/data/ci/*" { capabilities = ["read"] }`)
	open := func(mount string) *vaultkv.Source {
		s, err := vaultkv.Open(srv.Config(sealed.SourceVaultKV, mount), secret.New(append([]byte(nil), token...)))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s, ctx := open("team/kv"), context.Background()
	if err := s.Check(ctx); err != nil {
		t.Error(err)
	}
	for _, mount := range []string{"old", "none"} {
		if err := open(mount).Check(ctx); err == nil {
			t.Errorf("mount %s passes the check", mount)
		}
	}
	for _, tt := range []struct {
		ref  sealed.KeyRef
		want string
		err  error
	}{
		{sealed.KeyRef{Path: "ci/github", Field: "token"}, "second", nil},
		{sealed.KeyRef{Path: "ci/github", Field: "token", Version: 1}, "first", nil},
		{sealed.KeyRef{Path: "ci/github"}, "plain", nil},
		{sealed.KeyRef{Path: "ci/github", Field: "number"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "ci/github", Field: "none"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "ci/github", Field: "token", Version: 9}, "", sealed.ErrNotFound},
		{sealed.KeyRef{Path: "ci/none", Field: "token"}, "", sealed.ErrNotFound},
		{sealed.KeyRef{Path: "other", Field: "token"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "ci/../other", Field: "token"}, "", sealed.ErrInvalid},
		{sealed.KeyRef{Path: "ci%2f..%2fother", Field: "token"}, "", sealed.ErrUnavailable},
	} {
		m, err := s.Mint(ctx, tt.ref, "")
		var got string
		_ = m.Value.Reveal(func(b []byte) error { got = string(b); return nil })
		if got != tt.want || !errors.Is(err, tt.err) || (err != nil && strings.Contains(err.Error(), "canary")) {
			t.Errorf("%+v: %q, %v", tt.ref, got, err)
		}
	}
	if s.Revocable() || s.Revoke(ctx, "x") != nil {
		t.Error("a static value can't be revoked, and trying is no error")
	}
}
