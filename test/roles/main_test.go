// Package roles holds the promise that no single role gets a value (DESIGN §4,
// R10) against a real Vault: somebody who holds one ready-made policy, and
// nothing else, tries every path and operation of the engine and what an
// attacker would do on purpose, and never sees a value, nor does a server of his.
//
// The controls are the same attacks where nobody is asked twice, by somebody who
// holds two roles, and with a second person who says yes: then they succeed.
package roles

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/vault-plugin/policies"
)

func TestMain(m *testing.M) { harness.Main(m, harness.Options{Hosts: []string{evilHost}}) }

const (
	agentName = sealed.Name("custom")
	evilHost  = "evil.test" // of the attacker, where sandboxes can reach it
	safe      = "roles/safe"
	keyValue  = "roles/one" // in the built-in store
	keySource = sealed.Name("kv-roles")
)

// A person is somebody with a token.
type person struct{ name, token, entity string }

type world struct {
	*harness.Stack
	http   *http.Client
	root   string
	ca     string // of Vault, PEM
	userpa string // accessor of userpass
	evil   *evil
	// one is in the built-in store, two in a KV of the same Vault; login is what
	// the source of two logs in with.
	one, two, login *canary.Canary
}

// An evil is a server of the attacker's that plays a Vault and keeps everything.
type evil struct {
	*httptest.Server
	mu   sync.Mutex
	seen bytes.Buffer
}

func newEvil(t *testing.T) *evil {
	e := &evil{}
	e.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		dump, _ := httputil.DumpRequest(r, true)
		e.mu.Lock()
		e.seen.Write(dump)
		e.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"data":{"data":{"token":"of the attacker"},"metadata":{"version":1},"renewable":true,"ttl":3600},"auth":{"client_token":"of the attacker","lease_duration":3600}}`)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *evil) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate().Raw}))
}

func (e *evil) requests() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	return bytes.Clone(e.seen.Bytes())
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s := harness.Get(t)
	ca, err := os.ReadFile(s.Status.VaultCA)
	harness.Must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	w := &world{Stack: s, ca: string(ca), evil: newEvil(t), http: &http.Client{
		Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 8},
	}}
	for _, c := range []**canary.Canary{&w.one, &w.two} {
		*c, err = canary.New("a value")
		harness.Must(t, err)
	}
	root, err := s.Root()
	harness.Must(t, err)
	out, err := root.Sys(t.Context(), http.MethodPost, "auth/token/create", map[string]any{"policies": []string{"root"}})
	harness.Must(t, err)
	w.root, _ = out["auth"].(map[string]any)["client_token"].(string)
	auth := w.must(t, w.root, http.MethodGet, "sys/auth/userpass", nil)
	w.userpa, _ = auth["accessor"].(string)
	w.Agent(t, string(agentName))
	w.values(t)
	return w
}

// values puts one value into each of two sources, and both into a profile that
// operators may use with api.test.
func (w *world) values(t *testing.T) {
	t.Helper()
	w.Secret(t, keyValue, w.one.Value)
	w.must(t, w.root, http.MethodPost, "sys/mounts/kv-roles", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	w.must(t, w.root, http.MethodPost, "kv-roles/data/two", map[string]any{"data": map[string]string{"token": w.two.Value}})
	w.must(t, w.root, http.MethodPost, "sys/policies/acl/kv-roles", map[string]any{"policy": `path "kv-roles/data/two" { capabilities = ["read"] }`})
	out := w.must(t, w.root, http.MethodPost, "auth/token/create", map[string]any{"policies": []string{"kv-roles"}, "period": "1h"})
	token, _ := out["client_token"].(string)
	w.login = canary.FromValue("a source's login", token)
	_, err := w.Engine(t, "admin").WriteSource(t.Context(), w.source(), []byte(token))
	harness.Must(t, err)
	keys := map[sealed.KeyName]sealed.KeySpec{"ONE": w.key(keyValue, "api.test"), "TWO": w.key("", "api.test")}
	w.Profile(t, harness.Profile1(safe, keys))
}

func (w *world) source() sealed.SourceConfig {
	return sealed.SourceConfig{Name: keySource, Type: sealed.SourceVaultKV, Address: w.Status.VaultAddr, CA: w.ca, Mount: "kv-roles"}
}

// key is a key of the built-in store at path or, without one, of the other source.
func (w *world) key(path, host string) sealed.KeySpec {
	k := harness.Key(path, []string{string(agentName)}, sealed.Binding{Host: host, Methods: []string{"GET"}, Paths: []string{"/**"}})
	if path == "" {
		k.Source, k.Ref = keySource, sealed.KeyRef{Path: "two", Field: "token"}
	}
	return k
}

// roles are the ready-made policies.
func roles(t *testing.T) []string {
	t.Helper()
	files, err := fs.Glob(policies.Policies, "*.hcl")
	harness.Must(t, err)
	for i, f := range files {
		files[i] = strings.TrimSuffix(f, ".hcl")
	}
	return files
}

// person makes somebody with policies, and nothing else; of a group if one is named.
func (w *world) person(t *testing.T, name, group string, policies ...string) person {
	t.Helper()
	raw := make([]byte, 16)
	_, err := rand.Read(raw)
	harness.Must(t, err)
	password := hex.EncodeToString(raw)
	w.must(t, w.root, http.MethodPost, "auth/userpass/users/"+name, map[string]any{"password": password, "token_policies": policies, "token_no_default_policy": true})
	w.must(t, w.root, http.MethodPost, "identity/entity/name/"+name, map[string]any{"metadata": map[string]string{"person": name + "@roles.example"}})
	entity, _ := w.must(t, w.root, http.MethodGet, "identity/entity/name/"+name, nil)["id"].(string)
	w.must(t, w.root, http.MethodPost, "identity/entity-alias", map[string]any{"name": name, "canonical_id": entity, "mount_accessor": w.userpa})
	if group != "" {
		g := w.must(t, w.root, http.MethodGet, "identity/group/name/"+group, nil)
		members, _ := g["member_entity_ids"].([]any)
		w.must(t, w.root, http.MethodPost, "identity/group/name/"+group, map[string]any{"member_entity_ids": append(slices.Clone(members), entity)})
	}
	token, _ := w.must(t, "", http.MethodPost, "auth/userpass/login/"+name, map[string]any{"password": password})["client_token"].(string)
	return person{name, token, entity}
}

// An answer is what Vault said over HTTP.
type answer struct {
	status int
	body   []byte
}

func (a answer) data() map[string]any {
	var out struct{ Data, Auth map[string]any }
	_ = json.Unmarshal(a.body, &out)
	if out.Auth != nil {
		return out.Auth
	}
	return out.Data
}

// ask sends one request; a nil body sends none.
func (w *world) ask(t testing.TB, token, method, path string, body map[string]any) answer {
	t.Helper()
	var raw []byte
	if body != nil {
		var err error
		raw, err = json.Marshal(body)
		harness.Must(t, err)
	}
	status, b := w.HTTP(t, w.http, token, method, path, raw)
	return answer{status, b}
}

// must asks, and wants success.
func (w *world) must(t testing.TB, token, method, path string, body map[string]any) map[string]any {
	t.Helper()
	a := w.ask(t, token, method, path, body)
	if a.status >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
	}
	return a.data()
}

// secondPerson switches the control on; off again takes two persons.
func (w *world) secondPerson(t *testing.T) {
	t.Helper()
	w.must(t, w.root, http.MethodPost, w.Status.Mount+"/config", map[string]any{"second_person": true})
}

// spill is where values are that this person has come by.
func (w *world) spill(sink string, data []byte) []canary.Hit {
	return canary.Scan(sink, data, w.one, w.two, w.login)
}

func textOf(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
