package opabundle

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
)

// A TestReport is what the tests of a policy say. Coverage is of the policies,
// not of their tests, in percent of the lines that can be evaluated.
type TestReport struct {
	Tests    []TestResult   `json:"tests"` // by name
	Failed   int            `json:"failed"`
	Files    []FileCoverage `json:"files"` // by name
	Coverage float64        `json:"coverage"`
}

// A TestResult is one test. Problem is empty when it passed.
type TestResult struct {
	Name     string        `json:"name"`
	File     string        `json:"file"`
	Line     int           `json:"line"`
	Problem  string        `json:"problem,omitempty"`
	Duration time.Duration `json:"duration_ns"`
}

// FileCoverage is the part of one policy that the tests have evaluated.
type FileCoverage struct {
	File     string  `json:"file"`
	Coverage float64 `json:"coverage"`
	Missed   []int   `json:"missed,omitempty"` // lines
}

// Test runs the tests in fsys (rules test_… of *_test.rego) with OPA's own
// tester. An error wraps ErrMalformed when the policies don't compile.
//
// Tests may call more than policies may, but neither the network nor the
// environment of the process: they are files from elsewhere, too.
func Test(ctx context.Context, fsys fs.FS) (TestReport, error) {
	fail := func(err error) (TestReport, error) { return TestReport{}, fmt.Errorf("testing policies: %w", err) }
	modules, problems, err := sources(fsys, true)
	if err != nil {
		return fail(err)
	}
	if len(problems) > 0 {
		return fail(fmt.Errorf("%w: %s", ErrMalformed, problems[0]))
	}
	store, err := dataStore(fsys)
	if err != nil {
		return fail(err)
	}
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return fail(err)
	}
	defer store.Abort(ctx, txn)
	tracer := cover.New()
	results, err := tester.NewRunner().SetStore(store).SetModules(modules).SetParallel(1).
		SetCompiler(ast.NewCompiler().WithCapabilities(testCapabilities())).
		SetCoverageQueryTracer(tracer).RaiseBuiltinErrors(true).RunTests(ctx, txn)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", ErrMalformed, err))
	}
	report := TestReport{Tests: []TestResult{}, Files: []FileCoverage{}}
	for r := range results {
		report.add(r)
	}
	slices.SortFunc(report.Tests, func(a, b TestResult) int { return strings.Compare(a.Name, b.Name) })
	maps.DeleteFunc(modules, func(name string, _ *ast.Module) bool { return strings.HasSuffix(name, "_test.rego") })
	report.cover(tracer.Report(modules), modules)
	return report, ctx.Err()
}

func (t *TestReport) add(r *tester.Result) {
	if r.Skip {
		return
	}
	res := TestResult{Name: strings.TrimPrefix(r.Package, "data.") + "." + r.Name, Duration: r.Duration}
	if r.Location != nil {
		res.File, res.Line = r.Location.File, r.Location.Row
	}
	switch {
	case r.Error != nil:
		res.Problem = r.Error.Error()
	case r.FailedAt != nil && r.FailedAt.Location != nil:
		res.Problem = fmt.Sprintf("not so at line %d: %s", r.FailedAt.Location.Row, firstLine(string(r.FailedAt.Location.Text)))
	case !r.Pass():
		res.Problem = "not so"
	}
	if res.Problem != "" {
		t.Failed++
	}
	t.Tests = append(t.Tests, res)
}

func (t *TestReport) cover(r cover.Report, policies map[string]*ast.Module) {
	var covered, missed int
	for _, name := range slices.Sorted(maps.Keys(policies)) {
		f := FileCoverage{File: name}
		if fr := r.Files[name]; fr != nil {
			f.Coverage = fr.Coverage
			covered, missed = covered+lines(fr.Covered, nil), missed+lines(fr.NotCovered, &f.Missed)
		}
		t.Files = append(t.Files, f)
	}
	if covered+missed > 0 {
		t.Coverage = 100 * float64(covered) / float64(covered+missed)
	}
}

// lines counts the lines of ranges, and lists them if list is given.
func lines(ranges []cover.Range, list *[]int) (n int) {
	for _, r := range ranges {
		for row := r.Start.Row; row <= r.End.Row; row++ {
			if n++; list != nil {
				*list = append(*list, row)
			}
		}
	}
	return n
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// dataStore holds the data of the bundle that Build would make of fsys.
func dataStore(fsys fs.FS) (storage.Store, error) {
	files, err := collect(fsys)
	if err != nil {
		return nil, err
	}
	doc, err := Manifest{Sequence: 1, Expires: time.Unix(1<<32, 0)}.marshal()
	if err != nil {
		return nil, err
	}
	b, err := parse(append(files, file{name: manifestName, data: doc}), nil)
	if err != nil {
		return nil, err
	}
	return inmem.NewFromObjectWithOpts(b.Data, inmem.OptRoundTripOnWrite(false)), nil
}

// testCapabilities are those of OPA without the ways out of the process.
func testCapabilities() *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion()
	caps.Builtins = slices.DeleteFunc(slices.Clone(caps.Builtins), func(b *ast.Builtin) bool {
		return slices.Contains([]string{"http.send", "net.lookup_ip_addr", "opa.runtime"}, b.Name)
	})
	caps.AllowNet = []string{}
	return caps
}
