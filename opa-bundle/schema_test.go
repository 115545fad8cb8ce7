package opabundle

import (
	"encoding/json"
	"io/fs"
	"os"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"sealed.dev/sealed/internal/sealed"
	shipped "sealed.dev/sealed/rego"
)

// matchesSchema asks OPA whether a value is a decision by rego/schema/decision.json.
func matchesSchema(t *testing.T, v ast.Value) bool {
	t.Helper()
	schema, err := fs.ReadFile(shipped.FS(), "schema/decision.json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := ast.JSON(v)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rego.New(rego.Query("json.match_schema(input.document, input.schema)[0]"),
		rego.Input(map[string]any{"document": string(text), "schema": string(schema)})).Eval(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(rs) != 1 {
		t.Fatalf("%s: no answer from json.match_schema", text)
	}
	return rs[0].Expressions[0].Value == true
}

// The published schema of decisions accepts what is a decision, and refuses what
// is none; numbers aside, of which it can't say how they are written.
func TestDecisionSchema(t *testing.T) {
	written := map[string]bool{
		`{"effect": "allow", "obligations": {"ttl": 1.0}}`: true, `{"effect": "allow", "obligations": {"ttl": 1e3}}`: true,
	}
	for src, want := range acceptedAnswers {
		if got := matchesSchema(t, ast.MustParseTerm(src).Value); got != (want || written[src]) {
			t.Errorf("%s: matches %v, want %v", src, got, want)
		}
	}
	raw, err := os.ReadFile("../test/vectors/decisions.json")
	if err != nil {
		t.Fatal(err)
	}
	var published struct {
		Parse []struct {
			In string
			OK bool
		}
	}
	if err := json.Unmarshal(raw, &published); err != nil || len(published.Parse) == 0 {
		t.Fatalf("%d vectors, %v", len(published.Parse), err)
	}
	for _, c := range published.Parse {
		var doc any
		if sealed.Decode([]byte(c.In), 64<<10, &doc) != nil {
			continue // no document at all, or two
		}
		v, err := ast.InterfaceToValue(doc)
		if err != nil {
			t.Fatal(err)
		}
		if got := matchesSchema(t, v); got != c.OK {
			t.Errorf("%s: matches %v, want %v", c.In, got, c.OK)
		}
	}
	for name, d := range map[string]sealed.Decision{
		"allow": {Effect: sealed.EffectAllow}, "deny": sealed.Deny("x", "y"), "none": {},
	} {
		v, err := ast.InterfaceToValue(d)
		if err != nil {
			t.Fatal(err)
		}
		if got := matchesSchema(t, v); got != (name != "none") {
			t.Errorf("%s as the log has it: matches %v", name, got)
		}
	}
}
