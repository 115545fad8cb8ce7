package opabundle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// A query is one compiled question. It calls OPA's evaluator itself: package
// rego would make a goroutine for each evaluation and a JSON value of each
// answer. It is immutable and safe for concurrent use.
type query struct {
	compiler *ast.Compiler
	store    storage.Store
	rewriter ast.QueryCompiler
	ref      ast.Ref // data.<question>
	body     ast.Body
	reads    fieldSet // of the input, by any rule that the question can reach
	words    words    // of the bundle
	complete bool     // the answer is one complete rule; see eval
}

var (
	errTimeout = errors.New("the policy did not answer in time")
	errFault   = errors.New("the evaluator failed")
)

const answerVar = ast.Var("answer")

// newQuery compiles the question for the document at ref, or returns an error
// that wraps ErrMalformed when no rule makes that document. No query is ever
// made from input (CVE-2025-46569).
func newQuery(compiler *ast.Compiler, store storage.Store, known words, ref ast.Ref) (*query, error) {
	if len(compiler.GetRulesExact(ref)) == 0 {
		return nil, fmt.Errorf("%w: no rule %s", ErrMalformed, ref[1:])
	}
	q := &query{compiler: compiler, store: store, rewriter: compiler.QueryCompiler(), ref: ref, reads: inputReads(compiler, ref), words: known}
	body, err := q.rewriter.Compile(q.question())
	if err != nil {
		return nil, fmt.Errorf("%w: preparing %s: %w", ErrMalformed, ref[1:], err)
	}
	q.body = body
	if q.complete = completeRule(compiler, ref); q.complete {
		q.body = append(q.body, ast.Equality.Expr(ast.NumberTerm("0"), ast.NumberTerm("1")))
		q.body[1].Index = 1
	}
	return q, nil
}

// completeRule reports whether the document at ref is made by complete rules
// alone, none of which adds to a part of it.
func completeRule(compiler *ast.Compiler, ref ast.Ref) bool {
	rules := compiler.GetRulesWithPrefix(ref)
	return len(rules) == len(compiler.GetRulesExact(ref)) && !slices.ContainsFunc(rules, func(r *ast.Rule) bool {
		return r.Head.RuleKind() != ast.SingleValue || len(r.Head.Args) > 0 || !r.Head.Reference.IsGround()
	})
}

// eval returns what the document is for this input, or nil if it is undefined.
// Over the limit, or when ctx is done, it stops before the next expression and
// returns errTimeout, also when an answer came too late.
//
// The evaluator would copy the answer to hand it out, and has copied it already
// to remember what the rule has come to. So the body of a complete rule ends
// with an equality that never holds, and the answer is the one remembered. Were
// it not, the answer would be undefined, which denies.
func (q *query) eval(ctx context.Context, input ast.Value, at time.Time, limit time.Duration) (answer ast.Value, err error) {
	// A fault of the evaluator itself costs one decision, not the process.
	defer func() {
		if recover() != nil {
			answer, err = nil, errFault
		}
	}()
	txn, err := q.store.NewTransaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading policy data: %w", err)
	}
	defer q.store.Abort(ctx, txn)
	cancel := topdown.NewCancel()
	defer time.AfterFunc(limit, cancel.Cancel).Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	known := &documents{few: make([]document, 0, maxFew/2)}
	err = topdown.NewQuery(q.body).
		WithCompiler(q.compiler).
		WithQueryCompiler(q.rewriter).
		WithStore(q.store).
		WithTransaction(txn).
		WithInput(ast.NewTerm(input)).
		WithVirtualCache(known).
		WithTime(at).
		WithCancel(cancel).
		WithMetrics(metrics.NoOp()).
		WithStrictBuiltinErrors(true). // an error inside "not" must not read as true (E03)
		Iter(ctx, func(r topdown.QueryResult) error {
			term := r[answerVar]
			if term == nil || answer != nil {
				return errors.New("not one answer")
			}
			answer = term.Value
			return nil
		})
	if cancel.Cancelled() || ctx.Err() != nil {
		return nil, errTimeout
	}
	if err != nil {
		return nil, fmt.Errorf("evaluating policy: %w", err)
	}
	if q.complete {
		if term, _ := known.Get(q.ref); term != nil {
			answer = term.Value
		}
	}
	return answer, nil
}
