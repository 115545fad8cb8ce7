package vaultclient

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

func serve(t *testing.T, h http.HandlerFunc) (addr string, ca []byte) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return s.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func TestSentinels(t *testing.T) {
	for status, want := range map[int]error{
		400: sealed.ErrInvalid, 401: sealed.ErrDenied, 403: sealed.ErrDenied, 404: sealed.ErrNotFound,
		409: sealed.ErrConflict, 428: sealed.ErrApprovalRequired, 429: sealed.ErrUnavailable,
		500: sealed.ErrUnavailable, 502: sealed.ErrUnavailable, 503: sealed.ErrUnavailable,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			calls := 0
			addr, ca := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				calls++
				w.WriteHeader(status)
				_, _ = io.WriteString(w, `{"errors":["because"]}`)
			})
			c, err := New(addr, ca, "token-canary")
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Write(t.Context(), "sealed/x", map[string]any{"a": "b"})
			if !errors.Is(err, want) {
				t.Errorf("error %v, want %v", err, want)
			}
			if strings.Contains(err.Error(), "token-canary") || !strings.Contains(err.Error(), "because") {
				t.Errorf("error text: %v", err)
			}
			if calls != 1 {
				t.Errorf("%d calls, want 1: never retried", calls)
			}
		})
	}
}

func TestNotFoundAndUnreachable(t *testing.T) {
	addr, ca := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(404)
		_, _ = io.WriteString(w, `{"errors":[]}`)
	})
	c, err := New(addr, ca, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(t.Context(), "sealed/x", nil); !errors.Is(err, sealed.ErrNotFound) {
		t.Errorf("reading nothing: %v", err)
	}
	if keys, err := c.List(t.Context(), "sealed/x"); err != nil || len(keys) != 0 {
		t.Errorf("listing nothing: %v, %v", keys, err)
	}
	// Another CA: nothing is sent, and the cause is unavailability.
	other, err := New(addr, nil, "token")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Read(t.Context(), "sealed/x", nil); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("untrusted server: %v", err)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	reached := false
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	t.Cleanup(thief.Close)
	addr, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
	})
	c, err := New(addr, ca, "token")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(t.Context(), "sealed/x", nil); err == nil && reached {
		t.Error("redirect was followed")
	}
	if reached {
		t.Error("the other host was reached")
	}
}

func TestNewIgnoresEnvironment(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "from-env")
	t.Setenv("VAULT_NAMESPACE", "from-env")
	t.Setenv("VAULT_HEADERS", `{"X-Other":"from-env"}`)
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	var got http.Header
	addr, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		_, _ = io.WriteString(w, `{"data":{"ok":"yes"}}`)
	})
	c, err := New(addr, ca, "")
	if err != nil {
		t.Fatal(err)
	}
	other, err := c.WithToken("mine")
	if err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]*Client{"": c, "mine": other} {
		data, err := c.Read(t.Context(), "sealed/x", map[string]string{"q": "1"})
		if diff := cmp.Diff(map[string]any{"ok": "yes"}, data); err != nil || diff != "" {
			t.Errorf("answer: %v %s", err, diff)
		}
		if got.Get("X-Vault-Token") != want || got.Get("X-Vault-Namespace") != "" || got.Get("X-Other") != "" {
			t.Errorf("headers came from the environment: %v", got)
		}
	}
}

func TestFromEnv(t *testing.T) {
	env := map[string]string{"VAULT_TOKEN": "t0", "VAULT_NAMESPACE": "team"}
	getenv := func(k string) string { return env[k] }
	if _, err := FromEnv(getenv); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("without VAULT_ADDR: %v", err)
	}
	var got http.Header
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		_, _ = io.WriteString(w, `{"data":{}}`)
	}))
	t.Cleanup(s.Close)
	env["VAULT_ADDR"] = s.URL
	c, err := FromEnv(getenv)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(t.Context(), "x", nil); err != nil {
		t.Fatal(err)
	}
	if got.Get("X-Vault-Token") != "t0" || got.Get("X-Vault-Namespace") != "team" {
		t.Errorf("headers: %v", got)
	}
}

func TestAddress(t *testing.T) {
	for addr, ok := range map[string]bool{
		"https://vault.example:8200": true, "http://127.0.0.1:8200": true, "http://[::1]:8200": true,
		"http://vault.example:8200": false, "https://user:pw@vault.example": false, "vault.example": false,
		"https://vault.example/path": false, "unix:///run/vault.sock": false, "": false, "http://localhost:8200": false,
	} {
		if _, err := New(addr, nil, ""); (err == nil) != ok {
			t.Errorf("New(%q): %v, want ok %t", addr, err, ok)
		}
	}
}

func TestLogin(t *testing.T) {
	addr, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/bad") {
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"errors":["invalid username or password"]}`)
			return
		}
		_, _ = io.WriteString(w, `{"auth":{"client_token":"hvs.canary","accessor":"acc","entity_id":"ent","lease_duration":120,"renewable":true,"policies":["p"]}}`)
	})
	c, err := New(addr, ca, "")
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.Login(t.Context(), "auth/userpass/login/admin", map[string]any{"password": "x"})
	if err != nil || string(l.Token) != "hvs.canary" || l.Accessor != "acc" || l.TTL != 120 || !l.Renewable {
		t.Errorf("login: %v %v", l, err)
	}
	for _, printed := range []string{fmt.Sprintf("%v", l), fmt.Sprintf("%+v", l), fmt.Sprintf("%#v", l), fmt.Sprintf("%q", l.Token)} {
		if strings.Contains(printed, "canary") {
			t.Errorf("the token prints: %s", printed)
		}
	}
	if _, err := c.Login(t.Context(), "auth/userpass/login/bad", nil); !errors.Is(err, sealed.ErrDenied) || errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("wrong password: %v", err)
	}
}

func TestSys(t *testing.T) {
	addr, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/sys/health":
			w.WriteHeader(http.StatusTooManyRequests) // a standby
			_, _ = io.WriteString(w, `{"standby":true}`)
		case "/v1/sys/seal-status":
			_, _ = io.WriteString(w, `{"sealed":true,"t":1}`)
		case "/v1/sys/seal":
			w.WriteHeader(http.StatusNoContent)
		case "/v1/sys/storage/raft/snapshot":
			_, _ = io.WriteString(w, "snapshot")
		default:
			_, _ = io.WriteString(w, `not JSON`)
		}
	})
	c, err := New(addr, ca, "token")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Sys(t.Context(), http.MethodGet, "sys/seal-status", nil); err != nil || got["sealed"] != true {
		t.Errorf("seal-status: %v, %v", got, err)
	}
	if _, err := c.Sys(t.Context(), http.MethodGet, "sys/health", nil); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("a standby counts as healthy: %v", err)
	}
	if got, err := c.Sys(t.Context(), http.MethodPut, "sys/seal", map[string]any{}); err != nil || got != nil {
		t.Errorf("empty answer: %v, %v", got, err)
	}
	if _, err := c.Sys(t.Context(), http.MethodGet, "sys/other", nil); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("malformed answer: %v", err)
	}
	var snapshot strings.Builder
	if err := c.Snapshot(t.Context(), &snapshot); err != nil || snapshot.String() != "snapshot" {
		t.Errorf("snapshot: %q, %v", &snapshot, err)
	}
}
