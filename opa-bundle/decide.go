package opabundle

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"

	"sealed.dev/sealed/internal/sealed"
)

// Decide answers a question (sealed.QuestionAuthz or sealed.QuestionApproval)
// about an input at a time. It never fails: every failure is a denial with one
// of the fixed reasons.
//
//	no bundle                              sealed.ReasonNoBundle
//	at is not before Expires               sealed.ReasonExpired
//	unknown question, undefined answer     sealed.ReasonUndefined
//	input not encodable or over its limit,
//	conflict, error in a built-in function sealed.ReasonError
//	over the limit, or ctx is done         sealed.ReasonTimeout
//	an answer of any other shape           sealed.ReasonShape
//
// The messages are constant, because OPA's own can quote the input.
//
// The input is a sealed.Input, a sealed.ApprovalInput, a pointer to one, or
// anything that encoding/json encodes.
func (b *Bundle) Decide(ctx context.Context, question string, input any, at time.Time) sealed.Decision {
	if b == nil {
		return sealed.Deny(sealed.ReasonNoBundle, "no policy bundle is loaded")
	}
	if !at.Before(b.expires) {
		return sealed.Deny(sealed.ReasonExpired, "the policy bundle has expired")
	}
	query, ok := b.queries[question]
	if !ok {
		return sealed.Deny(sealed.ReasonUndefined, "the policy bundle does not answer this question")
	}
	value, err := inputValue(input, b.limits.Input)
	if err != nil || at.IsZero() {
		return sealed.Deny(sealed.ReasonError, "the input cannot be given to the policy")
	}
	ctx, cancel := context.WithTimeout(ctx, b.limits.Eval)
	defer cancel()
	results, err := query.Eval(ctx, rego.EvalParsedInput(value), rego.EvalTime(at), rego.EvalMetrics(metrics.NoOp()))
	switch {
	case ctx.Err() != nil: // also when an answer came too late
		return sealed.Deny(sealed.ReasonTimeout, "the policy did not answer in time")
	case err != nil:
		return sealed.Deny(sealed.ReasonError, "the policy failed")
	case len(results) == 0:
		return sealed.Deny(sealed.ReasonUndefined, "the policy does not answer for this input")
	}
	d, err := decision(results)
	if err != nil {
		return sealed.Deny(sealed.ReasonShape, "the policy's answer is not a decision")
	}
	return d
}

// decision accepts exactly one result of exactly the documented shape.
func decision(results rego.ResultSet) (sealed.Decision, error) {
	if len(results) != 1 || len(results[0].Expressions) != 1 {
		return sealed.Decision{}, fmt.Errorf("%d results", len(results))
	}
	data, err := json.Marshal(results[0].Expressions[0].Value)
	if err != nil {
		return sealed.Decision{}, fmt.Errorf("encoding answer: %w", err)
	}
	return sealed.ParseDecision(data)
}
