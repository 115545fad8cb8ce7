package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/cascade"
	"sealed.dev/sealed/internal/sealed"
)

func newTLSServer(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func kvSource() sealed.SourceConfig {
	return sealed.SourceConfig{Name: "kv", Type: sealed.SourceVaultKV, Address: "https://vault.example:8200", Mount: "kv"}
}

func simpleProfile(version int) sealed.Profile {
	return sealed.Profile{Name: "p", Level: sealed.LevelSystem, Version: version, Keys: map[sealed.KeyName]sealed.KeySpec{
		"TOKEN": {Source: "kv", Ref: sealed.KeyRef{Path: "ci/x", Field: "token"}, Agents: []string{"codex"}, Risk: sealed.RiskLow, Delivery: sealed.DeliveryProxy,
			Bindings: []sealed.Binding{{Host: "api.example.com", Methods: []string{"GET"}, Paths: []string{"/v1/**"}}}},
	}}
}

// catalog writes one of each noun.
func (d *desk) catalog() {
	d.t.Helper()
	d.write("sources/kv", map[string]any{"source": doc(d.t, kvSource()), "credential": "login-1"})
	d.write("secrets/a/b", map[string]any{"value": deskCanary})
	d.write("agents/codex", map[string]any{"agent": `{"name":"codex","version":0,"any_binary":true}`})
	d.write("profiles/system/p", map[string]any{"profile": doc(d.t, simpleProfile(0))})
}

func (d *desk) names(path string) []string {
	d.t.Helper()
	out, err := d.request(logical.ListOperation, path, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	names, _ := out["keys"].([]string)
	return names
}

func TestSources(t *testing.T) {
	d := newDesk(t)
	d.configure()
	d.catalog()
	set := func(change func(*sealed.SourceConfig)) map[string]any {
		cfg := kvSource()
		change(&cfg)
		return map[string]any{"source": doc(t, cfg)}
	}
	d.refused(400, "differs", "sources/other", set(func(*sealed.SourceConfig) {}))
	d.refused(400, "a name is", "sources/K", map[string]any{"source": "{}"})
	d.refused(400, "unknown field", "sources/kv", map[string]any{"source": `{"name":"kv","token":"` + deskCanary + `"}`})
	d.refused(400, "address", "sources/kv", set(func(c *sealed.SourceConfig) { c.Address = "http://vault.example" }))
	d.refused(400, "address", "sources/kv", set(func(c *sealed.SourceConfig) { c.Address = "https://u:p@vault.example" }))
	d.refused(400, "address", "sources/kv", set(func(c *sealed.SourceConfig) { c.Address = "https://vault.example/x" }))
	d.refused(400, "mount", "sources/kv", set(func(c *sealed.SourceConfig) { c.Mount = "kv?x" }))
	d.refused(400, "namespace", "sources/kv", set(func(c *sealed.SourceConfig) { c.Namespace = "/ns" }))
	d.refused(400, "ca", "sources/kv", set(func(c *sealed.SourceConfig) { c.CA = "x" }))
	d.refused(400, "credential", "sources/builtin", map[string]any{"source": `{"name":"builtin","type":"builtin","has_credential":false}`, "credential": "x"})
	if got := d.names("sources"); !cmp.Equal(got, []string{"builtin", "kv"}) {
		t.Error(got)
	}
	if out := fmt.Sprint(d.read("sources/kv")); !strings.Contains(out, `"has_credential":true`) || strings.Contains(out, "login-1") {
		t.Error(out)
	}
	if out := d.read("sources/kv/check"); out["ok"] != true || !cmp.Equal(d.opened, []string{"login-1"}) {
		t.Error(out, d.opened)
	}
	if out, err := d.request(logical.ReadOperation, "sources/none/check", nil); out != nil || err != nil {
		t.Error(out, err)
	}
	for _, line := range d.entries("source.changed") {
		if strings.Contains(line, "login-1") {
			t.Errorf("the log holds a credential: %s", line)
		}
	}
	if _, err := d.request(logical.DeleteOperation, "sources/kv", nil); err == nil || !strings.Contains(err.Error(), "profile p uses it") {
		t.Errorf("deleted a source in use: %v", err)
	}
	if _, err := d.request(logical.DeleteOperation, "sources/kv", map[string]any{"force": true}); err != nil {
		t.Error(err)
	}
	if got := d.dump(); got[storeSources+"kv"] != "" || got[storeSourceCreds+"kv"] != "" {
		t.Error("the source or its credential is still there")
	}
}

// TestRepointedSourceHasNoCredential (R10): each field that says where the
// credential is sent drops it, even if the drop itself was interrupted.
func TestRepointedSourceHasNoCredential(t *testing.T) {
	for name, change := range map[string]func(*sealed.SourceConfig){
		"type":      func(c *sealed.SourceConfig) { c.Type = sealed.SourceVaultDynamic },
		"address":   func(c *sealed.SourceConfig) { c.Address = "https://evil.example" },
		"mount":     func(c *sealed.SourceConfig) { c.Mount = "kv2" },
		"namespace": func(c *sealed.SourceConfig) { c.Namespace = "ns" },
		"login":     func(c *sealed.SourceConfig) { c.Auth = sealed.SourceAuth{Method: sealed.AuthAppRole, Role: "r"} },
	} {
		d := newDesk(t)
		d.configure()
		d.catalog()
		before := d.dump()[storeSourceCreds+"kv"]
		cfg := kvSource()
		change(&cfg)
		if out := d.write("sources/kv", map[string]any{"source": doc(t, cfg)}); out["credential_dropped"] != true {
			t.Errorf("%s: %v", name, out)
		}
		if err := d.s.Put(context.Background(), &logical.StorageEntry{Key: storeSourceCreds + "kv", Value: []byte(before)}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := d.b.source(context.Background(), d.s, "kv"); !errors.Is(err, sealed.ErrUnavailable) {
			t.Errorf("%s: the old credential is sent to the new place: %v", name, err)
		}
		if len(d.opened) > 0 {
			t.Errorf("%s: opened with %q", name, d.opened)
		}
		d.write("sources/kv", map[string]any{"source": doc(t, kvSource())}) // back: it has to be written again
		if out := fmt.Sprint(d.read("sources/kv")); strings.Contains(out, `"has_credential":true`) {
			t.Errorf("%s: the credential came back: %s", name, out)
		}
	}
	t.Run("control off", func(t *testing.T) {
		d := newDesk(t)
		d.configure()
		d.catalog() // nothing changes the place: the credential stays
		d.write("sources/kv", map[string]any{"source": doc(t, kvSource())})
		if _, _, err := d.b.source(context.Background(), d.s, "kv"); err != nil {
			t.Error(err)
		}
	})
}

func TestSecrets(t *testing.T) {
	d := newDesk(t)
	d.configure()
	d.refused(400, "path", "secrets/../config", map[string]any{"value": "x"})
	d.refused(400, "path", "secrets/a//b", map[string]any{"value": "x"})
	d.refused(400, "value", "secrets/a", map[string]any{"value": ""})
	d.refused(400, "value", "secrets/a", map[string]any{"value": strings.Repeat("x", maxSecret+1)})
	d.refused(400, "base64", "secrets/a", map[string]any{"value": deskCanary, "encoding": "base64"})
	d.refused(400, "encoding", "secrets/a", map[string]any{"value": "x", "encoding": "hex"})
	for i := range maxSecretVersions + 2 {
		d.write("secrets/a/b", map[string]any{"value": fmt.Sprintf("%s-%d", deskCanary, i+1)})
	}
	d.write("secrets/a", map[string]any{"value": "AP8=", "encoding": "base64"})
	out := d.read("secrets/a/b")
	if out["version"] != maxSecretVersions+2 || strings.Contains(fmt.Sprint(out), deskCanary) {
		t.Error(out)
	}
	if got := d.names("secrets/"); !cmp.Equal(got, []string{"a", "a/"}) {
		t.Error(got)
	}
	if lines := strings.Join(d.entries("secret.*"), ""); strings.Contains(lines, deskCanary) || !strings.Contains(lines, `"path":"a/b"`) {
		t.Error(lines)
	}
	mint := func(ref sealed.KeyRef) (string, error) {
		_, src, err := d.b.source(context.Background(), d.s, "builtin")
		if err != nil {
			t.Fatal(err)
		}
		m, err := src.Mint(context.Background(), ref, "")
		var got string
		_ = m.Value.Reveal(func(b []byte) error { got = string(b); return nil })
		return got, err
	}
	for _, tt := range []struct {
		ref  sealed.KeyRef
		want string
	}{
		{sealed.KeyRef{Path: "a/b"}, deskCanary + "-18"}, {sealed.KeyRef{Path: "a/b", Version: "3"}, deskCanary + "-3"}, {sealed.KeyRef{Path: "a"}, "\x00\xff"},
		{sealed.KeyRef{Path: "a/b", Version: "2"}, ""}, {sealed.KeyRef{Path: "none"}, ""}, {sealed.KeyRef{Path: "a", Field: "f"}, ""}, {sealed.KeyRef{Path: "../keys"}, ""},
	} {
		got, err := mint(tt.ref)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%+v: %q, %v", tt.ref, got, err)
		}
	}
	if _, err := d.request(logical.DeleteOperation, "secrets/a/b", nil); err != nil {
		t.Fatal(err)
	}
	for key, value := range d.dump() {
		if strings.Contains(value, deskCanary) || strings.HasPrefix(key, storeSecrets+"a/b") {
			t.Errorf("%s outlived the deletion", key)
		}
	}
	if out := d.write("secrets/a/b", map[string]any{"value": "again"}); out["version"] != maxSecretVersions+3 {
		t.Errorf("a version number was used twice: %v", out)
	}
	if got, err := mint(sealed.KeyRef{Path: "a"}); got != "\x00\xff" || err != nil {
		t.Errorf("deleting a/b took a along: %v", err)
	}
}

func TestAgents(t *testing.T) {
	d := newDesk(t)
	d.configure()
	def := func(version int) map[string]any {
		return map[string]any{"agent": fmt.Sprintf(`{"name":"codex","version":%d,"any_binary":true}`, version)}
	}
	d.refused(400, "digests", "agents/codex", map[string]any{"agent": `{"name":"codex"}`})
	d.refused(400, "differs", "agents/claude", def(0))
	d.refused(400, "unknown field", "agents/codex", map[string]any{"agent": `{"name":"codex","digest":"x"}`})
	d.refused(409, "expected 1", "agents/codex", def(1))
	d.write("agents/codex", def(0))
	d.refused(409, "stored is 1", "agents/codex", def(0))
	_, first, err := d.b.agent(context.Background(), d.s, "codex")
	if err != nil {
		t.Fatal(err)
	}
	out := d.write("agents/codex", def(1))
	got, second, err := d.b.agent(context.Background(), d.s, "codex")
	if err != nil || got.Version != 2 || first == second || out["digest"] != string(second) {
		t.Errorf("%+v %s %s %v", got, first, second, err)
	}
	if _, err := d.request(logical.DeleteOperation, "agents/codex", nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.b.agent(context.Background(), d.s, "codex"); !errors.Is(err, sealed.ErrNotFound) {
		t.Error(err)
	}
	if got := d.names("agents/"); len(got) != 0 {
		t.Error(got)
	}
	if out := d.write("agents/codex", def(0)); out["version"] != 3 {
		t.Errorf("a version number was used twice: %v", out)
	}
}

func TestProfiles(t *testing.T) {
	d := newDesk(t)
	d.configure()
	d.catalog()
	set := func(change func(*sealed.Profile)) map[string]any {
		p := simpleProfile(1)
		change(&p)
		return map[string]any{"profile": doc(t, p)}
	}
	missing := simpleProfile(1)
	spec := missing.Keys["TOKEN"]
	spec.Source = "nowhere"
	missing.Keys["TOKEN"] = spec
	d.refused(400, "keys.TOKEN.source", "profiles/system/p", map[string]any{"profile": doc(t, missing)})
	d.refused(400, "level", "profiles/team/p", set(func(*sealed.Profile) {}))
	d.refused(400, "differs", "profiles/workflow/p", set(func(*sealed.Profile) {}))
	d.refused(400, "differs", "profiles/system/q", set(func(*sealed.Profile) {}))
	d.refused(400, "segments", "profiles/system/a/b/c/d/e", set(func(*sealed.Profile) {}))
	d.refused(409, "stored is 1", "profiles/system/p", set(func(p *sealed.Profile) { p.Version = 0 }))
	d.write("profiles/system/p", set(func(p *sealed.Profile) {
		s := p.Keys["TOKEN"]
		s.Bindings = append(s.Bindings, sealed.Binding{Host: "evil.example", Methods: []string{"POST"}, Paths: []string{"/**"}})
		p.Keys["TOKEN"] = s
	}))
	if lines := d.entries("profile.changed"); len(lines) != 2 || !strings.Contains(lines[1], `"widened":["TOKEN"]`) {
		t.Errorf("%q", lines)
	}
	d.write("profiles/system/p", set(func(p *sealed.Profile) { p.Version = 2 })) // back, so narrower
	if lines := d.entries("profile.changed"); !strings.Contains(lines[2], `"keys":["TOKEN"]`) || !strings.Contains(lines[2], `"widened":[]`) {
		t.Errorf("%q", lines)
	}
	ctx := context.Background()
	old, err := d.b.profileVersion(ctx, d.s, sealed.ProfileRef{Level: "system", Name: "p", Version: 2})
	if err != nil || len(old.Keys["TOKEN"].Bindings) != 2 {
		t.Errorf("version 2: %+v, %v", old, err)
	}
	own := func(name string) map[string]any {
		return map[string]any{"profile": `{"name":"` + name + `","level":"user","version":0,"requesters":{},"keys":{"TOKEN":{"tombstone":true}}}`}
	}
	d.refused(400, "entity id", "profiles/user/p", own("p"))
	d.write("profiles/user/ann/p", own("ann/p"))
	d.write("profiles/user/ann/p/1", own("ann/p/1"))
	d.write("profiles/user/bob/p", own("bob/p"))
	for requester, want := range map[string]string{"ann": cascade.EndedTombstone, "bob": cascade.EndedTombstone, "eve": "", "": ""} {
		e, err := d.b.effectiveNow(ctx, d.s, "p", requester)
		if err != nil {
			t.Fatal(err)
		}
		if k, ok := e.Key("TOKEN"); !ok || k.Ended != want || k.Origin.Version != 3 {
			t.Errorf("%q: %+v", requester, k)
		}
	}
	if got := d.names("profiles/user/"); !cmp.Equal(got, []string{"ann/p", "ann/p/1", "bob/p"}) {
		t.Error(got)
	}
	if got := d.names("profiles/user/ann/"); !cmp.Equal(got, []string{"ann/p", "ann/p/1"}) {
		t.Error(got)
	}
	if _, err := d.request(logical.DeleteOperation, "profiles/user/ann/p", nil); err != nil {
		t.Fatal(err)
	}
	if e, err := d.b.effectiveNow(ctx, d.s, "p", "ann"); err != nil || len(e.Layers) != 1 || e.Layers[0] != (sealed.ProfileRef{Level: "system", Name: "p", Version: 3}) {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := d.b.profileVersion(ctx, d.s, sealed.ProfileRef{Level: "user", Name: "ann/p", Version: 1}); err != nil {
		t.Errorf("a deleted profile is gone for the runs that pin it: %v", err)
	}
	out, err := d.request(logical.ReadOperation, "profiles/system/p", map[string]any{"version": "1"})
	if err != nil || out["version"] != 1 || out["newest"] != 3 || strings.Count(out["history"].(string), `"at"`) != 3 {
		t.Error(out, err)
	}
	if out := d.write("profiles/user/ann/p", own("ann/p")); out["version"] != 2 {
		t.Errorf("a version number was used twice: %v", out)
	}
	if _, err := d.b.effectiveNow(ctx, d.s, "none", "ann"); !errors.Is(err, sealed.ErrNotFound) {
		t.Error(err)
	}
}

// TestNothingWithoutLog (§12): when the log can't append, no noun changes.
func TestNothingWithoutLog(t *testing.T) {
	d := newDesk(t)
	d.configure()
	d.catalog()
	d.s.fail = func(_, key string) error {
		if strings.HasPrefix(key, storeLog) {
			return errors.New("log storage failed")
		}
		return nil
	}
	_, pub := newPolicyKey(t)
	for path, data := range map[string]map[string]any{
		"config":              {"person_claim": "mail"},
		"config/trust-bundle": {"bundle": trustDocument(t, 1, newCA(t))},
		"config/policy-keys":  {"keys": doc(t, map[string]string{"k1": pub})},
		"sources/kv":          {"source": doc(t, kvSource()), "credential": "login-2"},
		"secrets/a/b":         {"value": "new"},
		"agents/codex":        {"agent": `{"name":"codex","version":1,"any_binary":true}`},
		"profiles/system/p":   {"profile": doc(t, simpleProfile(1))},
	} {
		d.refused(503, "unavailable", path, data)
	}
}

func TestLogPaths(t *testing.T) {
	d := newDesk(t)
	if _, err := d.request(logical.ReadOperation, "log/checkpoint", nil); err == nil {
		t.Error("a mount without keys has a log")
	}
	d.configure()
	d.catalog()
	head := d.read("log/checkpoint")["checkpoint"].(string)
	if !strings.HasPrefix(head, "sealed.dev/log/acme/") || !strings.Contains(head, "\n5\n") {
		t.Errorf("checkpoint %q", head)
	}
	if out := d.read("log/tile/0/000.p/5"); out["tile"] == "" {
		t.Error(out)
	}
	if out := d.read("log/tile/0/001"); out != nil {
		t.Error("a tile that does not exist was answered")
	}
	entry := d.read("log/entry/1")
	if !strings.Contains(entry["leaf"].(string), `"source.changed"`) || entry["salt"] == "" || entry["erased"] != false {
		t.Error(entry)
	}
	if out := d.read("log/entry/99"); out != nil {
		t.Error(out)
	}
	page, err := d.request(logical.ReadOperation, "log/entries", map[string]any{"from": "1", "limit": 2})
	if err != nil || page["count"] != 2 || page["next"] != "3" {
		t.Error(page, err)
	}
	for _, bad := range []map[string]any{{"from": "x"}, {"limit": 1001}, {"run": "x"}, {"filter": "x"}} {
		if _, err := d.request(logical.ReadOperation, "log/entries", bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
	proof, err := d.request(logical.ReadOperation, "log/proof", map[string]any{"old": "3"})
	if err != nil || proof["checkpoint"] != head || proof["proof"] == "[]" {
		t.Error(proof, err)
	}
	if _, err := d.request(logical.ReadOperation, "log/proof", map[string]any{"old": "6"}); err == nil {
		t.Error("proved a tree larger than the log")
	}
	d.b.invalidate(context.Background(), "")
	d.now = d.now.Add(time.Second)
	d.write("secrets/a/b", map[string]any{"value": "after invalidate"})
	if got := d.read("log/checkpoint")["checkpoint"].(string); !strings.Contains(got, "\n6\n") {
		t.Errorf("after invalidate: %q", got)
	}
}
