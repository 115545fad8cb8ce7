package opabundle

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/rego"
)

// What authors of policies use: Format, Check, Test, Inspect, Explain.

func sub(t testing.TB, dir string) fs.FS {
	t.Helper()
	fsys, err := fs.Sub(rego.FS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// shipped returns a copy of the default policies, so that a test can change one.
func shippedSources(t testing.TB) fstest.MapFS {
	t.Helper()
	out := fstest.MapFS{}
	err := fs.WalkDir(rego.FS(), "sealed", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(rego.FS(), name)
		out[name] = &fstest.MapFile{Data: data}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFormat(t *testing.T) {
	got, err := Format("x.rego", []byte("package  sealed.x\ny if   input.z\n"))
	if want := "package sealed.x\n\ny if input.z\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Format("x.rego", []byte("packet x")); !errors.Is(err, ErrMalformed) {
		t.Errorf("what does not parse: %v", err)
	}
}

func TestCheck(t *testing.T) {
	authz := "sealed/authz/authz.rego"
	for name, tt := range map[string]struct {
		change func(fstest.MapFS)
		want   string // in some problem; empty: none
	}{
		"as shipped":          {func(fstest.MapFS) {}, ""},
		"unknown field":       {replace(authz, "input.key.risk == \"low\"\n} else", "input.key.rsk == \"low\"\n} else"), "rsk"},
		"does not parse":      {replace(authz, "decision := {", "decision := {{"), "authz.rego:"},
		"no METADATA":         {replace(authz, "# entrypoint: true", "#"), "entrypoint: true"},
		"no schema":           {replace(authz, "# schemas:\n#   - input: schema.authz\n", ""), "schema.authz"},
		"forbidden function":  {replace(authz, "_fits_risk if input.key.risk == \"low\"", "_fits_risk if http.send({\"url\": \"https://x\"}).status == 1"), "http.send"},
		"another root":        {func(m fstest.MapFS) { m["other.rego"] = &fstest.MapFile{Data: []byte("package other\n\nx := 1\n")} }, "other"},
		"another file":        {func(m fstest.MapFS) { m["sealed/notes.txt"] = &fstest.MapFile{} }, "notes.txt"},
		"test does not parse": {func(m fstest.MapFS) { m["sealed/x_test.rego"] = &fstest.MapFile{Data: []byte("x")} }, "x_test.rego"},
	} {
		fsys := shippedSources(t)
		tt.change(fsys)
		problems, err := Check(context.Background(), fsys, sub(t, "schema"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		found := slices.ContainsFunc(problems, func(p Problem) bool { return strings.Contains(p.String(), tt.want) })
		if tt.want == "" && len(problems) > 0 || tt.want != "" && !found {
			t.Errorf("%s: %v", name, problems)
		}
	}
}

func replace(file, from, to string) func(fstest.MapFS) {
	return func(m fstest.MapFS) {
		s := strings.Replace(string(m[file].Data), from, to, 1)
		if s == string(m[file].Data) {
			panic("nothing was replaced")
		}
		m[file] = &fstest.MapFile{Data: []byte(s)}
	}
}

func TestTest(t *testing.T) {
	ctx := context.Background()
	r, err := Test(ctx, sub(t, "."))
	if err != nil || r.Failed != 0 || len(r.Tests) < 60 || r.Coverage != 100 || len(r.Files) < 6 {
		t.Fatalf("%+v, %v", r, err)
	}
	// Control: a policy that is wrong fails its tests, and what is untested shows.
	fsys := shippedSources(t)
	replace("sealed/authz/facts.rego", "_agent_listed if input.agent.name in input.key.agents", "_agent_listed if input.agent.name != \"nobody\"")(fsys)
	r, err = Test(ctx, fsys)
	if err != nil || r.Failed == 0 || !strings.Contains(r.Tests[slices.IndexFunc(r.Tests, func(x TestResult) bool { return x.Problem != "" })].Problem, "not so") {
		t.Errorf("%d failed, %v", r.Failed, err)
	}
	delete(fsys, "sealed/dispatch/dispatch_test.rego")
	if r, err = Test(ctx, fsys); err != nil || r.Coverage > 95 {
		t.Errorf("coverage %.1f, %v", r.Coverage, err)
	}
	// A test can't reach out of the process.
	fsys["sealed/out_test.rego"] = &fstest.MapFile{Data: []byte("package sealed.out_test\n\ntest_x if http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1\"})\n")}
	if _, err := Test(ctx, fsys); !errors.Is(err, ErrMalformed) {
		t.Errorf("http.send in a test: %v", err)
	}
}

func TestInspectDecidesAsOpen(t *testing.T) {
	ctx, raw := context.Background(), buildDefault(t)
	k := newKey(t)
	signed := k.sign(t, raw)
	opts := k.options()
	opts.Limits = patient
	b, err := Open(ctx, signed, opts)
	if err != nil {
		t.Fatal(err)
	}
	for name, bytes := range map[string][]byte{"unsigned": raw, "signed": signed, "signed by anybody": newKey(t).sign(t, raw)} {
		i, err := Inspect(ctx, bytes, patient)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b.Decide(ctx, sealed.QuestionAuthz, fullInput(), now), i.Decide(ctx, sealed.QuestionAuthz, fullInput(), now)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if same := i.Ref() == b.Ref(); same != (name == "signed") {
			t.Errorf("%s: has the reference of the signed bundle: %v", name, same)
		}
	}
	if _, err := Inspect(ctx, raw[:len(raw)/2], Limits{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("half a bundle: %v", err)
	}
}

func TestExplain(t *testing.T) {
	ctx := context.Background()
	i, err := Inspect(ctx, buildDefault(t), patient)
	if err != nil {
		t.Fatal(err)
	}
	in := fullInput()
	in.Key.Agents = []string{"codex"}
	x, err := i.Explain(ctx, sealed.QuestionAuthz, in, now)
	if err != nil || x.Decision.Effect != sealed.EffectDeny {
		t.Fatalf("%+v, %v", x.Decision, err)
	}
	var held, stopped []string
	for _, r := range x.Rules {
		if r.Held && strings.HasSuffix(r.Rule, "_denials") {
			held = append(held, r.Title)
		}
		if !r.Held && r.Rule == "sealed.authz._agent_listed" {
			stopped = append(stopped, r.Stopped)
			facts := map[string]string{}
			for _, f := range r.Facts {
				facts[f.Path] = string(f.Value)
			}
			if want := map[string]string{"input.agent.name": `"claude-code"`, "input.key.agents": `["codex"]`}; !maps.Equal(facts, want) {
				t.Errorf("facts %v", facts)
			}
		}
	}
	if want := []string{"The agent must be listed in the key; an empty list is nobody"}; !slices.Equal(held, want) {
		t.Errorf("held: %q", held)
	}
	if len(stopped) != 1 || !strings.Contains(stopped[0], "input.agent.name in input.key.agents") {
		t.Errorf("stopped: %q", stopped)
	}
	again, err := i.Explain(ctx, sealed.QuestionAuthz, in, now)
	if a, b := encode(t, x), encode(t, again); err != nil || a != b {
		t.Errorf("another explanation of the same decision:\n%s\n%s", a, b)
	}
	if x, err := i.Explain(ctx, sealed.QuestionAuthz, in, i.Expires()); err != nil || len(x.Rules) != 0 || x.Decision.Reasons[0].Code != sealed.ReasonExpired {
		t.Errorf("expired: %+v, %v", x, err)
	}
}

func encode(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
