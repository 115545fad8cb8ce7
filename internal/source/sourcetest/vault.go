// Package sourcetest is what every kind of source is tested with: a conformance
// suite with upstreams that misbehave, and a real Vault for the sources that
// talk to one. It is for tests only and guarantees nothing else.
//
// The suite (Case) plays each hostile answer at each call of a mint: the source
// has to fail with sealed.ErrUnavailable, in time, without a value, without
// another try, without following anything, and without a word of what the
// upstream sent.
//
// The Vault is $SEALED_VAULT_BIN, or vault on the path. Without it a test is
// skipped and says so, unless SEALED_REQUIRE lists vault: then it fails.
package sourcetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// RootToken is the token of the servers that Start starts.
const RootToken = "sourcetest-root"

// A Server is a development Vault with TLS on loopback.
type Server struct {
	Addr string // https://127.0.0.1:port
	CA   string // PEM

	t      testing.TB
	client *http.Client
}

// Start starts a server that dies with the test, with further flags.
func Start(t testing.TB, flags ...string) *Server {
	t.Helper()
	bin := os.Getenv("SEALED_VAULT_BIN")
	if bin == "" {
		bin, _ = exec.LookPath("vault")
	}
	if bin == "" {
		if slices.Contains(strings.Split(os.Getenv("SEALED_REQUIRE"), ","), "vault") {
			t.Fatal("SEALED_REQUIRE wants vault: set SEALED_VAULT_BIN")
		}
		t.Skip("no Vault server: set SEALED_VAULT_BIN")
	}
	dir, addr := t.TempDir(), freeAddr(t)
	args := []string{"server", "-dev", "-dev-tls", "-dev-tls-cert-dir=" + dir, "-dev-root-token-id=" + RootToken, "-dev-listen-address=" + addr, "-dev-no-store-token"}
	cmd := exec.Command(bin, append(args, flags...)...)
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	s := &Server{Addr: "https://" + addr, t: t}
	if err := s.ready(dir); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("starting Vault: %v\n%s", err, out.String())
	}
	return s
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// ready waits until the server is unsealed.
func (s *Server) ready(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ca, err := os.ReadFile(filepath.Join(dir, "vault-ca.pem")); err == nil {
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(ca)
			s.CA = string(ca)
			s.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
			if code, _ := s.call(RootToken, http.MethodGet, "sys/mounts", nil); code == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (s *Server) call(token, method, path string, body any) (int, map[string]any) {
	doc, err := json.Marshal(body)
	if err != nil {
		return 0, nil
	}
	req, err := http.NewRequest(method, s.Addr+"/v1/"+path, bytes.NewReader(doc))
	if err != nil {
		return 0, nil
	}
	req.Header.Set("X-Vault-Token", token)
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	var out map[string]any
	data, _ := io.ReadAll(resp.Body)
	_ = json.Unmarshal(data, &out)
	return resp.StatusCode, out
}

// Do makes a call as root that must succeed.
func (s *Server) Do(method, path string, body any) map[string]any {
	s.t.Helper()
	code, out := s.call(RootToken, method, path, body)
	if code < 200 || code > 299 {
		s.t.Fatalf("%s %s: %d %v", method, path, code, out)
	}
	return out
}

// Try makes a call with a token and returns the status.
func (s *Server) Try(token, method, path string) (int, map[string]any) {
	return s.call(token, method, path, nil)
}

// Token makes a periodic token with one policy and nothing else, as a source
// should have.
func (s *Server) Token(policy string) []byte {
	s.t.Helper()
	s.Do(http.MethodPut, "sys/policies/acl/source", map[string]any{"policy": policy})
	out := s.Do(http.MethodPost, "auth/token/create", map[string]any{"policies": []string{"source"}, "no_default_policy": true, "period": "1h"})
	return fmt.Append(nil, out["auth"].(map[string]any)["client_token"])
}

// Config is a source of a type at a mount of the server.
func (s *Server) Config(typ, mount string) sealed.SourceConfig {
	return sealed.SourceConfig{Name: "up", Type: typ, Address: s.Addr, CA: s.CA, Mount: mount}
}
