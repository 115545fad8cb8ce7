package vaultplugin

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// layer writes a profile given as JSON, without name, level and version; the
// version expected is version.
func (w *world) layer(level, name string, version int, rest string) {
	w.t.Helper()
	w.must("op", "profiles/"+level+"/"+name, layerDoc(level, name, version, rest))
}

func layerDoc(level, name string, version int, rest string) map[string]any {
	head, err := json.Marshal(sealed.ProfileRef{Level: level, Name: sealed.ProfileName(name), Version: version})
	if err != nil {
		panic(err)
	}
	return map[string]any{"profile": strings.TrimSuffix(string(head), "}") + "," + rest + "}"}
}

// manifest is what a run pinned.
func (w *world) manifest(id sealed.RunID) *sealed.Manifest {
	w.t.Helper()
	r, err := w.b.run(context.Background(), w.s, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return r.m
}

func find(t testing.TB, keys []sealed.ManifestKey, name sealed.KeyName) sealed.ManifestKey {
	t.Helper()
	i := slices.IndexFunc(keys, func(k sealed.ManifestKey) bool { return k.Name == name })
	if i < 0 {
		t.Fatalf("no key %s", name)
	}
	return keys[i]
}

const defined = `"requesters":{"groups":["release-eng"]},"allowed_workflows":["release"],"keys":{"LOW":{"source":"builtin","ref":{"path":"ci/token"},
	"risk":"low","agents":["claude-code"],"bindings":[{"host":"api.example.com","methods":["GET"],"paths":["/v1/**"]}]}}`

// TestCascadeOfARun: three levels, from enqueue to issue.
func TestCascadeOfARun(t *testing.T) {
	w := newWorld(t)
	w.layer("system", "default", 0, `"requesters":{},"env":{"LOG_LEVEL":"info","HIGH":"x","ALL":"1"},"keys":{
		"LOW":{"bindings":[{"host":"api.example.com","methods":["GET"],"paths":["/v1/repos/**"]}]},"STRAY":{"agents":["codex"]},"WEAK":{"agents":["codex"]}}`)
	w.layer("user", "op/team/release", 0, `"requesters":{},"env":{"MINE":"1"},"keys":{"HIGH":{"tombstone":true},"CRITICAL":{"ttl":"1m"}}`)
	w.layer("user", "ann/team/release", 0, `"requesters":{},"keys":{"LOW":{"tombstone":true}}`)
	g := w.claimed(idem(1))
	m := w.manifest(g.run)
	want := []sealed.ProfileRef{
		{Level: "system", Name: "default", Version: 1}, {Level: "workflow", Name: "team/release", Version: 1}, {Level: "user", Name: "op/team/release", Version: 1},
	}
	if diff := cmp.Diff(want, m.Profiles); diff != "" || m.Profile != "team/release" || !m.WorkflowProven {
		t.Errorf("%s %+v", diff, m)
	}
	for name, code := range map[sealed.KeyName]string{"HIGH": "cascade_tombstone", "STRAY": "cascade_orphan", "WEAK": "cascade_disjoint", "OTHER": "agent_not_allowed"} {
		if d := find(t, m.Keys, name).Decision; d.Effect != sealed.EffectDeny || d.Reasons[0].Code != code {
			t.Errorf("%s: %+v", name, d)
		}
		_, _, err := g.creds(string(name), idem(20))
		wantCode(t, err, 403)
	}
	low := find(t, m.Keys, "LOW")
	if low.Origin != want[1] || !slices.Equal(low.NarrowedBy, want[:1]) || low.Source != "builtin" || low.Bindings[0].Paths[0] != "/v1/repos/**" {
		t.Errorf("%+v", low)
	}
	if diff := cmp.Diff(map[string]string{"LOG_LEVEL": "debug", "MINE": "1", "ALL": "1"}, g.answer.Env); diff != "" {
		t.Error("knobs", diff)
	}
	a, _, err := g.creds("LOW", idem(2))
	if err != nil || g.value(a) != canary || a.Bindings[0].Paths[0] != "/v1/repos/**" {
		t.Fatalf("%+v %v", a, err)
	}
	w.wantEntry("policy.denied", "cascade_tombstone")
}

// TestNoSuchProfile: system/default alone is not a profile to ask for, and
// somebody else's neither.
func TestNoSuchProfile(t *testing.T) {
	w := newWorld(t)
	w.layer("system", "default", 0, `"requesters":{},"keys":{}`)
	w.layer("user", "ann/solo", 0, `"requesters":{},"keys":{}`)
	er := enqueueSpec(idem(1))
	for name, want := range map[sealed.ProfileName]int{"solo": 400, "ann/solo": 400, "default": 0, "team/release": 0} {
		er.Profile, er.IdempotencyKey = name, idem(len(name))
		_, err := w.tryEnqueue("op", er)
		wantCode(t, err, want)
	}
	er.Profile, er.IdempotencyKey = "solo", idem(99)
	q, err := w.tryEnqueue("ann", er)
	if err != nil || len(w.manifest(q.Run).Profiles) != 2 {
		t.Errorf("%+v, %v", q, err)
	}
}

// TestLevelsAfterEnqueue: what a level takes away takes effect at issue; what it
// adds does not reach a run that is pinned.
func TestLevelsAfterEnqueue(t *testing.T) {
	user := map[string]any{"source": `{"name":"builtin","type":"builtin","levels":["system","workflow","user"]}`}
	for name, tc := range map[string]struct {
		change func(w *world)
		key    string
		code   int
		path   string // that is left
	}{
		"nothing":           {func(*world) {}, "LOW", 0, "/v1/**"},
		"a new level below": {func(w *world) { w.layer("system", "default", 0, `"requesters":{},"keys":{"LOW":{"agents":["codex"]}}`) }, "LOW", 403, ""},
		"a tombstone above": {func(w *world) {
			w.layer("user", "op/team/release", 0, `"requesters":{},"keys":{"LOW":{"tombstone":true}}`)
		}, "LOW", 403, ""},
		"another's tombstone": {func(w *world) {
			w.layer("user", "ann/team/release", 0, `"requesters":{},"keys":{"LOW":{"tombstone":true}}`)
		}, "LOW", 0, "/v1/**"},
		"fewer paths": {func(w *world) {
			w.layer("system", "team/release", 0, `"requesters":{},"keys":{"LOW":{"bindings":[{"host":"api.example.com","methods":["GET"],"paths":["/v1/a"]}]}}`)
		}, "LOW", 0, "/v1/a"},
		"another isolation": {func(w *world) {
			w.layer("system", "default", 0, `"requesters":{},"keys":{"LOW":{"isolations":["same_uid"]}}`)
		}, "LOW", 403, ""},
		"the same isolation": {func(w *world) {
			w.layer("system", "default", 0, `"requesters":{},"keys":{"LOW":{"isolations":["own_uid"]}}`)
		}, "LOW", 0, "/v1/**"},
		"requesters": {func(w *world) { w.layer("system", "default", 0, `"requesters":{"groups":["staff"]},"keys":{}`) }, "LOW", 403, ""},
		"workflows": {func(w *world) {
			w.layer("system", "default", 0, `"requesters":{},"allowed_workflows":["nightly"],"keys":{}`)
		}, "LOW", 403, ""},
		"moved to another level": {func(w *world) {
			w.must("op", "sources/builtin", user)
			w.layer("user", "op/team/release", 0, defined)
		}, "LOW", 403, ""},
		"an agent more": {func(w *world) {
			p := w.profile()
			p.Version = 1
			k := p.Keys["OTHER"]
			k.Agents = append(k.Agents, testAgent)
			p.Keys["OTHER"] = k
			w.must("op", "profiles/workflow/team/release", map[string]any{"profile": w.json(p)})
		}, "OTHER", 403, ""},
		"a key more": {func(w *world) {
			w.layer("system", "team/release", 0, strings.Replace(defined, "LOW", "MORE", 1))
		}, "MORE", 403, ""},
		"the level is gone": {func(w *world) {
			if _, err := w.do("op", "", logical.DeleteOperation, "profiles/workflow/team/release", map[string]any{"force": true}); err != nil {
				w.t.Fatal(err)
			}
		}, "LOW", 403, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policies["bundle 2"] = admitting
			w.policy("bundle 2")
			g := w.claimed(idem(1))
			tc.change(w)
			a, _, err := g.creds(tc.key, idem(2))
			if wantCode(t, err, tc.code); tc.code == 0 && (len(a.Bindings) != 1 || a.Bindings[0].Paths[0] != tc.path) {
				t.Errorf("%+v", a.Bindings)
			}
		})
	}
	t.Run("control: without the levels of now", func(t *testing.T) {
		w := newWorld(t)
		g := w.claimed(idem(1))
		w.layer("user", "op/team/release", 0, `"requesters":{},"keys":{"LOW":{"tombstone":true}}`)
		w.b.mem.off.current = true
		if _, _, err := g.creds("LOW", idem(2)); err != nil {
			t.Errorf("the test can't fail: %v", err)
		}
	})
}

// admitting is the default policy with what it says of requesters and workflows.
func admitting(question string, input any) sealed.Decision {
	if in, ok := input.(sealed.Input); ok {
		switch {
		case !in.Key.RequesterMatches:
			return sealed.Deny("requester", "")
		case !in.Run.WorkflowProven:
			return sealed.Deny("unproven", "")
		case !slices.Contains(in.Profile.AllowedWorkflows, in.Run.Workflow) && !slices.Contains(in.Profile.AllowedWorkflows, "*"):
			return sealed.Deny("workflow", "")
		}
	}
	return defaultPolicy(question, input)
}

// TestSourceLevels: a level may name a source only while the source says so.
func TestSourceLevels(t *testing.T) {
	w := newWorld(t)
	levels := func(levels string) {
		w.must("op", "sources/builtin", map[string]any{"source": `{"name":"builtin","type":"builtin"` + levels + `}`})
	}
	own := layerDoc("user", "op/mine", 0, defined)
	if _, err := w.do("op", "", logical.UpdateOperation, "profiles/user/op/mine", own); code(err) != 400 || !strings.Contains(err.Error(), "keys.LOW.source") {
		t.Fatalf("got %v", err)
	}
	if _, err := w.do("op", "", logical.UpdateOperation, "sources/builtin", map[string]any{"source": `{"name":"builtin","type":"builtin","levels":["team"]}`}); code(err) != 400 || !strings.Contains(err.Error(), "levels") {
		t.Fatalf("got %v", err)
	}
	levels(`,"levels":["user"]`)
	w.must("op", "profiles/user/op/mine", own)
	er := enqueueSpec(idem(1))
	er.Profile = "mine"
	q, err := w.tryEnqueue("op", er)
	if err != nil {
		t.Fatal(err)
	}
	g := w.guest(q, "agent-1", "acc-1")
	if err := g.sendClaim(g.claimDoc(q.Ticket, w.ownUID(), nil, nil)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatal(err)
	}
	levels("")
	_, _, err = g.creds("LOW", idem(3))
	wantCode(t, err, 403)
	w.wantEntry("policy.denied", sealed.ReasonSourceLevel)
}

// TestRevokeAnyLayer: revoking any profile that had a say about a key covers it,
// and no other key.
func TestRevokeAnyLayer(t *testing.T) {
	for target, want := range map[string]map[string]int{
		"team/release":    {"LOW": 403, "DYN": 403},
		"default":         {"LOW": 403, "DYN": 0},
		"op/team/release": {"LOW": 0, "DYN": 403},
		"ann/team":        {"LOW": 0, "DYN": 0},
	} {
		t.Run(target, func(t *testing.T) {
			w := newWorld(t)
			w.layer("system", "default", 0, `"requesters":{},"keys":{"LOW":{"ttl":"5m"}}`)
			w.layer("user", "op/team/release", 0, `"requesters":{},"keys":{"DYN":{"ttl":"5m"}}`)
			g := w.claimed(idem(1))
			w.revoke(sealed.RevokeProfile, target, false)
			n := 10
			for _, key := range []string{"LOW", "DYN"} {
				n++
				_, _, err := g.creds(key, idem(n))
				wantCode(t, err, want[key])
				if blocked := slices.Contains(g.watch(0).Blocked, sealed.KeyName(key)); blocked != (want[key] != 0) {
					t.Errorf("%s: blocked %v", key, blocked)
				}
			}
		})
	}
}

// TestEffectiveForgets: Invalidate drops what another node may have changed.
func TestEffectiveForgets(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	before, err := w.b.effectiveNow(ctx, w.s, "team/release", "op")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := w.b.effectiveNow(ctx, w.s, "team/release", "op"); again != before {
		t.Error("resolved twice")
	}
	if err := put(ctx, w.s, profileKey("workflow", "team/release")+"current", profileHead{Version: 1, Deleted: true}); err != nil {
		t.Fatal(err)
	}
	w.b.invalidate(ctx, "")
	if _, err := w.b.effectiveNow(ctx, w.s, "team/release", "op"); !isNotFound(err) {
		t.Errorf("got %v", err)
	}
	if _, err := w.b.effectivePinned(ctx, w.s, before.Layers); err != nil {
		t.Errorf("a run that pinned it: %v", err)
	}
}
