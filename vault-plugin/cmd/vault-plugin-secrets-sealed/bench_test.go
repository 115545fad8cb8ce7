package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"runtime/debug"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
	vaultplugin "sealed.dev/sealed/vault-plugin"
)

// identities is Vault's identity store with one person.
type identities struct{ logical.StaticSystemView }

func (identities) EntityInfo(id string) (*logical.Entity, error) {
	return &logical.Entity{ID: id, Name: id}, nil
}

func (identities) GroupsForEntity(string) ([]*logical.Group, error) {
	return []*logical.Group{{ID: "g", Name: "release-eng"}}, nil
}

// An engine is a configured mount in this process: the real policy, and memory
// for storage.
type engine struct {
	testing.TB
	b logical.Backend
	s *logical.InmemStorage
}

func newEngine(tb testing.TB) *engine {
	tb.Helper()
	e := &engine{TB: tb, s: &logical.InmemStorage{}}
	conf := &logical.BackendConfig{StorageView: e.s, System: identities{}, Logger: hclog.NewNullLogger(), Config: map[string]string{}}
	b, err := vaultplugin.Factory(vaultplugin.Deps{OpenBundle: openBundle, OpenSource: openSource})(tb.Context(), conf)
	if err != nil {
		tb.Fatal(err)
	}
	e.b = b
	tb.Cleanup(func() { b.Cleanup(context.Background()) })
	e.write("config", map[string]any{"tenant": "acme", "trust_domain": "acme.test", "agent_accessor": "auth_jwt_1", "second_person": false})
	e.uploadPolicy()
	e.write("agents/claude-code", map[string]any{"agent": e.json(sealed.AgentDefinition{Name: "claude-code", AnyBinary: true, AgentEnv: map[string]string{"P": "{proxy}"}})})
	return e
}

func (e *engine) uploadPolicy() {
	e.Helper()
	private, public, err := opabundle.GenerateKey()
	if err != nil {
		e.Fatal(err)
	}
	block, _ := pem.Decode(private)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		e.Fatal(err)
	}
	raw, err := opabundle.Build(e.Context(), rego.FS(), opabundle.Manifest{Revision: "bench", Sequence: 1, Expires: time.Now().Add(time.Hour)})
	if err == nil {
		raw, err = opabundle.Sign(e.Context(), raw, key.(crypto.Signer), "k1")
	}
	if err != nil {
		e.Fatal(err)
	}
	e.write("config/policy-keys", map[string]any{"keys": e.json(map[string]string{"k1": string(public)})})
	e.write("policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString(raw)})
}

func (e *engine) json(v any) string {
	e.Helper()
	doc, err := json.Marshal(v)
	if err != nil {
		e.Fatal(err)
	}
	return string(doc)
}

func (e *engine) write(path string, data map[string]any) map[string]any {
	e.Helper()
	resp, err := e.b.HandleRequest(context.Background(), &logical.Request{
		Operation: logical.UpdateOperation, Path: path, Data: data, Storage: e.s, EntityID: "e-1", DisplayName: "bench",
	})
	if err == nil && resp != nil && resp.IsError() {
		err = resp.Error()
	}
	if err != nil {
		e.Fatalf("%s: %v", path, err)
	}
	if resp == nil {
		return nil
	}
	return resp.Data
}

// cascade writes n keys at three levels: the first caps each, the second defines
// it, the third shortens it.
func (e *engine) cascade(n int) {
	e.Helper()
	capped, full, own := map[sealed.KeyName]sealed.KeySpec{}, map[sealed.KeyName]sealed.KeySpec{}, map[sealed.KeyName]sealed.KeySpec{}
	for i := range n {
		name := sealed.KeyName(fmt.Sprintf("KEY_%d", i))
		path := fmt.Sprintf("/repos/acme/%d/**", i)
		bind := func(path string) []sealed.Binding {
			return []sealed.Binding{{Host: "api.github.com", Methods: []string{"GET", "POST"}, Paths: []string{path}}}
		}
		capped[name] = sealed.KeySpec{Bindings: bind("/repos/**"), Agents: []string{"claude-code", "codex"}}
		full[name] = sealed.KeySpec{Source: "builtin", Ref: sealed.KeyRef{Path: fmt.Sprintf("ci/k%d", i)}, Agents: []string{"claude-code"}, Risk: sealed.RiskLow, Bindings: bind(path)}
		own[name] = sealed.KeySpec{TTL: sealed.Duration(5 * time.Minute)}
	}
	for _, p := range []sealed.Profile{
		{Level: sealed.LevelSystem, Name: "team/release", Keys: capped},
		{Level: sealed.LevelWorkflow, Name: "team/release", Keys: full, Requesters: sealed.Requesters{Groups: []string{"release-eng"}}, AllowedWorkflows: []string{"release"}},
		{Level: sealed.LevelUser, Name: "e-1/team/release", Keys: own},
	} {
		e.write("profiles/"+p.Level+"/"+string(p.Name), map[string]any{"profile": e.json(p)})
	}
}

// others stores profiles that no run of the benchmark names.
func (e *engine) others(n int) {
	e.Helper()
	for i := range n {
		name := fmt.Sprintf("other/p%d", i)
		for key, doc := range map[string]string{
			"current": `{"version":1}`,
			"1":       `{"name":"` + name + `","level":"workflow","version":1,"requesters":{},"keys":{}}`,
		} {
			if err := e.s.Put(context.Background(), &logical.StorageEntry{Key: "profile/workflow/" + name + "/" + key, Value: []byte(doc)}); err != nil {
				e.Fatal(err)
			}
		}
	}
}

// BenchmarkDecideRun is a whole preview of 50 keys at three levels, from request
// to answer: profiles, sources, revocations, the default policy, and the JSON of
// the answer. no_keys is the same without keys, so the difference is theirs.
// Resolving the cascade happens once per set of versions; package cascade has a
// benchmark of it.
func BenchmarkDecideRun(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // as main does
	for _, c := range []struct {
		name   string
		others int
		mode   string
	}{{"no_keys", 0, sealed.ModeIdentity}, {"keys", 0, sealed.ModeJIT}, {"keys_100k_profiles", 100_000, sealed.ModeJIT}} {
		b.Run(c.name, func(b *testing.B) {
			e := newEngine(b)
			e.cascade(50)
			e.others(c.others)
			run := e.json(sealed.PreviewRequest{Profile: "team/release", Agent: "claude-code", Workflow: "release", Mode: c.mode})
			for b.Loop() {
				e.write("profiles/preview", map[string]any{"run": run})
			}
		})
	}
}

// TestDecideRun: the benchmark measures what it says it does.
func TestDecideRun(t *testing.T) {
	e := newEngine(t)
	e.cascade(50)
	out := e.write("profiles/preview", map[string]any{"run": e.json(sealed.PreviewRequest{Profile: "team/release", Agent: "claude-code", Workflow: "release"})})
	var p sealed.Preview
	if err := json.Unmarshal([]byte(out["preview"].(string)), &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Profiles) != 3 || len(p.Keys) != 50 {
		t.Fatalf("%d levels, %d keys", len(p.Profiles), len(p.Keys))
	}
	for _, k := range p.Keys {
		if k.Decision.Effect != sealed.EffectAllow || k.TTL.Std() != 5*time.Minute || len(k.NarrowedBy) != 2 {
			t.Errorf("%+v", k)
		}
	}
}
