package source_test

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

const canary = "canary-93ab-do-not-show"

// upstream is a server that answers as told, and a client for it.
func upstream(t *testing.T, h http.HandlerFunc) (*source.Vault, sealed.SourceConfig) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	cfg := sealed.SourceConfig{Name: "up", Type: sealed.SourceVaultKV, Address: srv.URL, CA: ca, Mount: "kv", Namespace: "ns"}
	v, err := source.NewVault(cfg, secret.New([]byte("own-token")), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v, cfg
}

func TestErrorsSayNothing(t *testing.T) {
	hijack := func(raw string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, raw)
				conn.Close()
			}
		}
	}
	for name, h := range map[string]http.HandlerFunc{
		"refused":    func(w http.ResponseWriter, _ *http.Request) { http.Error(w, canary, http.StatusForbidden) },
		"broken":     func(w http.ResponseWriter, _ *http.Request) { http.Error(w, canary, http.StatusInternalServerError) },
		"not JSON":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, canary) },
		"other JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"data":"`+canary+`"}`) },
		"too large":  func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat(canary, 1<<16)) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://x.invalid/"+canary, http.StatusFound)
		},
		"not HTTP":      hijack(canary + "\r\n\r\n"),
		"broken header": hijack("HTTP/1.1 200 OK\r\n" + canary + "\r\n\r\n"),
	} {
		calls := 0
		v, _ := upstream(t, func(w http.ResponseWriter, r *http.Request) { calls++; h(w, r) })
		var out struct {
			Data map[string]string `json:"data"`
		}
		err := v.Do(context.Background(), source.Call{Method: http.MethodGet, Path: "kv/data/x"}, &out)
		if !errors.Is(err, sealed.ErrUnavailable) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
		if calls != 1 {
			t.Errorf("%s: called %d times", name, calls)
		}
	}
}

func TestDoSendsWhatItShould(t *testing.T) {
	var got *http.Request
	v, _ := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		_, _ = io.WriteString(w, "{}")
	})
	path, err := v.MountPath("data/", "a b/c?d#e%2f")
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Do(context.Background(), source.Call{Method: http.MethodGet, Path: path}, nil); err != nil {
		t.Fatal(err)
	}
	if got.URL.EscapedPath() != "/v1/kv/data/a%20b/c%3Fd%23e%252f" || got.Header.Get("X-Vault-Token") != "own-token" || got.Header.Get("X-Vault-Namespace") != "ns" {
		t.Errorf("%s %v", got.URL, got.Header)
	}
	for _, bad := range []string{"", "/a", "a//b", "../x", "a/./b", "a/..", "a\nb", `a\b`} {
		if p, err := v.MountPath("data/", bad); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%q became %q", bad, p)
		}
	}
}

func TestTimeoutAndTrust(t *testing.T) {
	done := make(chan struct{})
	v, cfg := upstream(t, func(http.ResponseWriter, *http.Request) { <-done })
	defer close(done)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := v.Do(ctx, source.Call{Method: http.MethodGet, Path: "x"}, nil); !errors.Is(err, sealed.ErrUnavailable) || !strings.Contains(err.Error(), "timed out") {
		t.Error(err)
	}
	cfg.CA = "" // the system's roots do not know this server
	other, err := source.NewVault(cfg, secret.New([]byte("t")), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Do(context.Background(), source.Call{Method: http.MethodGet, Path: "x"}, nil); err == nil || !strings.Contains(err.Error(), "not trusted") {
		t.Error(err)
	}
}

func TestNewVaultRefuses(t *testing.T) {
	good := sealed.SourceConfig{Name: "x", Address: "https://v:1", Mount: "kv"}
	for name, tt := range map[string]struct {
		token  string
		change func(*sealed.SourceConfig)
	}{
		"http":        {"t", func(c *sealed.SourceConfig) { c.Address = "http://v" }},
		"bad CA":      {"t", func(c *sealed.SourceConfig) { c.CA = "x" }},
		"no token":    {"", func(*sealed.SourceConfig) {}},
		"split token": {canary + "\r\nX: y", func(*sealed.SourceConfig) {}},
	} {
		cfg := good
		tt.change(&cfg)
		if _, err := source.NewVault(cfg, secret.New([]byte(tt.token)), false, nil); !errors.Is(err, sealed.ErrInvalid) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
