package opabundle

import (
	"context"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/format"

	"sealed.dev/sealed/internal/sealed"
)

const examples = "../rego/examples"

func buildExample(t *testing.T, name string) *Bundle {
	t.Helper()
	raw, err := Build(context.Background(), os.DirFS(examples+"/"+name), testManifest())
	if err != nil {
		t.Fatal(err)
	}
	return open(t, raw, patient)
}

// The examples are formatted, compile strictly, and pass and cover their tests.
func TestExamples(t *testing.T) {
	dirs, err := os.ReadDir(examples)
	if err != nil || len(dirs) < 2 {
		t.Fatalf("%d examples, %v", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(dir.Name(), func(t *testing.T) {
			buildExample(t, dir.Name())
			all, shipped := map[string]*ast.Module{}, map[string]*ast.Module{}
			fsys := os.DirFS(examples + "/" + dir.Name())
			err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				src, err := fs.ReadFile(fsys, name)
				if err != nil {
					return err
				}
				want, err := format.SourceWithOpts(name, src, format.Opts{RegoVersion: ast.RegoV1})
				if err != nil {
					return err
				}
				if diff := cmp.Diff(string(want), string(src)); diff != "" {
					t.Errorf("%s is not formatted (-want +got):\n%s", name, diff)
				}
				all[name], err = ast.ParseModuleWithOpts(name, string(src), ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1})
				if !strings.HasSuffix(name, "_test.rego") {
					shipped[name] = all[name]
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			runPolicyTests(t, all, shipped, 3)
		})
	}
}

// What an overlay says is combined with what the policy below says.
func TestDecideUnder(t *testing.T) {
	base, ctx := open(t, buildDefault(t), patient), context.Background()
	night := time.Date(2026, 5, 1, 23, 0, 0, 0, time.UTC)
	glass := fullInput()
	glass.Run.Tags = append(glass.Run.Tags, sealed.InputTag{Name: "break-glass", Proven: true})
	denied := fullInput()
	denied.Run.Mode = "bare"
	expired := open(t, buildWith(t, Manifest{Sequence: 1, Expires: now.Add(-time.Hour)}), patient)
	tests := map[string]struct {
		overlay *Bundle
		in      *sealed.Input
		at      time.Time
		want    string // effect and first code
	}{
		"hours, by day":           {buildExample(t, "production-hours"), fullInput(), now, "allow"},
		"hours, by night":         {buildExample(t, "production-hours"), glass, night, "deny outside_hours"},
		"glass, by night":         {buildExample(t, "break-glass"), fullInput(), night, "deny outside_hours"},
		"glass, broken":           {buildExample(t, "break-glass"), glass, night, "require_approval break_glass"},
		"an overlay cannot widen": {openPolicies(t, allowRule, patient), denied, now, "deny mode_no_keys"},
		"no answer":               {openPolicies(t, "decision := 1 if input.nothing\n", patient), fullInput(), now, "deny " + sealed.ReasonUndefined},
		"no overlay":              {nil, fullInput(), now, "deny " + sealed.ReasonNoBundle},
		"expired":                 {expired, fullInput(), now, "deny " + sealed.ReasonExpired},
	}
	for name, tc := range tests {
		tc.in.Time = tc.at
		d := base.DecideUnder(ctx, tc.overlay, sealed.QuestionAuthz, tc.in, tc.at)
		got := string(d.Effect)
		if len(d.Reasons) > 0 {
			got += " " + d.Reasons[0].Code
		}
		if got != tc.want {
			t.Errorf("%s: got %s, want %s", name, got, tc.want)
		}
	}
	d := base.DecideUnder(ctx, buildExample(t, "break-glass"), sealed.QuestionAuthz, glass, night)
	want := sealed.Obligations{TTL: 300, Delivery: "proxy", Egress: "bound", Approvals: sealed.ApprovalObligations{Quorum: 2, TTL: 300, Groups: []string{"sealed-approvers"}},
		Review: sealed.ReviewObligation{Within: 86400, Groups: []string{"sealed-approvers"}}}
	if diff := cmp.Diff(want, d.Obligations); diff != "" {
		t.Errorf("obligations (-want +got):\n%s", diff)
	}
}

// What a bundle is for is part of what is signed.
func TestIsOverlay(t *testing.T) {
	for _, want := range []bool{true, false} {
		m := testManifest()
		m.Overlay = want
		if b := open(t, buildWith(t, m), patient); b.IsOverlay() != want {
			t.Errorf("built as an overlay %v: %v", want, b.IsOverlay())
		}
	}
}

// Whatever an overlay answers, nothing becomes weaker.
func TestOverlayOnlyNarrows(t *testing.T) {
	base, ctx := open(t, buildDefault(t), patient), context.Background()
	strength := map[sealed.Effect]int{sealed.EffectAllow: 0, sealed.EffectRequireApproval: 1, sealed.EffectDeny: 2}
	var overlays []*Bundle
	for _, answer := range []string{
		`{"effect": "allow", "obligations": {"ttl": 99999, "delivery": "env", "egress": ""}}`,
		`{"effect": "allow", "obligations": {"ttl": 1, "delivery": "proxy", "egress": "bound"}}`,
		`{"effect": "require_approval", "reasons": [{"code": "a", "msg": "b"}], "obligations": {"approvals": {"quorum": 1, "groups": ["sealed-approvers", "everyone"], "ttl": 99999}}}`,
		`{"effect": "deny", "reasons": [{"code": "a", "msg": "b"}]}`,
		`{"effect": "maybe"}`,
	} {
		overlays = append(overlays, openPolicies(t, "decision := "+answer+"\n", patient))
	}
	rnd := rand.New(rand.NewPCG(13, 14))
	for range 200 {
		in := tuple(rnd)
		alone := base.Decide(ctx, sealed.QuestionAuthz, in, now)
		for i, o := range overlays {
			d := base.DecideUnder(ctx, o, sealed.QuestionAuthz, in, now)
			a, b := alone.Obligations, d.Obligations
			if strength[d.Effect] < strength[alone.Effect] {
				t.Fatalf("overlay %d: %s became %s", i, alone.Effect, d.Effect)
			}
			if d.Effect == sealed.EffectDeny {
				continue
			}
			if (a.TTL > 0 && (b.TTL > a.TTL || b.TTL == 0)) || !b.Delivery.Stronger(a.Delivery) || (a.Egress == "bound" && b.Egress != "bound") ||
				b.Approvals.Quorum < a.Approvals.Quorum || (a.Approvals.TTL > 0 && b.Approvals.TTL > a.Approvals.TTL) {
				t.Fatalf("overlay %d: %+v became %+v", i, a, b)
			}
		}
	}
}
