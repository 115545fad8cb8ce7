// Package matrix asks a real Vault, for every path of the engine, every
// operation and every role, what the answer is, and compares with one table.
//
// The rows come from the mount's own OpenAPI document, so a path that is added
// later and has no row fails the test.
package matrix

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/vault-plugin/policies"
)

func TestMain(m *testing.M) { harness.Main(m, harness.Options{}) }

const agentName = sealed.Name("custom")

// A role is a token and what it stands for.
type role struct {
	name, token, entity string
}

type world struct {
	*harness.Stack
	forge   *guest.Forge
	http    *http.Client
	roles   []role // in the order of the table
	guests  []*guest.Guest
	live    sealed.RunID // enqueued, claimed by nobody
	pending string       // approval
}

var built struct {
	sync.Mutex
	w *world
}

func get(t *testing.T) *world {
	t.Helper()
	s := harness.Get(t)
	built.Lock()
	defer built.Unlock()
	if built.w != nil {
		return built.w
	}
	forge, err := guest.Open(t.Context(), s.Stack)
	harness.Must(t, err)
	ca, err := os.ReadFile(s.Status.VaultCA)
	harness.Must(t, err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("the stack's CA is no certificate")
	}
	w := &world{Stack: s, forge: forge, http: &http.Client{
		Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
	}}
	w.setUp(t)
	built.w = w
	return w
}

// setUp makes one person per ready-made policy, two who hold none, and agents.
func (w *world) setUp(t *testing.T) {
	t.Helper()
	w.Agent(t, string(agentName))
	root, err := w.Root()
	harness.Must(t, err)
	out, err := root.Sys(t.Context(), http.MethodPost, "auth/token/create", map[string]any{"policies": []string{"root"}})
	harness.Must(t, err)
	token, _ := out["auth"].(map[string]any)["client_token"].(string)
	w.roles = []role{w.person(t, token, "nobody")}
	files, err := fs.Glob(policies.Policies, "*.hcl")
	harness.Must(t, err)
	for _, f := range files {
		name := strings.TrimSuffix(f, ".hcl")
		if name == "sealed-agent" {
			continue // an agent logs in as one, below
		}
		w.roles = append(w.roles, w.person(t, token, strings.TrimPrefix(name, "sealed-"), name))
	}
	w.pending = w.approval(t)
	w.want(t, token, http.MethodPost, w.Status.Mount+"/revocations", map[string]any{"kind": "key", "target": "NOTHING", "reason": "test"})
	profile := w.profile(t, map[sealed.KeyName]sealed.KeySpec{"KEY": w.key(t, agentName), "OTHER": w.key(t, "codex")})
	w.live = w.enqueue(t, profile).Run
	for range 2 {
		q := w.enqueue(t, profile)
		g, err := w.forge.Arrive(t.Context(), q.Run, agentName)
		harness.Must(t, err)
		harness.Must(t, g.Claim(t.Context(), q.Ticket, guest.Measure(harness.Enqueue(t, agentName, profile)), nil))
		w.guests = append(w.guests, g)
	}
	w.roles = append(w.roles,
		role{name: "agent", token: string(w.guests[0].Login.Token)},
		role{name: "stranger", token: w.stranger(t, token)},
		role{name: "root-token", token: token},
	)
}

// person makes an entity that holds policies, by userpass, and logs it in.
func (w *world) person(t *testing.T, root, name string, policies ...string) role {
	t.Helper()
	password := make([]byte, 16)
	if _, err := rand.Read(password); err != nil {
		t.Fatal(err)
	}
	user := "matrix-" + name
	w.want(t, root, http.MethodPost, "auth/userpass/users/"+user, map[string]any{
		"password": hex.EncodeToString(password), "token_policies": policies, "token_no_default_policy": true,
	})
	l := w.want(t, "", http.MethodPost, "auth/userpass/login/"+user, map[string]any{"password": hex.EncodeToString(password)})
	return role{name, l.ClientToken, l.EntityID}
}

// stranger is the agent of another tenant of the same trust domain, which a
// careless administrator lets log in as an agent of this one.
func (w *world) stranger(t *testing.T, root string) string {
	t.Helper()
	w.want(t, root, http.MethodPost, "auth/"+w.forge.Trust.AuthMount+"/role/matrix-careless", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{w.forge.Trust.Audience},
		"token_policies": []string{"sealed-agent"}, "token_no_default_policy": true,
	})
	jwt, err := w.forge.JWT(t.Context(), "spiffe://"+w.forge.Trust.TrustDomain+sealed.AgentSPIFFEPath("other", agentName), w.forge.Trust.Audience)
	harness.Must(t, err)
	return w.want(t, "", http.MethodPost, "auth/"+w.forge.Trust.AuthMount+"/login", map[string]any{"role": "matrix-careless", "jwt": jwt}).ClientToken
}

// key is a specification of a key of its own, for one agent.
func (w *world) key(t *testing.T, agent sealed.Name) sealed.KeySpec {
	t.Helper()
	path := w.Name("matrix/secret")
	w.Secret(t, path, "canary-matrix-value")
	return harness.Key(path, []string{string(agent)}, sealed.Binding{Host: "api.test", Methods: []string{"GET"}, Paths: []string{"/v1/**"}})
}

func (w *world) profile(t *testing.T, keys map[sealed.KeyName]sealed.KeySpec) string {
	t.Helper()
	name := w.Name("matrix/p")
	w.Profile(t, harness.Profile1(name, keys))
	return name
}

// approval makes one that is pending, and returns its id.
func (w *world) approval(t *testing.T) string {
	t.Helper()
	spec := w.key(t, agentName)
	spec.Risk = sealed.RiskHigh
	q := w.enqueue(t, w.profile(t, map[sealed.KeyName]sealed.KeySpec{"KEY": spec}))
	all, err := w.Engine(t, "operator").Approvals(t.Context(), "")
	harness.Must(t, err)
	for _, a := range all {
		if a.Run == q.Run {
			return string(a.ID)
		}
	}
	t.Fatal("no approval is pending")
	return ""
}

func (w *world) enqueue(t *testing.T, profile string) sealed.Enqueued {
	t.Helper()
	q, err := w.Engine(t, "operator").Enqueue(t.Context(), harness.Enqueue(t, agentName, profile))
	harness.Must(t, err)
	return q
}

// An answer is what Vault said over HTTP.
type answer struct {
	status int
	body   string
}

// byVault reports whether Vault's own policies refused, before the engine.
func (a answer) byVault() bool {
	return a.status == http.StatusForbidden && strings.Contains(a.body, "permission denied")
}

// ask sends one request. body nil sends none.
func (w *world) ask(t testing.TB, token, method, path string, body []byte) answer {
	t.Helper()
	status, b := w.HTTP(t, w.http, token, method, path, body)
	return answer{status, string(b)}
}

// A login is what Vault answers to one.
type login struct {
	ClientToken string `json:"client_token"`
	EntityID    string `json:"entity_id"`
}

// want asks, wants success, and returns the login that came of it, if any.
func (w *world) want(t *testing.T, token, method, path string, body map[string]any) login {
	t.Helper()
	b, err := json.Marshal(body)
	harness.Must(t, err)
	a := w.ask(t, token, method, path, b)
	if a.status >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
	}
	var out struct{ Auth login }
	if a.body != "" {
		harness.Must(t, json.Unmarshal([]byte(a.body), &out))
	}
	return out.Auth
}
