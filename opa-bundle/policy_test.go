package opabundle

import (
	"context"
	"encoding/json"
	"io/fs"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/format"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/rego"
)

// The shipped policies: formatted, strictly checked against their schemas,
// tested by their own tests, and covered by them.

// policyModules parses the shipped policies, with or without their tests.
func policyModules(t testing.TB, tests bool) (map[string]*ast.Module, map[string][]byte) {
	t.Helper()
	modules, sources := map[string]*ast.Module{}, map[string][]byte{}
	err := fs.WalkDir(rego.FS(), "sealed", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || (!tests && strings.HasSuffix(name, "_test.rego")) {
			return err
		}
		src, err := fs.ReadFile(rego.FS(), name)
		if err != nil {
			return err
		}
		m, err := ast.ParseModuleWithOpts(name, string(src), ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1})
		if err != nil {
			return err
		}
		modules[name], sources[name] = m, src
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return modules, sources
}

func readSchema(t testing.TB, name string) any {
	t.Helper()
	data, err := fs.ReadFile(rego.FS(), "schema/"+name+".json")
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func schemaCompiler(t testing.TB) *ast.Compiler {
	t.Helper()
	set := ast.NewSchemaSet()
	for _, name := range []string{"authz", "approval", "dispatch", "directive"} {
		set.Put(ast.MustParseRef("schema."+name), readSchema(t, name))
	}
	return ast.NewCompiler().WithCapabilities(capabilities()).WithStrict(true).
		WithSchemas(set).WithUseTypeCheckAnnotations(true)
}

func TestPoliciesFormatted(t *testing.T) {
	_, sources := policyModules(t, true)
	for name, src := range sources {
		want, err := format.SourceWithOpts(name, src, format.Opts{RegoVersion: ast.RegoV1})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(src)); diff != "" {
			t.Errorf("%s is not formatted (-want +got):\n%s", name, diff)
		}
		if lines := strings.Count(string(src), "\n"); lines > 150 && !strings.HasSuffix(name, "_test.rego") {
			t.Errorf("%s has %d lines, limit 150", name, lines)
		}
	}
}

func TestPoliciesCheckWithSchema(t *testing.T) {
	modules, _ := policyModules(t, false)
	c := schemaCompiler(t)
	if c.Compile(modules); c.Failed() {
		t.Fatal(c.Errors)
	}
	// Control: a misspelled field must be found.
	for _, name := range []string{"authz", "approval", "dispatch", "directive"} {
		src := "# METADATA\n# schemas:\n#   - input: schema." + name + "\npackage sealed." + name + "_typo\n\nx if input.tenent == \"a\"\n"
		m, err := ast.ParseModuleWithOpts("typo.rego", src, ast.ParserOptions{ProcessAnnotation: true})
		if err != nil {
			t.Fatal(err)
		}
		c := schemaCompiler(t)
		if c.Compile(map[string]*ast.Module{"typo.rego": m}); !c.Failed() {
			t.Errorf("schema %s does not find a misspelled field", name)
		}
	}
}

func TestPolicyTestsAndCoverage(t *testing.T) {
	modules, _ := policyModules(t, true)
	shipped, _ := policyModules(t, false)
	runPolicyTests(t, modules, shipped, 60)
}

// runPolicyTests runs at least so many Rego tests and wants them to cover all
// of shipped.
func runPolicyTests(t *testing.T, modules, shipped map[string]*ast.Module, least int) {
	t.Helper()
	tracer := cover.New()
	store := inmem.New()
	ctx := context.Background()
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Abort(ctx, txn)
	results, err := tester.NewRunner().SetStore(store).SetModules(modules).SetCoverageQueryTracer(tracer).RaiseBuiltinErrors(true).RunTests(ctx, txn)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for r := range results {
		n++
		if !r.Pass() {
			t.Errorf("%s.%s: fail=%v error=%v", r.Package, r.Name, r.Fail, r.Error)
		}
	}
	if n < least {
		t.Errorf("ran %d policy tests, want at least %d", n, least)
	}
	report := tracer.Report(shipped)
	for name := range shipped {
		f, ok := report.Files[name]
		if !ok || len(f.NotCovered) > 0 || f.Coverage < 100 {
			t.Errorf("%s: reported %v, coverage %.1f %%, not covered: %+v", name, ok, f.Coverage, f.NotCovered)
			continue
		}
		t.Logf("%s: coverage %.1f %%", name, f.Coverage)
	}
	t.Logf("%d policy tests", n)
}

// Every document an engine can send must fit the schema, and the schema must
// name no field that the Go type lacks.
func TestSchemasMatchGoTypes(t *testing.T) {
	inputs := map[string]any{"authz": fullInput(), "approval": fullApprovalInput(t)}
	for name, in := range inputs {
		data, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(data, &v); err != nil {
			t.Fatal(err)
		}
		sameFields(t, name, readSchema(t, name).(map[string]any), v)
	}
}

func sameFields(t *testing.T, at string, schema map[string]any, v any) {
	t.Helper()
	if alt, ok := schema["anyOf"].([]any); ok {
		schema = alt[0].(map[string]any)
	}
	switch x := v.(type) {
	case map[string]any:
		props, ok := schema["properties"].(map[string]any)
		if !ok {
			return // a free map
		}
		for k := range props {
			if _, ok := x[k]; !ok {
				t.Errorf("%s.%s is in the schema only", at, k)
			}
		}
		for k, child := range x {
			s, ok := props[k].(map[string]any)
			if !ok {
				t.Errorf("%s.%s is in the Go type only", at, k)
				continue
			}
			sameFields(t, path.Join(at, k), s, child)
		}
	case []any:
		for _, child := range x {
			sameFields(t, at+"[]", schema["items"].(map[string]any), child)
		}
	case string:
		if schema["type"] != "string" {
			t.Errorf("%s: schema says %v, Go sends a string", at, schema["type"])
		}
	case bool:
		if schema["type"] != "boolean" {
			t.Errorf("%s: schema says %v, Go sends a boolean", at, schema["type"])
		}
	case float64:
		if schema["type"] != "integer" {
			t.Errorf("%s: schema says %v, Go sends a number", at, schema["type"])
		}
	default:
		t.Errorf("%s: the full input holds %T", at, v)
	}
}

// The two questions each have one entry point with METADATA, and every denial
// has a title and a test that names its code.
func TestPolicyMetadata(t *testing.T) {
	modules, sources := policyModules(t, false)
	all := ""
	_, withTests := policyModules(t, true)
	for name, src := range withTests {
		if strings.HasSuffix(name, "_test.rego") {
			all += string(src)
		}
	}
	entry := map[string]int{}
	for name, m := range modules {
		for _, a := range m.Annotations {
			if a.Entrypoint {
				entry[strings.TrimPrefix(a.GetTargetPath().String(), "data.")]++
			}
		}
		for _, line := range strings.Split(string(sources[name]), "\n") {
			if rest, ok := strings.CutPrefix(line, "_denials contains _reason(\""); ok {
				code, _, _ := strings.Cut(rest, "\"")
				if !strings.Contains(all, "\""+code+"\"") {
					t.Errorf("%s: no test for %s", name, code)
				}
			}
		}
	}
	want := map[string]int{sealed.QuestionAuthz: 1, sealed.QuestionApproval: 1, QuestionDispatch: 1, QuestionDirective: 1}
	if diff := cmp.Diff(want, entry); diff != "" {
		t.Errorf("entry points (-want +got):\n%s", diff)
	}
}
