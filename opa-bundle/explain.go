package opabundle

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"

	"sealed.dev/sealed/internal/sealed"
)

// An Explanation says why a policy answered as it did, rule by rule.
type Explanation struct {
	Decision sealed.Decision  `json:"decision"`
	Labels   []map[string]any `json:"rule_labels"` // METADATA labels of the rules that were evaluated, as OPA logs them
	Rules    []RuleTrace      `json:"rules"`       // by file and line
}

// A RuleTrace is one rule that was evaluated. Functions are left out.
type RuleTrace struct {
	Rule  string `json:"rule"` // such as sealed.authz._denials
	Title string `json:"title,omitempty"`
	File  string `json:"file"`
	Line  int    `json:"line"`
	Held  bool   `json:"held"`
	// Stopped is the expression that was not so, of a rule that did not hold.
	Stopped string `json:"stopped,omitempty"`
	// Facts are what the rule's own body reads of the input, by path.
	Facts []Fact `json:"facts"`
}

// A Fact is one value of the input. Value is null where the input has none.
type Fact struct {
	Path  string          `json:"path"`
	Value json.RawMessage `json:"value"`
}

// Explain answers like Decide, and says how the answer came about. Where
// Decide denies without asking the policy (expiry, no such question, bad
// input), there are no rules.
//
// It evaluates without OPA's index and without early exit, so that rules which
// could not have changed the answer are shown as well. Should that give another
// answer than Decide, it evaluates as Decide does. ctx and Limits.Eval bound it.
func (i *Inspection) Explain(ctx context.Context, question string, input any, at time.Time) (Explanation, error) {
	out := Explanation{Decision: i.b.Decide(ctx, question, input, at), Labels: []map[string]any{}, Rules: []RuleTrace{}}
	q, no := i.b.query(question, at)
	if no != nil {
		return out, nil
	}
	doc, err := inputValue(input, allFields, i.b.limits.Input)
	if err != nil {
		return out, nil
	}
	for _, optimized := range []bool{false, true} {
		t := &tracer{titles: i.compiler.GetAnnotationSet(), rules: map[*ast.Rule]*RuleTrace{}, running: map[uint64]*ast.Rule{}, at: map[*ast.Rule]int{}}
		labels := (&topdown.EvaluatedRuleTracker{}).WithAnnotationSet(i.compiler.GetAnnotationSet())
		d, err := i.traced(ctx, q, doc, at, optimized, t, labels)
		if err != nil && optimized && ctx.Err() != nil {
			return out, fmt.Errorf("explaining decision: %w", ctx.Err())
		}
		if optimized || err == nil && reflect.DeepEqual(d, out.Decision) {
			out.Rules, out.Labels = t.sorted(doc), append(out.Labels, labels.Labels...)
			break
		}
	}
	return out, nil
}

// traced evaluates the question once more, under the tracer. The query is
// compiled anew: the rules of i.compiler carry the METADATA.
func (i *Inspection) traced(ctx context.Context, like *query, doc ast.Value, at time.Time, optimized bool, t *tracer, labels *topdown.EvaluatedRuleTracker) (sealed.Decision, error) {
	rewriter := i.compiler.QueryCompiler()
	body, err := rewriter.Compile(like.question())
	if err != nil {
		return sealed.Decision{}, err
	}
	txn, err := i.store.NewTransaction(ctx)
	if err != nil {
		return sealed.Decision{}, err
	}
	defer i.store.Abort(ctx, txn)
	cancel := topdown.NewCancel()
	defer time.AfterFunc(i.b.limits.Eval, cancel.Cancel).Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	var answer ast.Value
	err = topdown.NewQuery(body).WithCompiler(i.compiler).WithQueryCompiler(rewriter).WithStore(i.store).WithTransaction(txn).
		WithInput(ast.NewTerm(doc)).WithTime(at).WithCancel(cancel).WithMetrics(metrics.NoOp()).WithStrictBuiltinErrors(true).
		WithIndexing(optimized).WithEarlyExit(optimized).WithQueryTracer(t).WithEvaluatedRuleTracker(labels).
		Iter(ctx, func(r topdown.QueryResult) error {
			if term := r[answerVar]; term != nil {
				answer = term.Value
			}
			return nil
		})
	if err != nil || answer == nil {
		return sealed.Decision{}, errors.Join(err, errNotDecision)
	}
	return like.decision(answer)
}

// question is the body that asks for the document of q.
func (q *query) question() ast.Body {
	return ast.NewBody(ast.Equality.Expr(ast.NewTerm(answerVar), ast.NewTerm(q.ref)))
}

// A tracer keeps, for each rule, whether it held and else where it stopped.
type tracer struct {
	titles  *ast.AnnotationSet
	rules   map[*ast.Rule]*RuleTrace
	running map[uint64]*ast.Rule // by query
	at      map[*ast.Rule]int    // the farthest expression that failed
}

// Enabled, Config and TraceEvent implement topdown.QueryTracer.
func (t *tracer) Enabled() bool { return true }

// Config asks for no variables: facts are taken from the input.
func (t *tracer) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent notes one step of the evaluation.
func (t *tracer) TraceEvent(e topdown.Event) {
	if rule, ok := e.Node.(*ast.Rule); ok {
		if len(rule.Head.Args) > 0 {
			return
		}
		t.running[e.QueryID] = rule
		if t.rules[rule] == nil {
			t.rules[rule], t.at[rule] = t.newTrace(rule), -1
		}
		if e.Op == topdown.ExitOp {
			t.rules[rule].Held, t.rules[rule].Stopped = true, ""
		}
		return
	}
	expr, ok := e.Node.(*ast.Expr)
	rule := t.running[e.QueryID]
	if !ok || e.Op != topdown.FailOp || rule == nil || t.rules[rule].Held || expr.Index < t.at[rule] {
		return
	}
	t.at[rule], t.rules[rule].Stopped = expr.Index, textOf(expr)
}

func textOf(expr *ast.Expr) string {
	if expr.Location != nil && len(expr.Location.Text) > 0 {
		return strings.Join(strings.Fields(string(expr.Location.Text)), " ")
	}
	return expr.String()
}

// newTrace names the rule. Its title is its own or that of its document.
func (t *tracer) newTrace(rule *ast.Rule) *RuleTrace {
	ref := rule.Ref().GroundPrefix()
	out := &RuleTrace{Rule: strings.TrimPrefix(ref.String(), "data."), Facts: []Fact{}}
	if rule.Location != nil {
		out.File, out.Line = rule.Location.File, rule.Location.Row
	}
	for _, a := range append(slices.Clone(rule.Annotations), t.titles.GetDocumentScope(ref)) {
		if a != nil && out.Title == "" {
			out.Title = a.Title
		}
	}
	return out
}

// sorted returns the traces with the facts that each rule reads of doc.
func (t *tracer) sorted(doc ast.Value) []RuleTrace {
	out := []RuleTrace{}
	for rule, trace := range t.rules {
		trace.Facts = factsOf(rule, doc)
		out = append(out, *trace)
	}
	slices.SortFunc(out, func(a, b RuleTrace) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), strings.Compare(a.Rule, b.Rule))
	})
	return out
}

// factsOf finds the references below input in head and body of a rule; those
// that go on with a variable name the whole that the variable is looked for in.
func factsOf(rule *ast.Rule, doc ast.Value) []Fact {
	seen := map[string]Fact{}
	look := func(x *ast.Term) bool {
		ref, ok := x.Value.(ast.Ref)
		if !ok || !ref.HasPrefix(ast.InputRootRef) {
			return false
		}
		path := ast.Ref{ref[0]}
		for _, term := range ref[1:] {
			if _, ok := term.Value.(ast.String); !ok {
				break
			}
			path = append(path, term)
		}
		if name := path.String(); seen[name].Path == "" {
			seen[name] = Fact{Path: name, Value: valueAt(doc, path[1:])}
		}
		return false
	}
	ast.WalkTerms(rule.Head, look)
	ast.WalkTerms(rule.Body, look)
	out := []Fact{}
	for _, f := range seen {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Fact) int { return strings.Compare(a.Path, b.Path) })
	return out
}

func valueAt(doc ast.Value, path ast.Ref) json.RawMessage {
	none := json.RawMessage("null")
	v, err := doc.Find(path)
	if err != nil {
		return none
	}
	plain, err := ast.JSON(v)
	if err != nil {
		return none
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if enc.Encode(plain) != nil {
		return none
	}
	return bytes.TrimSpace(out.Bytes())
}
