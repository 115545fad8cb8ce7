package opabundle

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// byJSON is the long way round: what a value says as JSON.
func byJSON(t testing.TB, v ast.Value) (sealed.Decision, error) {
	t.Helper()
	x, err := ast.JSONWithOpt(v, ast.JSONOpt{SortSets: true})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return sealed.ParseDecision(data)
}

func sameAnswer(t testing.TB, v ast.Value) (ok bool) {
	t.Helper()
	got, gotErr := decision(v)
	want, wantErr := byJSON(t, v)
	if (gotErr == nil) != (wantErr == nil) {
		t.Fatalf("%v:\n got %+v, %v\nwant %+v, %v", v, got, gotErr, want, wantErr)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%v (-want +got):\n%s", v, diff)
	}
	return gotErr == nil
}

const fullAnswer = `{"effect": "require_approval", "reasons": [{"code": "a", "msg": "b"}, {"code": "c", "msg": "d"}],
	"obligations": {"ttl": 600, "delivery": "proxy", "egress": "bound", "approvals": {"quorum": 2, "groups": ["x", "y"], "ttl": 900},
		"review": {"within": 60, "groups": ["z"]}}}`

// acceptedAnswers says of answers whether they are decisions.
var acceptedAnswers = map[string]bool{
	fullAnswer:            true,
	`{"effect": "allow"}`: true,
	`{"effect": "allow", "reasons": null, "obligations": null}`:                                 true,
	`{"effect": "deny", "reasons": {{"code": "b", "msg": ""}, {"code": "a", "msg": ""}}}`:       true, // a set
	`{"effect": "allow", "obligations": {"approvals": {"groups": {"y", "x"}, "quorum": null}}}`: true,
	`{"effect": "allow", "obligations": {"ttl": 9223372036854775807}}`:                          true,
	`{"effect": "allow", "reasons": [null, {}]}`:                                                true,
	`null`: false, `true`: false, `"allow"`: false, `[]`: false, `set()`: false, `{}`: false, `{"a"}`: false,
	`{"effect": "allow", "allow": true}`: false, `{"Effect": "allow"}`: false, `{"effect": ["allow"]}`: false,
	`{"effect": "allow", 1: 2}`: false, `{"effect": "allow", null: 2}`: false, `{"effect": "allow", ["effect"]: "deny"}`: false,
	`{"effect": "allow", "reasons": {}}`: false, `{"effect": "allow", "reasons": "none"}`: false,
	`{"effect": "allow", "reasons": [{"code": 1, "msg": ""}]}`: false, `{"effect": "allow", "reasons": [{"codes": ""}]}`: false,
	`{"effect": "allow", "obligations": []}`: false, `{"effect": "allow", "obligations": {"quorum": 1}}`: false,
	`{"effect": "allow", "obligations": {"ttl": 1.0}}`: false, `{"effect": "allow", "obligations": {"ttl": 1e3}}`: false,
	`{"effect": "allow", "obligations": {"ttl": "1"}}`: false, `{"effect": "allow", "obligations": {"ttl": -1}}`: false,
	`{"effect": "allow", "obligations": {"ttl": 9223372036854775808}}`:                           false,
	`{"effect": "allow", "obligations": {"delivery": "any"}}`:                                    false,
	`{"effect": "allow", "obligations": {"egress": "free"}}`:                                     false,
	`{"effect": "allow", "obligations": {"review": {"within": 60, "groups": ["x"]}}}`:            true,
	`{"effect": "allow", "obligations": {"review": {"within": 60}}}`:                             false,
	`{"effect": "allow", "obligations": {"review": {"groups": ["x"]}}}`:                          false,
	`{"effect": "allow", "obligations": {"review": {"within": -1, "groups": ["x"]}}}`:            false,
	`{"effect": "allow", "obligations": {"review": {"within": 2678401, "groups": ["x"]}}}`:       false,
	`{"effect": "allow", "obligations": {"review": {"within": 60, "groups": ["x"], "by": "x"}}}`: false,
	`{"effect": "allow", "obligations": {"approvals": {"quorum": -1}}}`:                          false,
	`{"effect": "allow", "obligations": {"approvals": {"ttl": -1}}}`:                             false,
	`{"effect": "allow", "obligations": {"approvals": {"groups": [1]}}}`:                         false,
	`{"effect": "allow", "obligations": {"approvals": {"persons": 1}}}`:                          false,
	`{"effect": "deny"}`: false, `{"effect": "deny", "reasons": []}`: false,
	`{"effect": "require_approval", "reasons": [{"code": "a", "msg": "b"}]}`:                                                  false,
	`{"effect": "require_approval", "reasons": [{"code": "a", "msg": "b"}], "obligations": {"approvals": {"quorum": 1}}}`:     false,
	`{"effect": "require_approval", "reasons": [{"code": "a", "msg": "b"}], "obligations": {"approvals": {"groups": ["x"]}}}`: false,
	`{"effect": "require_approval", "reasons": [], "obligations": {"approvals": {"quorum": 1, "groups": ["x"]}}}`:             false,
}

// Read from OPA's value and read from JSON, an answer is the same, or refused
// both ways.
func TestAnswerEqualsJSON(t *testing.T) {
	for src, want := range acceptedAnswers {
		if got := sameAnswer(t, ast.MustParseTerm(src).Value); got != want {
			t.Errorf("%s: accepted %v, want %v", src, got, want)
		}
	}
}

// What the two readers may differ in: this one refuses more.
func TestAnswerRefusesMore(t *testing.T) {
	var many []*ast.Term
	for range 10000 {
		many = append(many, ast.ObjectTerm())
	}
	for name, v := range map[string]ast.Value{
		"not UTF-8": ast.NewObject([2]*ast.Term{ast.StringTerm("effect"), ast.StringTerm("allow")}, [2]*ast.Term{ast.StringTerm("reasons"), ast.ArrayTerm(ast.ObjectTerm([2]*ast.Term{ast.StringTerm("msg"), ast.StringTerm("a\xff")}))}),
		"long text": ast.NewObject([2]*ast.Term{ast.StringTerm("effect"), ast.StringTerm("allow")}, [2]*ast.Term{ast.StringTerm("reasons"), ast.ArrayTerm(ast.ObjectTerm([2]*ast.Term{ast.StringTerm("msg"), ast.StringTerm(strings.Repeat("a", maxAnswer))}))}),
		"long list": ast.NewObject([2]*ast.Term{ast.StringTerm("effect"), ast.StringTerm("allow")}, [2]*ast.Term{ast.StringTerm("reasons"), ast.ArrayTerm(many...)}),
	} {
		if d, err := decision(v); err == nil {
			t.Errorf("%s: accepted as %+v", name, d.Effect)
		}
	}
}

// Random answers: the full one with a few members changed at any depth.
func TestAnswerEqualsJSONRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	names := []string{"effect", "reasons", "obligations", "code", "msg", "ttl", "delivery", "approvals", "egress", "review", "within", "quorum", "groups", "Effect", "x"}
	values := []string{`null`, `"allow"`, `"deny"`, `"require_approval"`, `"proxy"`, `"env"`, `"bound"`, `""`, `0`, `1`, `-1`, `1.5`, `2e2`, `true`, `[]`, `{}`, `set()`, `["a"]`, `{"a"}`, `[{"code": "a", "msg": "b"}]`, `[1]`}
	var mutate func(t *ast.Term) *ast.Term
	mutate = func(term *ast.Term) *ast.Term {
		if rnd.IntN(12) == 0 {
			return ast.MustParseTerm(values[rnd.IntN(len(values))])
		}
		switch v := term.Value.(type) {
		case ast.Object:
			out := ast.NewObject()
			v.Foreach(func(k, e *ast.Term) {
				switch rnd.IntN(15) {
				case 0:
				case 1:
					out.Insert(ast.StringTerm(names[rnd.IntN(len(names))]), mutate(e))
				default:
					out.Insert(k, mutate(e))
				}
			})
			return ast.NewTerm(out)
		case *ast.Array:
			var out []*ast.Term
			v.Foreach(func(e *ast.Term) { out = append(out, mutate(e)) })
			return ast.ArrayTerm(out...)
		}
		return term
	}
	full, accepted := ast.MustParseTerm(fullAnswer), 0
	for range 5000 {
		if sameAnswer(t, mutate(full).Value) {
			accepted++
		}
	}
	if accepted < 100 || accepted > 4900 {
		t.Errorf("%d of 5000 accepted: the test compares one side only", accepted)
	}
}

// FuzzAnswer: no value panics the reader, and both readers agree.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"effect": "allow", "reasons": [], "obligations": {}}`))
	f.Add([]byte(fullAnswer))
	f.Add([]byte(`{"effect": "deny", "reasons": [{"code": "a", "msg": "é"}], "obligations": {"ttl": 1e1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := jsonValue(data, 2<<10) // an answer of this size is never too large
		if err != nil {
			return
		}
		sameAnswer(t, v)
	})
}
