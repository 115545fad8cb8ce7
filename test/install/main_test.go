// Package install tests internal/install on a real Vault that has never heard of
// Sealed, and, where the machine has everything, on a whole stack with SPIRE whose
// engine was taken out and put in again by the job alone.
package install

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/install"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/test/harness/require"
)

func TestMain(m *testing.M) { harness.Main(m, harness.Options{}) }

const (
	v1 = "v0.1.0" // of this tree
	v2 = "v0.2.0" // the same with another version
)

// plugins is a plug-in directory with two versions of the engine.
type plugins struct {
	dir    string
	v1, v2 install.Plugin
}

// buildPlugins builds the engine twice. The second version comes from the same
// source but for the constant, changed on its way to the compiler.
func buildPlugins(t *testing.T) plugins {
	t.Helper()
	file, err := filepath.Abs("../../vault-plugin/backend.go")
	harness.Must(t, err)
	source, err := os.ReadFile(file)
	harness.Must(t, err)
	other := strings.Replace(string(source), `const Version = "`+v1+`"`, `const Version = "`+v2+`"`, 1)
	if other == string(source) {
		t.Fatalf("%s does not declare version %s", file, v1)
	}
	dir := t.TempDir()
	build := func(version string, texts map[string][]byte) install.Plugin {
		p := install.Plugin{Version: version, Command: "sealed-" + version}
		harness.BuildChanged(t, "engine "+version, filepath.Join(dir, p.Command), "./vault-plugin/cmd/vault-plugin-secrets-sealed", texts)
		p.SHA256 = fileSum(t, filepath.Join(dir, p.Command))
		return p
	}
	return plugins{dir: dir, v1: build(v1, nil), v2: build(v2, map[string][]byte{file: []byte(other)})}
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	harness.Must(t, err)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// A vault is a server without Sealed, and a bundle endpoint as SPIRE has one.
type vault struct {
	addr, ca string
	root     *vaultclient.Client
	plugins  plugins
	endpoint string
	bundle   string
}

func vaultBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("SEALED_VAULT_BIN"); path != "" {
		return path
	}
	name, err := devstack.Servers(devstack.IdentityEmbedded)[0].CacheName("../..")
	harness.Must(t, err)
	path := filepath.Join(devstack.CacheDir(os.Getenv), "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	path, err = exec.LookPath("vault")
	if err != nil {
		require.Missing(t, "vault", name+" is not built (sealedctl dev build --servers)")
	}
	return path
}

// startVault starts one with TLS, an audit file and the plug-in directory, in
// memory, and unseals it.
func startVault(t *testing.T, p plugins) *vault {
	t.Helper()
	v := &vault{plugins: p}
	dir := t.TempDir()
	v.serveBundle(t, dir)
	ln, err := devstack.Listen()
	harness.Must(t, err)
	address := ln.Addr().String()
	harness.Must(t, ln.Close())
	v.addr = "https://" + address
	cfg, err := json.Marshal(map[string]any{
		"storage": map[string]any{"inmem": map[string]any{}},
		"listener": []any{map[string]any{"tcp": map[string]any{
			"address": address, "tls_cert_file": filepath.Join(dir, "cert.pem"), "tls_key_file": filepath.Join(dir, "key.pem"),
		}}},
		"api_addr": v.addr, "plugin_directory": p.dir, "disable_mlock": true,
	})
	harness.Must(t, err)
	harness.Must(t, os.WriteFile(filepath.Join(dir, "vault.json"), cfg, 0o600))
	cmd := exec.Command(vaultBinary(t), "server", "-config="+filepath.Join(dir, "vault.json"))
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	harness.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	v.unseal(t)
	_, err = v.root.Write(t.Context(), "sys/audit/file", map[string]any{"type": "file", "options": map[string]string{"file_path": filepath.Join(dir, "audit.json")}})
	harness.Must(t, err)
	return v
}

func (v *vault) unseal(t *testing.T) {
	t.Helper()
	c, err := vaultclient.New(v.addr, []byte(v.ca), "")
	harness.Must(t, err)
	var out map[string]any
	harness.Eventually(t, 30*time.Second, "Vault to answer", func() bool {
		out, err = c.Sys(t.Context(), http.MethodPut, "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1})
		return err == nil
	})
	keys, _ := out["keys_base64"].([]any)
	_, err = c.Sys(t.Context(), http.MethodPut, "sys/unseal", map[string]any{"key": keys[0]})
	harness.Must(t, err)
	token, _ := out["root_token"].(string)
	v.root, err = c.WithToken(token)
	harness.Must(t, err)
	harness.Eventually(t, 30*time.Second, "Vault to be active", func() bool {
		_, err := c.Sys(t.Context(), http.MethodGet, "sys/health", nil)
		return err == nil
	})
}

// serveBundle serves a SPIFFE bundle over TLS; Vault's listener has the same
// certificate.
func (v *vault) serveBundle(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	harness.Must(t, err)
	td := spiffeid.RequireTrustDomainFromString("corp.example")
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: nil,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	harness.Must(t, err)
	ca, err := x509.ParseCertificate(der)
	harness.Must(t, err)
	b := spiffebundle.New(td)
	b.AddX509Authority(ca)
	harness.Must(t, b.AddJWTAuthority("k1", &key.PublicKey))
	b.SetSequenceNumber(1)
	doc, err := b.Marshal()
	harness.Must(t, err)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(doc) }))
	t.Cleanup(srv.Close)
	v.endpoint, v.bundle = srv.URL, string(doc)
	v.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	private, err := x509.MarshalPKCS8PrivateKey(srv.TLS.Certificates[0].PrivateKey)
	harness.Must(t, err)
	harness.Must(t, os.WriteFile(filepath.Join(dir, "cert.pem"), []byte(v.ca), 0o600))
	harness.Must(t, os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}

func (v *vault) target() install.Target {
	return install.Target{
		Mount: "sealed", Tenant: "acme", TrustDomain: "corp.example", Plugin: v.plugins.v1,
		AuthMount: "jwt-sealed", Audience: "vault://sealed",
		BundleEndpoint: v.endpoint, BundleCA: v.ca, Bundle: v.bundle, Builtin: true,
		OnePerson: true, // what tests write has to take effect; but testSecondPerson
	}
}

// token makes a token with policies, as somebody else would have it.
func (v *vault) token(t *testing.T, policies ...string) *vaultclient.Client {
	t.Helper()
	l, err := v.root.Login(t.Context(), "auth/token/create", map[string]any{"policies": policies, "no_default_policy": true})
	harness.Must(t, err)
	c, err := v.root.WithToken(string(l.Token))
	harness.Must(t, err)
	return c
}

func (v *vault) install(t *testing.T, target install.Target) *install.Job {
	t.Helper()
	job, err := install.Install(v.root, target)
	harness.Must(t, err)
	return job
}

func plan(t *testing.T, job *install.Job) install.Plan {
	t.Helper()
	p, err := job.Plan(t.Context())
	harness.Must(t, err)
	return p
}

func row(t *testing.T, p install.Plan, step string) install.Row {
	t.Helper()
	for _, r := range p {
		if r.Step == step {
			return r
		}
	}
	t.Fatalf("no step %s in %v", step, p)
	return install.Row{}
}

// wantSettled fails unless running the job again would change nothing.
func wantSettled(t *testing.T, job *install.Job) {
	t.Helper()
	if p := plan(t, job); p.Pending() != 0 {
		t.Errorf("not settled: %+v", p)
	}
}

func background(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }
