package opabundle

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf16"

	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// A code is a word of the bundle. Whatever the agent says as its reason, it
// does not become one.
func TestCodesAreWordsOfTheBundle(t *testing.T) {
	denies := func(code string) string {
		return `decision := {"effect": "deny", "reasons": [{"code": ` + code + `, "msg": ""}], "obligations": {}}` + "\n"
	}
	for name, tc := range map[string]struct {
		authz string
		ok    bool
	}{
		"literal":             {denies(`"not_today"`), true},
		"argument":            {denies(`_code("not_today")`) + "_code(c) := c\n", true},
		"chosen":              {denies(`{"low": "low_risk", "high": "high_risk"}[input.key.risk]`), true},
		"of the data":         {denies(`data.sealed.codes[0]`), true},
		"key of the data":     {denies(`min(object.keys(data.sealed.titles))`), true},
		"the agent's words":   {denies(`input.reason`), false},
		"in another":          {denies(`concat("_", ["reason", input.reason])`), false},
		"made of the input":   {denies(`sprintf("risk_%s", [input.key.risk])`), false},
		"template":            {denies("$`risk_{input.key.risk}`"), false},
		"made of words":       {denies(`concat("_", ["not", "now"])`), false}, // nobody can list these
		"upper case":          {denies(`"Not_today"`), false},
		"digit first":         {denies(`"1_not"`), false},
		"space":               {denies(`"not today"`), false},
		"empty":               {denies(`""`), false},
		"longest":             {denies(`"` + strings.Repeat("a", maxCode) + `"`), true},
		"too long":            {denies(`"` + strings.Repeat("a", maxCode+1) + `"`), false},
		"an allow with words": {strings.Replace(denies(`input.reason`), "deny", "allow", 1), false},
	} {
		t.Run(name, func(t *testing.T) {
			tree := policies(tc.authz)
			tree["sealed/data.json"] = &fstest.MapFile{Data: []byte(`{"codes": ["from_data", 1, null], "titles": {"title_key": "no code"}}`)}
			raw, err := Build(context.Background(), tree, testManifest())
			if err != nil {
				t.Fatal(err)
			}
			b := open(t, raw, patient)
			in := fullInput()
			in.Reason = "exfiltrated_words"
			d := b.Decide(context.Background(), sealed.QuestionAuthz, in, now)
			if shape := d.Reasons[0].Code == sealed.ReasonShape; shape == tc.ok {
				t.Errorf("got %+v, want accepted %v", d, tc.ok)
			}
			if text, _ := json.Marshal(d); strings.Contains(string(text), in.Reason) {
				t.Errorf("the answer holds the agent's words: %s", text)
			}
			// Control: without the words, it is a decision and says them.
			q := b.queries[sealed.QuestionAuthz]
			v, err := inputValue(in, q.reads, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := q.eval(context.Background(), v, now, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if d, err := decision(answer); err != nil || strings.Contains(tc.authz, "input.reason") != strings.Contains(d.Reasons[0].Code, in.Reason) {
				t.Errorf("control: %+v, %v", d, err)
			}
		})
	}
}

// What is accepted is not larger in JSON than the log has room for. Control:
// counted as they are, texts are accepted that are larger.
func TestAcceptedAnswersFitTheLog(t *testing.T) {
	rnd := rand.New(rand.NewPCG(21, 22))
	letters := []string{"a", "é", "<", "&", "\x00", "\n", "\"", `\`, "\u2028", "\u2029", "世", "\U0001f600", "\x7f"}
	accepted, refused, control := 0, 0, 0
	for range 2000 {
		var reasons []*ast.Term
		plain := 0
		for range 1 + rnd.IntN(8) {
			text := strings.Repeat(letters[rnd.IntN(len(letters))], rnd.IntN(maxAnswer/4)) + letters[rnd.IntN(len(letters))]
			plain += len(text)
			reasons = append(reasons, ast.ObjectTerm([2]*ast.Term{ast.StringTerm("code"), ast.StringTerm("a")}, [2]*ast.Term{ast.StringTerm("msg"), ast.StringTerm(text)}))
		}
		v := ast.NewObject([2]*ast.Term{ast.StringTerm("effect"), ast.StringTerm("allow")}, [2]*ast.Term{ast.StringTerm("reasons"), ast.ArrayTerm(reasons...)})
		d, err := decision(v)
		if err != nil {
			refused++
			if plain < maxAnswer/2 {
				control++
			}
			continue
		}
		accepted++
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, u := range utf16.Encode([]rune(string(text))) {
			if size++; u >= 0x7f {
				size += 5
			}
		}
		if size > maxAnswer {
			t.Fatalf("%d bytes: %.100s", size, text)
		}
	}
	if accepted < 100 || refused < 100 || control < 10 {
		t.Errorf("%d accepted, %d refused, %d of them for their escapes", accepted, refused, control)
	}
}

// A policy that says too much denies with a reason of its own, and its bundle
// goes on to answer.
func TestLargeAnswerIsNoDecision(t *testing.T) {
	b := openPolicies(t, `decision := {"effect": "allow", "reasons": [{"code": "ok", "msg": input.requester.name}], "obligations": {}}`+"\n", patient)
	for size, want := range map[int]sealed.Effect{10: sealed.EffectAllow, maxAnswer - 1000: sealed.EffectAllow, maxAnswer: sealed.EffectDeny, 3 * maxAnswer: sealed.EffectDeny} {
		in := fullInput()
		in.Requester.Name = strings.Repeat("n", size)
		d := b.Decide(context.Background(), sealed.QuestionAuthz, in, now)
		if d.Effect != want || want == sealed.EffectDeny && d.Reasons[0].Code != sealed.ReasonShape {
			t.Errorf("%d bytes: %s, %s, want %s", size, d.Effect, d.Reasons[0].Code, want)
		}
	}
}
