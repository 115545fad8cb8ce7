package opabundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/format"

	"sealed.dev/sealed/internal/sealed"
)

// A Problem is one thing that is wrong with the source of a policy. File and
// Line are empty when no place is to blame.
type Problem struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Message string `json:"message"`
}

func (p Problem) String() string {
	if p.File == "" {
		return p.Message
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Message)
}

// Format returns the source of one policy as opa fmt writes it. What does not
// parse is an error that wraps ErrMalformed.
func Format(name string, src []byte) ([]byte, error) {
	out, err := format.SourceWithOpts(name, src, format.Opts{RegoVersion: ast.RegoV1})
	if err != nil {
		return nil, fmt.Errorf("formatting %s: %w: %w", name, ErrMalformed, err)
	}
	return out, nil
}

// Check reports what is wrong with the policies in fsys, beyond what Build
// refuses: a field of the input that does not exist or is of another type, by
// the JSON Schemas in schemas (authz.json, approval.json, dispatch.json and
// directive.json, in its root), and an answer to a question without METADATA.
// Nothing wrong is no problems and no error; an error means that fsys could
// not be read.
//
// A package is checked against the schema that its METADATA names
// ("schemas: - input: schema.authz"); one of the four packages that names none
// is a problem.
func Check(ctx context.Context, fsys, schemas fs.FS) ([]Problem, error) {
	modules, problems, err := sources(fsys, false)
	if err != nil || len(problems) > 0 {
		return problems, err
	}
	if _, tests, err := sources(fsys, true); err != nil || len(tests) > 0 {
		return tests, err
	}
	set, err := schemaSet(schemas)
	if err != nil {
		return nil, err
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilities()).WithStrict(true).
		WithSchemas(set).WithUseTypeCheckAnnotations(true)
	if compiler.Compile(modules); compiler.Failed() {
		problems = problemsOf(compiler.Errors)
		if name := forbiddenBuiltin(modules); name != "" {
			problems = append(problems, Problem{Message: name + " is not on the list of built-in functions that a policy may call"})
		}
		return problems, nil
	}
	problems = undescribed(compiler)
	trial := Manifest{Sequence: 1, Expires: time.Unix(1<<32, 0)}
	if _, err := Build(ctx, fsys, trial); errors.Is(err, ErrMalformed) || errors.Is(err, ErrCapability) {
		problems = append(problems, Problem{Message: err.Error()})
	} else if err != nil {
		return nil, err
	}
	return problems, nil
}

// undescribed reports questions whose answer has no METADATA, and packages of
// questions whose input is not checked against a schema.
func undescribed(compiler *ast.Compiler) []Problem {
	var out []Problem
	set := compiler.GetAnnotationSet()
	for _, question := range questions() {
		ref := ast.MustParseRef("data." + question)
		rules := compiler.GetRulesExact(ref)
		if len(rules) == 0 {
			continue
		}
		described := slices.ContainsFunc(rules, func(r *ast.Rule) bool {
			return slices.ContainsFunc(r.Annotations, func(a *ast.Annotations) bool { return a.Title != "" && a.Entrypoint })
		})
		at := rules[0].Location
		if !described {
			out = append(out, Problem{File: at.File, Line: at.Row, Message: question + " wants METADATA with a title and entrypoint: true"})
		}
		pkg := set.GetPackageScope(rules[0].Module.Package)
		if pkg == nil || len(pkg.Schemas) == 0 {
			name := strings.Split(question, ".")[1]
			out = append(out, Problem{File: at.File, Line: at.Row, Message: "package sealed." + name + " wants METADATA with schemas: - input: schema." + name})
		}
	}
	return out
}

// questions are the documents that a bundle may have; the first two it must.
func questions() []string {
	return []string{sealed.QuestionAuthz, sealed.QuestionApproval, QuestionDispatch, QuestionDirective}
}

func schemaSet(fsys fs.FS) (*ast.SchemaSet, error) {
	set := ast.NewSchemaSet()
	for _, name := range []string{"authz", "approval", "dispatch", "directive"} {
		data, err := fs.ReadFile(fsys, name+".json")
		if err != nil {
			return nil, fmt.Errorf("reading schema: %w", err)
		}
		var schema any
		if err := json.Unmarshal(data, &schema); err != nil {
			return nil, fmt.Errorf("reading schema %s: %w", name, err)
		}
		set.Put(ast.MustParseRef("schema."+name), schema)
	}
	return set, nil
}

// sources parses the policies below fsys, with or without their tests. What
// does not parse is a problem, not an error.
func sources(fsys fs.FS, tests bool) (map[string]*ast.Module, []Problem, error) {
	modules := map[string]*ast.Module{}
	var problems []Problem
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(name) != regoSuffix || !tests && strings.HasSuffix(name, "_test.rego") {
			return err
		}
		src, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		m, err := ast.ParseModuleWithOpts(name, string(src), ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1})
		var bad ast.Errors
		switch {
		case errors.As(err, &bad):
			problems = append(problems, problemsOf(bad)...)
		case err != nil:
			problems = append(problems, Problem{File: name, Message: err.Error()})
		case m == nil:
			problems = append(problems, Problem{File: name, Message: "the file is empty"})
		default:
			modules[name] = m
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading policies: %w", err)
	}
	return modules, problems, nil
}

func problemsOf(errs ast.Errors) []Problem {
	var out []Problem
	for _, e := range errs {
		p := Problem{Message: e.Code + ": " + e.Message}
		if e.Location != nil {
			p.File, p.Line = e.Location.File, e.Location.Row
		}
		if e.Details != nil {
			p.Message += " (" + strings.Join(e.Details.Lines(), "; ") + ")"
		}
		out = append(out, p)
	}
	return out
}
