package opabundle

import (
	"context"
	"errors"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// Decide answers a question (sealed.QuestionAuthz, sealed.QuestionApproval,
// QuestionDispatch or QuestionDirective) about an input at a time. It never fails: every failure is a denial with one
// of the fixed reasons.
//
//	no bundle                              sealed.ReasonNoBundle
//	at is not before Expires               sealed.ReasonExpired
//	unknown question, undefined answer     sealed.ReasonUndefined
//	input not encodable or over its limit,
//	conflict, error in a built-in function sealed.ReasonError
//	over the limit, or ctx is done         sealed.ReasonTimeout
//	an answer of any other shape, too
//	large for the log, or with a code that
//	is no word of the bundle               sealed.ReasonShape
//
// The messages are constant, because OPA's own can quote the input.
//
// The input is a sealed.Input, a sealed.ApprovalInput, a pointer to one, or
// anything that encoding/json encodes.
func (b *Bundle) Decide(ctx context.Context, question string, input any, at time.Time) sealed.Decision {
	query, no := b.query(question, at)
	if no != nil {
		return *no
	}
	value, err := inputValue(input, query.reads, b.limits.Input)
	if err != nil {
		return badInput()
	}
	return b.answer(ctx, query, value, at)
}

// query returns the compiled question, or the denial that stands for it.
func (b *Bundle) query(question string, at time.Time) (*query, *sealed.Decision) {
	deny := func(code, msg string) (*query, *sealed.Decision) {
		d := sealed.Deny(code, msg)
		return nil, &d
	}
	if b == nil {
		return deny(sealed.ReasonNoBundle, "no policy bundle is loaded")
	}
	if !at.Before(b.expires) {
		return deny(sealed.ReasonExpired, "the policy bundle has expired")
	}
	query, ok := b.queries[question]
	if !ok {
		return deny(sealed.ReasonUndefined, "the policy bundle does not answer this question")
	}
	if at.IsZero() {
		no := badInput()
		return nil, &no
	}
	return query, nil
}

func badInput() sealed.Decision {
	return sealed.Deny(sealed.ReasonError, "the input cannot be given to the policy")
}

func badAnswer() sealed.Decision {
	return sealed.Deny(sealed.ReasonShape, "the policy's answer is not a decision")
}

// answer asks once.
func (b *Bundle) answer(ctx context.Context, q *query, input ast.Value, at time.Time) sealed.Decision {
	value, err := q.eval(ctx, input, at, b.limits.Eval)
	switch {
	case errors.Is(err, errTimeout):
		return sealed.Deny(sealed.ReasonTimeout, "the policy did not answer in time")
	case err != nil:
		return sealed.Deny(sealed.ReasonError, "the policy failed")
	case value == nil:
		return sealed.Deny(sealed.ReasonUndefined, "the policy does not answer for this input")
	}
	d, err := q.decision(value)
	if err != nil {
		return badAnswer()
	}
	return d
}
