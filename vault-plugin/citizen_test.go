package vaultplugin

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/testhelpers/schema"
	"github.com/hashicorp/vault/sdk/logical"
)

// newBare is an engine that nobody has set up.
func newBare(t testing.TB) *backend {
	t.Helper()
	w := &world{t: t, s: &faultStorage{}, clock: &clock{}, sys: &fakeSystem{entities: map[string]*logical.Entity{}, groups: map[string][]string{},
		StaticSystemView: logical.StaticSystemView{PluginEnvironment: &logical.PluginEnvironment{VaultVersion: "1.21.0"}}}}
	w.open()
	return w.b
}

// TestPathsExplainThemselves: what path-help and OpenAPI say is complete, for
// every path and operation, also those that come later.
func TestPathsExplainThemselves(t *testing.T) {
	group := regexp.MustCompile(`\(\?P<([a-z_]+)>`)
	sentence := func(where, s string) {
		if s = strings.TrimSpace(s); len(s) < 7 {
			t.Errorf("%s: says nothing", where)
		}
	}
	for _, p := range newBare(t).Paths {
		sentence(p.Pattern+" synopsis", p.HelpSynopsis)
		sentence(p.Pattern+" description", p.HelpDescription)
		if p.DisplayAttrs == nil || p.DisplayAttrs.OperationPrefix != "sealed" || p.DisplayAttrs.OperationSuffix == "" {
			t.Errorf("%s: no DisplayAttrs", p.Pattern)
		}
		for _, g := range group.FindAllStringSubmatch(p.Pattern, -1) {
			if p.Fields[g[1]] == nil {
				t.Errorf("%s: no field %s", p.Pattern, g[1])
			}
		}
		for name, f := range p.Fields {
			sentence(p.Pattern+" field "+name, f.Description)
			if secret := slices.Contains([]string{"value", "credential", "claim"}, name); secret && (f.DisplayAttrs == nil || !f.DisplayAttrs.Sensitive) {
				t.Errorf("%s field %s: holds a secret and is not marked so", p.Pattern, name)
			}
		}
		for op, h := range p.Operations {
			where, props := p.Pattern+" "+string(op), h.Properties()
			sentence(where+" summary", props.Summary)
			if len(props.Responses) != 1 {
				t.Errorf("%s: answers.go does not say what it answers", where)
			}
			for status, rs := range props.Responses {
				if (status == http.StatusOK) != (len(rs[0].Fields) > 0) {
					t.Errorf("%s: status %d with %d fields", where, status, len(rs[0].Fields))
				}
				for name, f := range rs[0].Fields {
					if f.Description == "" {
						t.Errorf("%s answer %s: says nothing", where, name)
					}
				}
			}
		}
	}
}

// TestAnswersNamePaths: the table has no row for what is not there.
func TestAnswersNamePaths(t *testing.T) {
	there := map[string]bool{}
	for _, p := range newBare(t).Paths {
		for op := range p.Operations {
			there[p.DisplayAttrs.OperationSuffix+" "+string(op)] = true
		}
	}
	for name := range maps.Keys(answers()) {
		if !there[name] {
			t.Errorf("answers.go describes %q, which is no operation", name)
		}
	}
}

// openAPI is what the engine tells Vault of its paths.
func openAPI(t testing.TB, b logical.Backend, s logical.Storage) map[string]map[string]struct {
	OperationID string `json:"operationId"`
	Responses   map[string]struct{ Content map[string]any }
} {
	t.Helper()
	resp, err := b.HandleRequest(context.Background(), &logical.Request{Operation: logical.HelpOperation, Path: "", Storage: s, Data: map[string]any{"requestResponsePrefix": "sealed"}})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(resp.Data["openapi"])
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Responses   map[string]struct{ Content map[string]any }
	}{}
	for path, item := range doc.Paths {
		out[path] = map[string]struct {
			OperationID string `json:"operationId"`
			Responses   map[string]struct{ Content map[string]any }
		}{}
		for _, verb := range []string{"get", "post", "patch", "delete"} {
			if item[verb] == nil {
				continue
			}
			var op struct {
				OperationID string `json:"operationId"`
				Responses   map[string]struct{ Content map[string]any }
			}
			if err := json.Unmarshal(item[verb], &op); err != nil {
				t.Fatal(err)
			}
			out[path][verb] = op
		}
	}
	return out
}

// TestOpenAPI: a client generator gets one name per operation, and a schema for
// each answer that has data.
func TestOpenAPI(t *testing.T) {
	b := newBare(t)
	ids := map[string]string{}
	for path, verbs := range openAPI(t, b, &logical.InmemStorage{}) {
		for verb, op := range verbs {
			where := verb + " " + path
			if other := ids[op.OperationID]; other != "" || op.OperationID == "" {
				t.Errorf("%s and %s are both %q", where, other, op.OperationID)
			}
			ids[op.OperationID] = where
			if ok, has := op.Responses["200"]; has && ok.Content["application/json"] == nil {
				t.Errorf("%s: 200 without a schema", where)
			}
		}
	}
	if len(ids) < 40 {
		t.Fatalf("only %d operations are in the document", len(ids))
	}
}

// checkAnswer fails the test if an answer is not what the path says of it. All
// tests that call the engine as Vault does come through here.
func checkAnswer(t testing.TB, b *backend, req *logical.Request, resp *logical.Response) {
	t.Helper()
	p := b.Route(req.Path)
	if p == nil || resp == nil || resp.IsError() || p.Operations[req.Operation] == nil {
		return
	}
	var want *framework.Response
	for _, rs := range p.Operations[req.Operation].Properties().Responses {
		want = &rs[0]
	}
	if tt, ok := t.(*testing.T); ok && want != nil {
		fine := false
		defer func() {
			if !fine {
				t.Errorf("answers.go does not say that %s %s answers so", req.Operation, p.Pattern)
			}
		}()
		schema.ValidateResponse(tt, want, resp, true)
		fine = true
	}
}

// TestNothingUnauthenticated: every path needs a token, and none needs root,
// for who may call what is said by policies alone.
func TestNothingUnauthenticated(t *testing.T) {
	special := newBare(t).SpecialPaths()
	if diff := cmp.Diff(&logical.Paths{SealWrapStorage: []string{storeKeys, storeSecrets + "*", storeSourceCreds + "*"}}, special); diff != "" {
		t.Error(diff)
	}
}

// TestSealWrapCoversSecrets: whatever is in storage of the value of a secret, of
// a source's login or of the mount's own keys lies under a seal-wrapped path;
// and only such things do.
func TestSealWrapCoversSecrets(t *testing.T) {
	w := newWorld(t)
	wrapped := func(key string) bool {
		return slices.ContainsFunc(w.b.SpecialPaths().SealWrapStorage, func(p string) bool {
			prefix, any := strings.CutSuffix(p, "*")
			return any && strings.HasPrefix(key, prefix) || key == p
		})
	}
	g := w.claimed(idem(1))
	if _, _, err := g.creds("DYN", idem(2)); err != nil {
		t.Fatal(err)
	}
	keys, err := logical.CollectKeys(t.Context(), w.s)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, key := range keys {
		e, err := w.s.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		noun, _, _ := strings.Cut(key, "/")
		found[noun] = true
		secret := noun == "secret" || noun == "source-credential" || key == storeKeys
		if wrapped(key) != secret {
			t.Errorf("%s: seal-wrapped is %v", key, wrapped(key))
		}
		for _, value := range [][]byte{[]byte(canary), []byte(jsonBytes(canary)), []byte("upstream-login"), []byte(jsonBytes("upstream-login"))} {
			if strings.Contains(string(e.Value), string(value)) && !secret {
				t.Errorf("%s holds a secret and is not seal-wrapped", key)
			}
		}
	}
	for _, noun := range []string{"secret", "source-credential", storeKeys} {
		if !found[noun] {
			t.Errorf("nothing of %s was in storage: the test shows nothing", noun)
		}
	}
}

// jsonBytes is how encoding/json spells text that is held as bytes.
func jsonBytes(s string) string {
	b, err := json.Marshal([]byte(s))
	if err != nil {
		return ""
	}
	return strings.Trim(string(b), `"`)
}
