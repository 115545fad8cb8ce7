package vaultplugin

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

func (w *world) preview(entity string, want sealed.PreviewRequest) sealed.Preview {
	w.t.Helper()
	var p sealed.Preview
	out := w.must(entity, "profiles/preview", map[string]any{"run": w.json(want)})
	if err := json.Unmarshal([]byte(out["preview"].(string)), &p); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// randomLayer makes what may follow name, level and version in a profile.
func randomLayer(rnd *rand.Rand) string {
	pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
	var keys []string
	for _, name := range []string{"A", "B", "C", "D"} {
		path := pick("/v1/**", "/v1/a", "/**")
		body := pick("", fmt.Sprintf(`"source":%q,"ref":{"path":"ci/token"},"risk":%q,"agents":[%s],"delivery":"proxy","bindings":[{"host":"api.example.com","methods":["GET"],"paths":[%q]}],"tags":[%s]`,
			pick("builtin", "builtin", "dyn"), pick("low", "high"), pick(`"claude-code"`, `"codex"`, `"claude-code","codex"`), path, pick("", `"production"`)),
			`"tombstone":true`, fmt.Sprintf(`"agents":[%q]`, pick("claude-code", "codex")), `"ttl":"1m","risk":"critical"`)
		if body != "" {
			keys = append(keys, fmt.Sprintf("%q:{%s}", name, body))
		}
	}
	return fmt.Sprintf(`"requesters":{%s},"allowed_workflows":[%s],"env":{"LOG_LEVEL":%q},"keys":{%s}`,
		pick("", `"groups":["release-eng"]`, `"groups":["staff"]`), pick("", `"release"`, `"*"`), pick("a", "b"), strings.Join(keys, ","))
}

// TestPreviewIsEnqueue: whatever the profiles are, a run gets exactly what its
// preview said.
func TestPreviewIsEnqueue(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	w := newWorld(t)
	w.must("op", "sources/builtin", map[string]any{"source": `{"name":"builtin","type":"builtin","levels":["system","workflow","user"]}`})
	w.policies["bundle 2"] = admitting
	w.policy("bundle 2")
	versions := map[string]int{"workflow/team/release": 1}
	seen := map[string]int{}
	for n := range 150 {
		ref := []string{"system/default", "system/team/release", "workflow/team/release", "user/op/team/release"}[rnd.IntN(4)]
		level, name, _ := strings.Cut(ref, "/")
		if _, err := w.do("op", "", logical.UpdateOperation, "profiles/"+ref, layerDoc(level, name, versions[ref], randomLayer(rnd))); err == nil {
			versions[ref]++
		}
		p := w.preview("op", sealed.PreviewRequest{Profile: "team/release", Agent: testAgent, Workflow: "release", Tags: []sealed.Name{"production"}})
		q := w.enqueue(idem(n))
		m := w.manifest(q.Run)
		var keys []sealed.ManifestKey
		for _, k := range p.Keys {
			keys = append(keys, k.ManifestKey)
			seen[k.Ended+"/"+string(k.Decision.Effect)]++
			if (k.Ended != "") != (k.EndedBy != nil) || (k.Ended != "" && k.Decision.Reasons[0].Code != sealed.ReasonCascade+k.Ended) {
				t.Fatalf("%+v", k)
			}
		}
		if diff := cmp.Diff(m.Keys, keys); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(m.Profiles, p.Profiles); diff != "" || p.WorkflowProven != m.WorkflowProven || p.Bundle != m.Bundle {
			t.Fatal(diff)
		}
	}
	for _, kind := range []string{"/allow", "/deny", "/require_approval", "tombstone/deny", "orphan/deny", "disjoint/deny"} {
		if seen[kind] == 0 {
			t.Errorf("no key was %s: %v", kind, seen)
		}
	}
}

// TestPreviewHasNoEffect: nothing is stored or logged, and no source is asked.
func TestPreviewHasNoEffect(t *testing.T) {
	w := newWorld(t)
	w.layer("system", "default", 0, `"requesters":{},"env":{"LOW":"x","LOG_LEVEL":"info"},"keys":{}`)
	entries, writes := len(w.logged()), w.s.count()
	p := w.preview("op", sealed.PreviewRequest{Profile: "team/release", Agent: testAgent, Workflow: "release"})
	if len(p.Keys) != 7 || p.Requester != "op" || !slices.Equal(p.Shadowed, []string{"LOW"}) || p.Knobs["LOG_LEVEL"].Origin.Level != "workflow" {
		t.Errorf("%+v", p)
	}
	if strings.Contains(w.json(p), canary) {
		t.Error("a value in a preview")
	}
	if len(w.logged()) != entries || w.s.count() != writes || w.dyn.minted != 0 {
		t.Error("a preview had an effect")
	}
	env := w.preview("op", sealed.PreviewRequest{Profile: "team/release", Agent: testAgent, Workflow: "release", Delivery: sealed.DeliveryEnv})
	for _, k := range env.Keys {
		if k.Decision.Effect != sealed.EffectDeny {
			t.Errorf("env delivery of a proxy key: %+v", k)
		}
	}
	if p := w.preview("op", sealed.PreviewRequest{Profile: "team/release", Agent: testAgent, Mode: sealed.ModeIdentity}); len(p.Keys) != 0 {
		t.Error("keys in a mode without keys")
	}
}

func TestPreviewAs(t *testing.T) {
	w := newWorld(t)
	w.policies["bundle 2"] = admitting
	w.policy("bundle 2")
	w.layer("user", "ann/team/release", 0, `"requesters":{},"keys":{"LOW":{"tombstone":true}}`)
	run := w.json(sealed.PreviewRequest{Profile: "team/release", Agent: testAgent, Workflow: "release"})
	effect := func(path string, data map[string]any) string {
		data["run"] = run
		out := w.must("op", path, data)
		var p sealed.Preview
		if err := json.Unmarshal([]byte(out["preview"].(string)), &p); err != nil {
			t.Fatal(err)
		}
		for _, k := range p.Keys {
			if k.Name == "LOW" {
				return strings.Join(codes(k.Decision), ",")
			}
		}
		return "none"
	}
	if got := effect("profiles/preview", map[string]any{}); got != "" {
		t.Errorf("own: %s", got)
	}
	if got := effect("profiles/preview-as", map[string]any{"requester": "ann"}); got != "cascade_tombstone" {
		t.Errorf("as ann: %s", got)
	}
	if got := effect("profiles/preview-as", map[string]any{"requester": "bob"}); got != "requester" {
		t.Errorf("as bob: %s", got)
	}
	for _, bad := range []struct {
		entity, path, field string
		data                map[string]any
	}{
		{"op", "profiles/preview-as", "requester", map[string]any{"run": run, "requester": "nobody"}},
		{"op", "profiles/preview-as", "requester", map[string]any{"run": run}},
		{"op", "profiles/preview-as", "requester", map[string]any{"run": run, "requester": "agent-1"}},
		{"op", "profiles/preview", "requester", map[string]any{"run": run, "requester": "ann"}}, // not this path's field
		{"op", "profiles/preview", "profile", map[string]any{"run": `{"agent":"claude-code"}`}},
		{"op", "profiles/preview", "profile", map[string]any{"run": `{"agent":"claude-code","profile":"none"}`}},
		{"op", "profiles/preview", "agent", map[string]any{"run": `{"agent":"none","profile":"team/release"}`}},
		{"op", "profiles/preview", "agnt", map[string]any{"run": `{"agnt":"claude-code","profile":"team/release"}`}},
		{"op", "profiles/preview", "delivery", map[string]any{"run": `{"agent":"claude-code","profile":"team/release","delivery":"mail"}`}},
		{"op", "profiles/preview", "mode", map[string]any{"run": `{"agent":"claude-code","profile":"team/release","mode":"x"}`}},
		{"op", "profiles/preview", "tags", map[string]any{"run": `{"agent":"claude-code","profile":"team/release","tags":["A"]}`}},
		{"op", "profiles/preview", "limit", map[string]any{"run": strings.Repeat("x", 1<<20)}},
		{"op", "profiles/preview", "malformed", map[string]any{"run": strings.Repeat("[", 1<<13)}},
	} {
		_, err := w.do(bad.entity, "", logical.UpdateOperation, bad.path, bad.data)
		if code(err) != 400 || !strings.Contains(err.Error(), bad.field) {
			t.Errorf("%s %.80v: got %v", bad.path, bad.data, err)
		}
	}
	if _, err := w.do("", "", logical.UpdateOperation, "profiles/preview", map[string]any{"run": run}); code(err) != 403 {
		t.Errorf("a token without an entity: %v", err)
	}
}
