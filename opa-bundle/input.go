package opabundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// inputValue turns an input into OPA's terms. The two inputs of package sealed
// are built by hand, which saves a round trip through JSON on every decision;
// a test proves that both ways give equal values. Of a sealed.Input only the
// fields in reads are built, though all are checked. Text that is not UTF-8 is
// an error: encoding/json would change it in silence.
func inputValue(input any, reads fieldSet, limit int) (ast.Value, error) {
	switch in := input.(type) {
	case *sealed.Input:
		if in == nil {
			return nil, errors.New("nil input")
		}
		return authzValue(in, reads, limit)
	case sealed.Input:
		return authzValue(&in, reads, limit)
	case *sealed.ApprovalInput:
		if in == nil {
			return nil, errors.New("nil input")
		}
		return approvalValue(in, limit)
	case sealed.ApprovalInput:
		return approvalValue(&in, limit)
	}
	data, err := json.Marshal(input)
	if err != nil {
		return nil, fmt.Errorf("encoding input: %w", err)
	}
	return jsonValue(data, limit)
}

func jsonValue(data []byte, limit int) (ast.Value, error) {
	if len(data) > limit || !utf8.Valid(data) || !json.Valid(data) {
		return nil, errors.New("not a JSON document, or over the limit")
	}
	return ast.ValueFromReader(bytes.NewReader(data))
}

// terms builds terms, counts their size and keeps the first error.
type terms struct {
	left    int // bytes that may still come
	err     error
	slab    []ast.Term     // terms to come; one allocation for many
	members [][2]*ast.Term // of the objects under construction, the innermost last
	reads   fieldSet
}

func (t *terms) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *terms) term(v ast.Value) *ast.Term {
	if len(t.slab) == 0 {
		t.slab = make([]ast.Term, 32)
	}
	term := &t.slab[0]
	t.slab = t.slab[1:]
	term.Value = v
	return term
}

// take counts n bytes and as many again for the frame of one element.
func (t *terms) take(n int) bool {
	if t.left -= n + 8; t.left < 0 {
		t.fail(errors.New("over the limit"))
		return false
	}
	return true
}

// fits counts a text and reports whether it can be given to a policy.
func (t *terms) fits(s string) bool {
	if !t.take(len(s)) {
		return false
	}
	if !utf8.ValidString(s) {
		t.fail(errors.New("text is not UTF-8"))
		return false
	}
	return true
}

func (t *terms) str(s string) *ast.Term {
	if term, ok := commonTerms[s]; ok && t.take(len(s)) {
		return term
	}
	if !t.fits(s) {
		return nullTerm
	}
	return t.term(ast.String(s))
}

// timeText is what time.Time.MarshalJSON writes.
func (t *terms) timeText(at time.Time) string {
	b, err := at.AppendText(make([]byte, 0, len(time.RFC3339Nano)))
	if err != nil {
		t.fail(err)
	}
	return string(b)
}

// list keeps the difference between a nil slice (null) and an empty one, as
// encoding/json does.
func list[T any](t *terms, xs []T, term func(T) *ast.Term) *ast.Term {
	if xs == nil {
		return nullTerm
	}
	out := make([]*ast.Term, 0, len(xs))
	for _, x := range xs {
		if t.err != nil {
			break
		}
		out = append(out, term(x))
	}
	return t.term(ast.NewArray(out...))
}

func (t *terms) strs(xs []string) *ast.Term { return list(t, xs, t.str) }

func (t *terms) strMap(m map[string]string) *ast.Term {
	if m == nil {
		return nullTerm
	}
	out := make([][2]*ast.Term, 0, len(m))
	for k, v := range m {
		if t.err != nil {
			break
		}
		out = append(out, [2]*ast.Term{t.str(k), t.str(v)})
	}
	return t.term(ast.NewObject(out...))
}

func (t *terms) num(n int64) *ast.Term {
	return t.term(ast.Number(strconv.FormatInt(n, 10)))
}

// An object is under construction: the fields of one object of the input, of
// which those that no policy reads are only checked. Its members are those of
// terms from a place on, until in or value takes them.
type object struct {
	*terms
	from int
}

func (t *terms) object() object { return object{terms: t, from: len(t.members)} }

func (o *object) add(f field, value *ast.Term) {
	o.members = append(o.members, [2]*ast.Term{fieldTerms[f], value})
}

// value ends the object.
func (o *object) value() ast.Object {
	v := ast.NewObject(o.members[o.from:]...)
	o.members = o.members[:o.from]
	return v
}

// in ends the object and adds it to the one around it, unless no policy reads
// any of it.
func (o *object) in(name *ast.Term) {
	if len(o.members) > o.from {
		v := o.term(o.value())
		o.members = append(o.members, [2]*ast.Term{name, v})
	}
}

func (o *object) str(f field, s string) {
	if o.reads.has(f) {
		o.add(f, o.terms.str(s))
	} else {
		o.fits(s)
	}
}

func (o *object) time(at time.Time) {
	if o.reads.has(fTime) {
		o.add(fTime, o.terms.str(o.timeText(at)))
		return
	}
	var text [len(time.RFC3339Nano)]byte
	b, err := at.AppendText(text[:0])
	if err != nil {
		o.fail(err)
	}
	o.take(len(b))
}

func (o *object) strs(f field, xs []string) {
	if o.reads.has(f) {
		o.add(f, o.terms.strs(xs))
		return
	}
	for _, x := range xs {
		if !o.fits(x) {
			return
		}
	}
}

func (o *object) num(f field, n int64) {
	if o.reads.has(f) {
		o.add(f, o.terms.num(n))
	}
}

func (o *object) flag(f field, yes bool) {
	if o.reads.has(f) {
		o.add(f, ast.InternedTerm(yes))
	}
}

// member pairs a name with its value.
func member(name string, value *ast.Term) [2]*ast.Term {
	if term, ok := commonTerms[name]; ok {
		return [2]*ast.Term{term, value}
	}
	return [2]*ast.Term{ast.StringTerm(name), value}
}
