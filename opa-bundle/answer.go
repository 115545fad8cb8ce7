package opabundle

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// maxAnswer bounds one answer in bytes of JSON as the log writes it, each
// element and each name counting 8 more. It is logged with what came of it: one
// answer of this size, or the codes of two, fits in an entry (audit.MaxBody).
const maxAnswer = 16 << 10

// decision reads a decision from OPA's own value, member by member. It accepts
// what sealed.ParseDecision accepts of the same value written as JSON, and
// nothing else; a test compares the two. That saves the JSON.
//
// As in JSON, null stands for "not given", and a set is a list in its order.
func decision(v ast.Value) (sealed.Decision, error) {
	a := answer{left: maxAnswer}
	var d sealed.Decision
	err := a.members(v, func(name string, v ast.Value) error {
		switch name {
		case "effect":
			return text(&a, v, &d.Effect)
		case "reasons":
			return items(&a, v, &d.Reasons, a.reason)
		case "obligations":
			return a.obligations(v, &d.Obligations)
		}
		return errUnknownMember
	})
	if err == nil {
		err = check(d)
	}
	if err != nil {
		return sealed.Decision{}, fmt.Errorf("reading answer: %w", err)
	}
	return d, nil
}

// The ways not to be a decision. They name no value: it can quote the input.
var (
	errUnknownMember = errors.New("unknown member")
	errWrongType     = errors.New("member of another type")
	errTooLarge      = errors.New("over the limit")
	errNotDecision   = errors.New("not a decision")
)

// check holds a decision of the right shape to the rules that shape cannot
// express. They are those of sealed.ParseDecision.
func check(d sealed.Decision) error {
	o := d.Obligations
	switch {
	case d.Effect != sealed.EffectDeny && d.Effect != sealed.EffectRequireApproval && d.Effect != sealed.EffectAllow,
		o.TTL < 0, o.Approvals.TTL < 0, o.Approvals.Quorum < 0,
		o.Delivery != "" && !o.Delivery.Stronger(o.Delivery), // an unknown delivery is as strong as none
		o.Egress != "" && o.Egress != "bound",
		!o.Review.Valid(),
		d.Effect == sealed.EffectRequireApproval && (o.Approvals.Quorum < 1 || len(o.Approvals.Groups) == 0),
		d.Effect != sealed.EffectAllow && len(d.Reasons) == 0:
		return errNotDecision
	}
	return nil
}

// An answer is what may still be read of one answer.
type answer struct{ left int }

func (a *answer) take(n int) error {
	if a.left -= n + 8; a.left < 0 {
		return errTooLarge
	}
	return nil
}

// members calls f for every member of an object. A name that is not text is
// an unknown member.
func (a *answer) members(v ast.Value, f func(name string, v ast.Value) error) error {
	if _, null := v.(ast.Null); null {
		return nil
	}
	o, ok := v.(ast.Object)
	if !ok {
		return errWrongType
	}
	return o.Iter(func(k, v *ast.Term) error {
		name, ok := k.Value.(ast.String)
		if !ok {
			return errUnknownMember
		}
		if err := a.take(len(name)); err != nil {
			return err
		}
		return f(string(name), v.Value)
	})
}

func (a *answer) reason(v ast.Value, r *sealed.Reason) error {
	return a.members(v, func(name string, v ast.Value) error {
		switch name {
		case "code":
			return text(a, v, &r.Code)
		case "msg":
			return text(a, v, &r.Msg)
		}
		return errUnknownMember
	})
}

func (a *answer) obligations(v ast.Value, o *sealed.Obligations) error {
	return a.members(v, func(name string, v ast.Value) error {
		switch name {
		case "ttl":
			return number(v, &o.TTL)
		case "delivery":
			return text(a, v, &o.Delivery)
		case "approvals":
			return a.approvals(v, &o.Approvals)
		case "egress":
			return text(a, v, &o.Egress)
		case "review":
			return a.review(v, &o.Review)
		}
		return errUnknownMember
	})
}

func (a *answer) approvals(v ast.Value, o *sealed.ApprovalObligations) error {
	return a.members(v, func(name string, v ast.Value) error {
		switch name {
		case "quorum":
			return number(v, &o.Quorum)
		case "groups":
			return items(a, v, &o.Groups, a.name)
		case "ttl":
			return number(v, &o.TTL)
		}
		return errUnknownMember
	})
}

func (a *answer) review(v ast.Value, o *sealed.ReviewObligation) error {
	return a.members(v, func(name string, v ast.Value) error {
		switch name {
		case "within":
			return number(v, &o.Within)
		case "groups":
			return items(a, v, &o.Groups, a.name)
		}
		return errUnknownMember
	})
}

func (a *answer) name(v ast.Value, s *string) error { return text(a, v, s) }

func text[S ~string](a *answer, v ast.Value, to *S) error {
	switch s := v.(type) {
	case ast.Null:
		return nil
	case ast.String:
		if !utf8.ValidString(string(s)) {
			return errWrongType
		}
		*to = S(s)
		return a.take(encoded(string(s)))
	}
	return errWrongType
}

// encoded bounds how long a text is in the log, which escapes all but ASCII.
func encoded(s string) int {
	n := len(s)
	for i := range len(s) {
		switch c := s[i]; {
		case c >= utf8.RuneSelf: // 2 to 4 bytes become 6 or 12
			n += 2
		case c < 0x20, c == 0x7f, c == '<', c == '>', c == '&':
			n += 5
		case c == '"', c == '\\':
			n++
		}
	}
	return n
}

// number reads a whole number. "1.0" and "1e3" are none, as for encoding/json.
func number[N int | int64](v ast.Value, to *N) error {
	switch n := v.(type) {
	case ast.Null:
		return nil
	case ast.Number:
		i, err := strconv.ParseInt(string(n), 10, 64)
		if err != nil || int64(N(i)) != i {
			return errWrongType
		}
		*to = N(i)
		return nil
	}
	return errWrongType
}

func items[T any](a *answer, v ast.Value, to *[]T, each func(ast.Value, *T) error) error {
	var elems []*ast.Term
	switch x := v.(type) {
	case ast.Null:
		return nil
	case *ast.Array:
		elems = slices.Grow(elems, x.Len())
		for i := range x.Len() {
			elems = append(elems, x.Elem(i))
		}
	case ast.Set:
		elems = x.Slice() // sorted
	default:
		return errWrongType
	}
	*to = make([]T, len(elems))
	for i, e := range elems {
		if err := a.take(0); err != nil {
			return err
		}
		if err := each(e.Value, &(*to)[i]); err != nil {
			return err
		}
	}
	return nil
}
