package vaultkv_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source/sourcetest"
	"sealed.dev/sealed/internal/source/vaultkv"
)

// double answers as a Vault does that has one secret. It is a double.
func double() http.Handler {
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, r *http.Request, body string) {
		w.Header().Set("Content-Type", "application/json")
		if r.Header.Get("X-Vault-Token") != "s.token" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, body)
	}
	mux.HandleFunc("GET /v1/sys/internal/ui/mounts/kv", func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, `{"data":{"type":"kv","options":{"version":"2"}}}`)
	})
	mux.HandleFunc("GET /v1/kv/data/ci/github", func(w http.ResponseWriter, r *http.Request) {
		if v := r.FormValue("version"); v != "" && v != "3" {
			http.Error(w, `{"errors":[]}`, http.StatusNotFound)
			return
		}
		reply(w, r, `{"data":{"data":{"token":"value-of-the-upstream"},"metadata":{"version":3}}}`)
	})
	mux.HandleFunc("GET /v1/kv/metadata/ci/github", func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, `{"data":{"current_version":3,"versions":{"3":{"deletion_time":"","destroyed":false}}}}`)
	})
	mux.HandleFunc("POST /v1/auth/team/approle/login", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if string(body) != `{"role_id":"role","secret_id":"login"}` || r.Header.Get("X-Vault-Token") != "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"auth":{"client_token":"s.token","lease_duration":3600,"renewable":true}}`)
	})
	return mux
}

func TestConformance(t *testing.T) {
	for name, auth := range map[string]struct {
		how        sealed.SourceAuth
		credential string
	}{
		"token":   {sealed.SourceAuth{}, "s.token"},
		"approle": {sealed.SourceAuth{Method: sealed.AuthAppRole, Mount: "team/approle", Role: "role"}, "login"},
	} {
		t.Run(name, func(t *testing.T) {
			sourcetest.Run(t, sourcetest.Case{
				Config: func(address, ca string) sealed.SourceConfig {
					return sealed.SourceConfig{Name: "kv", Type: sealed.SourceVaultKV, Address: address, CA: ca, Mount: "kv", Auth: auth.how}
				},
				Open: func(cfg sealed.SourceConfig) (sourcetest.Source, error) {
					return vaultkv.Open(cfg, secret.New([]byte(auth.credential)), nil)
				},
				Good:    double,
				Ref:     sealed.KeyRef{Path: "ci/github", Field: "token"},
				Want:    "value-of-the-upstream",
				BadRefs: []sealed.KeyRef{{Path: "../x"}, {Path: "a//b"}, {Path: ""}, {Path: `a\b`}},
				Retries: true,
			})
		})
	}
}

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
		s, err := vaultkv.Open(srv.Config(sealed.SourceVaultKV, mount), secret.New(append([]byte(nil), token...)), nil)
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
		{sealed.KeyRef{Path: "ci/github", Field: "token", Version: "1"}, "first", nil},
		{sealed.KeyRef{Path: "ci/github"}, "plain", nil},
		{sealed.KeyRef{Path: "ci/github", Field: "number"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "ci/github", Field: "none"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "ci/github", Field: "token", Version: "9"}, "", sealed.ErrNotFound},
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
	if _, err := s.Newest(ctx, sealed.KeyRef{Path: "ci/github"}); !errors.Is(err, sealed.ErrUnavailable) || errors.Is(err, sealed.ErrNotFound) {
		t.Errorf("without the right to read metadata: %v", err)
	}
	told, err := vaultkv.Open(srv.Config(sealed.SourceVaultKV, "team/kv"), secret.New([]byte(srv.Token(`path "team/kv/metadata/ci/*" { capabilities = ["read"] }`))), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		ref  sealed.KeyRef
		want sealed.SourceVersion
		err  error
	}{
		{sealed.KeyRef{Path: "ci/github"}, "2", nil},
		{sealed.KeyRef{Path: "ci/github", Version: "1"}, "1", nil},
		{sealed.KeyRef{Path: "ci/github", Version: "9"}, "", sealed.ErrNotFound},
		{sealed.KeyRef{Path: "ci/none"}, "", sealed.ErrNotFound},
		{sealed.KeyRef{Path: "other"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "ci/../other"}, "", sealed.ErrInvalid},
	} {
		if got, err := told.Newest(ctx, tt.ref); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("newest of %+v: %q, %v", tt.ref, got, err)
		}
	}
	if s.Revocable() || s.Revoke(ctx, "x") != nil {
		t.Error("a static value can't be revoked, and trying is no error")
	}
}
