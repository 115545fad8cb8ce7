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

func (w *world) patch(name string, version int, patch string) (*logical.Response, error) {
	return w.do("op", "", logical.PatchOperation, "profiles/"+name, map[string]any{"profile": patch, "version": version})
}

func (w *world) stored(level, name string) sealed.Profile {
	w.t.Helper()
	head, err := readHead(context.Background(), w.s, level, sealed.ProfileName(name))
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := readVersion(context.Background(), w.s, sealed.ProfileRef{Level: level, Name: sealed.ProfileName(name), Version: head.Version})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// TestMergePatch holds the cases of RFC 7396, appendix A.
func TestMergePatch(t *testing.T) {
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`}, {`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`}, {`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`}, {`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`}, {`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`}, {`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`}, {`{"a":"b"}`, `["c"]`, `["c"]`}, {`{"a":"foo"}`, `null`, `null`}, {`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`}, {`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`}, {`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		var target, patch any
		if json.Unmarshal([]byte(c[0]), &target) != nil || json.Unmarshal([]byte(c[1]), &patch) != nil {
			t.Fatal(c)
		}
		got, err := json.Marshal(mergePatch(target, patch))
		if err != nil || string(got) != c[2] {
			t.Errorf("%s with %s: got %s, want %s", c[0], c[1], got, c[2])
		}
	}
}

func TestProfilePatch(t *testing.T) {
	w := newWorld(t)
	resp, err := w.patch("workflow/team/release", 1, `{"owner":"platform","env":{"LOG_LEVEL":null},"keys":{"LOW":{"ttl":"1m"},"OTHER":null}}`)
	if err != nil || resp.Data["version"] != 2 {
		t.Fatalf("%+v, %v", resp, err)
	}
	want := w.profile()
	want.Version, want.Owner, want.Env = 2, "platform", nil
	delete(want.Keys, "OTHER")
	low := want.Keys["LOW"]
	low.TTL = sealed.Duration(60e9)
	want.Keys["LOW"] = low
	got := w.stored("workflow", "team/release")
	for name, k := range want.Keys { // as stored, with defaults
		for i := range k.Bindings {
			k.Bindings[i].Header, k.Bindings[i].Format = "Authorization", "Bearer {}"
		}
		want.Keys[name] = k
	}
	got.Env = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	w.wantEntry("profile.changed", `"keys":["*","LOW","OTHER"]`, `"widened":["*"]`) // policies see the owner
	if _, err := w.patch("workflow/team/release", 2, `{"keys":{"LOW":{"tombstone":true}}}`); code(err) != 400 || !strings.Contains(err.Error(), "keys.LOW.tombstone") {
		t.Errorf("half a tombstone: %v", err)
	}
}

// TestProfileRefusals: each is a 4xx that names the field, and nothing is written.
func TestProfileRefusals(t *testing.T) {
	w := newWorld(t)
	const key = `"K":{"source":"builtin","ref":{"path":"ci/token"},"risk":"low","agents":["codex"],"bindings":[{"host":"api.example.com","methods":["GET"],"paths":["/"]}]}`
	doc := func(rest string) map[string]any { return layerDoc("workflow", "x", 0, rest) }
	deep := strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000)
	type call struct {
		op    logical.Operation
		path  string
		data  map[string]any
		code  int
		field string
	}
	calls := []call{
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"keys":{},"nope":1`), 400, "nope"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"Keys":{}`), 400, "Keys"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"keys":{},"keys":{}`), 400, "keys"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"keys":[]`), 400, "keys"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"owner":7,"keys":{}`), 400, "owner"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"owner":"` + strings.Repeat("a", 1<<20) + `","keys":{}`), 400, "limit"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":` + deep + `,"keys":{}`), 400, "field a"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"keys":{"k":{"tombstone":true}}`), 400, "keys.k"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"keys":{"KÉY":{"tombstone":true}}`), 400, `keys.K\u00c9Y`},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"keys":{` + strings.Replace(key, "ci/token", "../x", 1) + `}`), 400, "keys.K.ref"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"keys":{` + strings.Replace(key, `"builtin"`, `"nowhere"`, 1) + `}`), 400, "keys.K.source"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"keys":{"K":{}}`), 400, "keys.K"},
		{logical.UpdateOperation, "workflow/x", doc(`"requesters":{},"keys":{"K":{"isolations":["own"]}}`), 400, "keys.K.isolations"},
		{logical.UpdateOperation, "workflow/x", layerDoc("workflow", "x", 3, `"requesters":{},"keys":{}`), 409, "version"},
		{logical.UpdateOperation, "workflow/x", map[string]any{"profile": "{}", "extra": "1"}, 400, "extra"},
		{logical.UpdateOperation, "workflow/x", map[string]any{"profile": map[string]any{"a": 1}}, 400, "profile"},
		{logical.UpdateOperation, "team/x", doc(`"requesters":{},"keys":{}`), 400, "level"},
		{logical.UpdateOperation, "user/x", layerDoc("user", "x", 0, `"requesters":{},"keys":{}`), 400, "name"},
		{logical.DeleteOperation, "team/x", nil, 400, "level"},
		{logical.ListOperation, "workflow/../system/", nil, 400, "profile"},
		{logical.PatchOperation, "workflow/none", map[string]any{"profile": "{}", "version": 1}, 404, "name"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": "{}"}, 400, "version"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": "{}", "version": 7}, 409, "version"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": `{"version":2}`, "version": 1}, 400, "profile.version"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": `{"name":"y"}`, "version": 1}, 400, "profile.name"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": `null`, "version": 1}, 400, "profile"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": `[1]`, "version": 1}, 400, "array"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": `{"keys":{"LOW":{"nope":1}}}`, "version": 1}, 400, "nope"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": `{"keys":null,"keys":{}}`, "version": 1}, 400, "keys"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": `{"a":` + deep + `}`, "version": 1}, 400, "a"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": `{"owner":"` + strings.Repeat("a", 1<<20) + `"}`, "version": 1}, 400, "limit"},
		{logical.PatchOperation, "workflow/team/release", map[string]any{"profile": `{}`, "version": "x"}, 400, "version"},
	}
	for _, name := range []string{"X", "ü", "a..b", "a//b", "a/../b", "%2f", "a%2fb", "a\x00b", " a", strings.Repeat("a", 65), "a/b/c/d/e"} {
		for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation, logical.PatchOperation, logical.DeleteOperation} {
			calls = append(calls, call{op, "workflow/" + name, map[string]any{}, 400, "profile"})
		}
	}
	entries, writes := len(w.logged()), w.s.count()
	for _, c := range calls {
		_, err := w.do("op", "", c.op, "profiles/"+c.path, c.data)
		if code(err) != c.code || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s %q %.120v: got %d %.200v, want %d with %q", c.op, c.path, c.data, code(err), err, c.code, c.field)
		}
	}
	if len(w.logged()) != entries || w.s.count() != writes {
		t.Error("something was written")
	}
}

// TestProfileDeletePinned: a profile that a live run pins goes only by force, and
// the entry says so.
func TestProfileDeletePinned(t *testing.T) {
	w := newWorld(t)
	w.layer("system", "default", 0, `"requesters":{},"keys":{"LOW":{"tombstone":true}}`)
	q := w.enqueue(idem(1))
	for _, path := range []string{"workflow/team/release", "system/default"} {
		_, err := w.do("op", "", logical.DeleteOperation, "profiles/"+path, nil)
		if code(err) != 409 || !strings.Contains(err.Error(), string(q.Run)) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := w.do("op", "", logical.DeleteOperation, "profiles/workflow/team/release", map[string]any{"force": true}); err != nil {
		t.Fatal(err)
	}
	w.wantEntry("profile.deleted", `"forced":true`, `"runs":1`, "team/release")
	w.must("op", "runs/"+string(q.Run)+"/stop", map[string]any{"reason": "test"})
	w.must("op", "runs/"+string(q.Run)+"/close", map[string]any{"reason": "test"})
	if _, err := w.do("op", "", logical.DeleteOperation, "profiles/system/default", nil); err != nil {
		t.Errorf("no live run pins it: %v", err)
	}
	w.wantEntry("profile.deleted", `"forced":false`, `"widened":["LOW"]`, "default") // its tombstone is gone
}

// TestWidened: what a change of one entry is called.
func TestWidened(t *testing.T) {
	const def = `{"source":"builtin","ref":{"path":"ci/token"},"risk":"low","agents":["codex"],"ttl":"5m","max_ttl":"1h","bindings":[{"host":"api.example.com","methods":["GET"],"paths":["/v1/**"]}]}`
	edit := func(from, to string) string { return strings.Replace(def, from, to, 1) }
	for name, c := range map[string]struct {
		was, now string
		wider    bool
	}{
		"new":                      {"", def, true},
		"new narrowing":            {"", `{"agents":["codex"]}`, false},
		"new tombstone":            {"", `{"tombstone":true}`, false},
		"ended":                    {def, `{"tombstone":true}`, false},
		"brought back":             {`{"tombstone":true}`, def, true},
		"tombstone removed":        {`{"tombstone":true}`, "", true},
		"narrowing removed":        {`{"agents":["codex"]}`, "", true},
		"definition removed":       {def, "", false},
		"an agent more":            {def, edit(`"codex"`, `"codex","gemini"`), true},
		"no agents":                {def, edit(`"agents":["codex"],`, ``), false},
		"any agent again":          {`{"agents":["codex"],"ttl":"1m"}`, `{"ttl":"1m"}`, true},
		"a path within":            {def, edit("/v1/**", "/v1/a"), false},
		"another path":             {def, edit("/v1/**", "/**"), true},
		"no bindings of narrowing": {`{"bindings":[{"host":"a.example","methods":["GET"],"paths":["/"]}],"ttl":"1m"}`, `{"ttl":"1m"}`, true},
		"riskier":                  {def, edit("low", "high"), false},
		"less risky":               {edit("low", "high"), def, true},
		"longer":                   {def, edit("5m", "6m"), true},
		"shorter":                  {def, edit("5m", "4m"), false},
		"longer again":             {`{"ttl":"1m","risk":"high"}`, `{"risk":"high"}`, true},
		"another value":            {def, edit("ci/token", "ci/weak"), true},
		"a tag to have":            {def, edit(`"ttl"`, `"tags":["production"],"ttl"`), false},
		"no tag to have":           {edit(`"ttl"`, `"tags":["production"],"ttl"`), def, true},
		"an isolation to have":     {def, edit(`"ttl"`, `"isolations":["own_uid"],"ttl"`), false},
		"any isolation":            {edit(`"ttl"`, `"isolations":["own_uid"],"ttl"`), def, true},
		"requesters":               {def, edit(`"ttl"`, `"requesters":{"groups":["x"]},"ttl"`), true},
		"as it was":                {def, def, false},
	} {
		t.Run(name, func(t *testing.T) {
			read := func(version int, key string) sealed.Profile {
				if key != "" {
					key = `"K":` + key
				}
				p, err := sealed.ParseProfile([]byte(layerDoc("workflow", "x", version, `"requesters":{},"keys":{`+key+`}`)["profile"].(string)))
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			_, widened := profileDiff(read(1, c.was), read(2, c.now))
			if got := slices.Contains(widened, "K"); got != c.wider {
				t.Errorf("got %v, want %v", got, c.wider)
			}
		})
	}
}

// TestWidenedByRemoval: taking a definition away brings back one below it.
func TestWidenedByRemoval(t *testing.T) {
	w := newWorld(t)
	w.layer("system", "team/release", 0, defined)
	if _, err := w.patch("workflow/team/release", 1, `{"keys":{"LOW":null,"DYN":null}}`); err != nil {
		t.Fatal(err)
	}
	w.wantEntry("profile.changed", `"keys":["DYN","LOW"]`, `"widened":["LOW"]`)
}
