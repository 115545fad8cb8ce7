package fault

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/harness"
)

// An upstream is a PKI mount of the same Vault whose certificates have leases:
// what Vault lists as a lease is a live upstream credential.
type upstream struct {
	root  *vaultclient.Client
	mount string
	token []byte // of the source
}

func (w *world) upstream(t *testing.T) *upstream {
	t.Helper()
	root, err := w.Root()
	harness.Must(t, err)
	u := &upstream{root: root, mount: w.Name("pki")}
	write := func(path string, data map[string]any) {
		t.Helper()
		_, err := root.Write(t.Context(), path, data)
		harness.Must(t, err)
	}
	write("sys/mounts/"+u.mount, map[string]any{"type": "pki"})
	write(u.mount+"/root/generate/internal", map[string]any{"common_name": "fault test", "key_type": "ec", "key_bits": 256})
	write(u.mount+"/roles/ci", map[string]any{"allow_any_name": true, "enforce_hostnames": false, "require_cn": false, "key_type": "ec", "key_bits": 256, "generate_lease": true, "ttl": "1h"})
	write("sys/policies/acl/"+u.mount, map[string]any{"policy": `path "auth/token/create" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "` + u.mount + `/issue/ci" { capabilities = ["read", "update"] }`})
	out, err := root.Sys(t.Context(), http.MethodPost, "auth/token/create", map[string]any{"policies": []string{u.mount}, "no_default_policy": true, "period": "1h"})
	harness.Must(t, err)
	token, _ := out["auth"].(map[string]any)["client_token"].(string)
	u.token = []byte(token)
	return u
}

// leases are the live credentials.
func (u *upstream) leases(t testing.TB) []string {
	t.Helper()
	keys, err := u.root.List(context.WithoutCancel(t.Context()), "sys/leases/lookup/"+u.mount+"/issue/ci/")
	harness.Must(t, err)
	return keys
}

// source adds the upstream as a source behind addr, and returns a profile with
// a key from it.
func (w *world) source(t *testing.T, u *upstream, addr, ca string) string {
	t.Helper()
	name := sealed.Name(w.Name("dynamic"))
	_, err := w.Engine(t, "admin").WriteSource(t.Context(), sealed.SourceConfig{Name: name, Type: sealed.SourceVaultDynamic, Address: addr, CA: ca, Mount: u.mount}, u.token)
	harness.Must(t, err)
	spec := harness.Key("issue/ci", []string{string(agentName)}, binding())
	spec.Source, spec.Ref.Field = name, "private_key"
	return w.profile(t, spec)
}

// F14, R09: Vault dies after a credential was made and answered, before init
// confirmed it. Nobody may use it, so after the restart it is taken back. A
// confirmed one stays: its run goes on.
func TestF14VaultDiesBetweenMintAndConfirm(t *testing.T) {
	w := get(t)
	u := w.upstream(t)
	profile := w.source(t, u, w.forge.Trust.VaultAddr, w.forge.Trust.VaultCA)
	confirmed, forgotten := w.guest(t, profile), w.guest(t, profile)
	grant, err := confirmed.Creds(t.Context(), "KEY", "confirmed-000001")
	harness.Must(t, err)
	harness.Must(t, confirmed.Confirm(t.Context(), grant))
	keep := u.leases(t)
	if _, err := forgotten.Creds(t.Context(), "KEY", "forgotten-000001"); err != nil {
		t.Fatal(err)
	}
	if n := len(u.leases(t)); n != 2 || len(keep) != 1 {
		t.Fatalf("control: %d credentials upstream, want 2", n)
	}
	w.crash(t, "vault")
	w.repair(t)
	if n := len(u.leases(t)); n != 2 {
		t.Logf("%d credentials right after the restart", n)
	}
	harness.Eventually(t, time.Minute, "the unconfirmed credential is taken back", func() bool {
		_, _ = confirmed.Watch(t.Context(), 0, 0) // this run is alive, and says so
		return len(u.leases(t)) < 2
	})
	if left := u.leases(t); len(left) != 1 || left[0] != keep[0] {
		t.Errorf("control: the confirmed credential should stay; left %q of %q", left, keep)
	}
	if _, err := forgotten.Creds(t.Context(), "KEY", "forgotten-000001"); err == nil {
		t.Error("the credential that was taken back is given out again")
	}
	if err := confirmed.Confirm(t.Context(), grant); err != nil {
		t.Errorf("control: confirming again what is confirmed: %v", err)
	}
	w.verify(t, nil)
}

// F14: Vault dies when the upstream has made the credential, before the engine
// has heard of it.
func TestF14VaultDiesInsideMint(t *testing.T) {
	w := get(t)
	u := w.upstream(t)
	var armed atomic.Bool
	made := make(chan int, 1)
	addr, ca := front(t, w.forge.Trust.VaultAddr, w.forge.Trust.VaultCA, nil, func(r *http.Response) {
		if r.StatusCode == http.StatusOK && strings.HasSuffix(r.Request.URL.Path, "/issue/ci") && armed.Swap(false) {
			made <- len(u.leases(t))
			w.crash(t, "vault")
		}
	})
	g := w.guest(t, w.source(t, u, addr, ca))
	armed.Store(true)
	if _, err := g.Creds(t.Context(), "KEY", "inside-000000001"); err == nil {
		t.Error("issued by a dead Vault")
	}
	if n := <-made; n != 1 {
		t.Fatalf("control: %d credentials upstream at the crash, want 1", n)
	}
	w.repair(t)
	harness.Eventually(t, time.Minute, "the credential that nobody got is taken back", func() bool { return len(u.leases(t)) == 0 })
	if _, err := g.Creds(t.Context(), "KEY", "inside-000000001"); err == nil {
		t.Error("the same request was answered after all")
	}
	if _, err := g.Creds(t.Context(), "KEY", "inside-000000002"); err != nil {
		t.Errorf("control: another request: %v", err)
	}
	w.verify(t, nil)
}

// front is a TLS server before Vault that tells about every request before it
// is passed on, and about every answer. What is told nil is not told.
func front(t *testing.T, to, toCA string, asked func(*http.Request), told func(*http.Response)) (addr, ca string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(toCA))
	target, err := url.Parse(to)
	harness.Must(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	if told != nil {
		proxy.ModifyResponse = func(r *http.Response) error { told(r); return nil }
	}
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	cert, text := certificate(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	harness.Must(t, err)
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if asked != nil {
			asked(r)
		}
		proxy.ServeHTTP(rw, r)
	})
	srv := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, ErrorLog: proxy.ErrorLog, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = srv.Close() })
	return "https://" + l.Addr().String(), text
}

func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	harness.Must(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "front"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	harness.Must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
