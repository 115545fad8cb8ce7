package opabundle

import (
	"context"
	"testing"

	"sealed.dev/sealed/internal/sealed"
)

// However the rules make the document, what they come to is the answer.
func TestAnswerOfEachKindOfRule(t *testing.T) {
	const (
		allow   = `{"effect": "allow", "reasons": [], "obligations": {}}`
		refused = `{"effect": "deny", "reasons": [{"code": "no", "msg": ""}], "obligations": {}}`
	)
	for name, tc := range map[string]struct {
		authz    string
		complete bool
		want     string // effect or, of a denial, the code
	}{
		"complete":            {`decision := ` + allow, true, "allow"},
		"default":             {`default decision := ` + refused + "\ndecision := " + allow + ` if input.phase == "no such"`, true, "no"},
		"else":                {`decision := ` + refused + ` if input.phase == "no such" else := ` + allow, true, "allow"},
		"with values of both": {`decision := {"effect": e, "reasons": [], "obligations": {"ttl": input.key.ttl}} if e := ["allow"][_]`, true, "allow"},
		"below a with":        {"decision := d if d := _d with input.phase as \"x\"\n_d := " + allow + ` if input.phase == "x"`, true, "allow"},
		"more than are kept":  {"decision := " + allow + " if every i in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19] { _f(i) == i }\n_f(i) := i", true, "allow"},
		"same twice":          {`decision := ` + allow + " if input.phase\ndecision := " + allow + " if input.time", true, "allow"},
		"conflict":            {`decision := ` + allow + " if input.phase\ndecision := " + refused + " if input.time", true, sealed.ReasonError},
		"undefined":           {`decision := ` + allow + ` if input.nothing`, true, sealed.ReasonUndefined},
		"partial object":      {"decision[k] := v if some k, v in " + allow, false, "allow"},
		"partial set":         {"decision contains x if some x in [1]", false, sealed.ReasonShape},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := Build(context.Background(), policies(tc.authz+"\n"), testManifest())
			if err != nil {
				t.Fatal(err)
			}
			b := open(t, raw, patient)
			if got := b.queries[sealed.QuestionAuthz].complete; got != tc.complete {
				t.Errorf("complete: %v", got)
			}
			d := b.Decide(context.Background(), sealed.QuestionAuthz, fullInput(), now)
			got := string(d.Effect)
			if d.Effect == sealed.EffectDeny {
				got = d.Reasons[0].Code
			}
			if got != tc.want {
				t.Errorf("got %+v, want %s", d, tc.want)
			}
		})
	}
}
