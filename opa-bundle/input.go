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
// a test proves that both ways give equal values. Text that is not UTF-8 is an
// error: encoding/json would change it in silence.
func inputValue(input any, limit int) (ast.Value, error) {
	switch in := input.(type) {
	case *sealed.Input:
		if in == nil {
			return nil, errors.New("nil input")
		}
		return authzValue(in, limit)
	case sealed.Input:
		return authzValue(&in, limit)
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
	left int // bytes that may still come
	err  error
}

func (t *terms) fail(err error) *ast.Term {
	if t.err == nil {
		t.err = err
	}
	return ast.NullTerm()
}

// take counts n bytes and as many again for the frame of one element.
func (t *terms) take(n int) bool {
	if t.left -= n + 8; t.left < 0 {
		t.fail(errors.New("over the limit"))
		return false
	}
	return true
}

func (t *terms) str(s string) *ast.Term {
	if !t.take(len(s)) {
		return ast.NullTerm()
	}
	if !utf8.ValidString(s) {
		return t.fail(errors.New("text is not UTF-8"))
	}
	return ast.StringTerm(s)
}

// time writes what time.Time.MarshalJSON writes.
func (t *terms) time(at time.Time) *ast.Term {
	b, err := at.MarshalText()
	if err != nil {
		return t.fail(err)
	}
	return t.str(string(b))
}

// list keeps the difference between a nil slice (null) and an empty one, as
// encoding/json does.
func list[T any](t *terms, xs []T, term func(T) *ast.Term) *ast.Term {
	if xs == nil {
		return ast.NullTerm()
	}
	out := make([]*ast.Term, 0, len(xs))
	for _, x := range xs {
		if t.err != nil {
			break
		}
		out = append(out, term(x))
	}
	return ast.ArrayTerm(out...)
}

func (t *terms) strs(xs []string) *ast.Term { return list(t, xs, t.str) }

func (t *terms) strMap(m map[string]string) *ast.Term {
	if m == nil {
		return ast.NullTerm()
	}
	out := make([][2]*ast.Term, 0, len(m))
	for k, v := range m {
		if t.err != nil {
			break
		}
		out = append(out, [2]*ast.Term{t.str(k), t.str(v)})
	}
	return ast.ObjectTerm(out...)
}

func (t *terms) num(n int64) *ast.Term { return ast.NumberTerm(json.Number(strconv.FormatInt(n, 10))) }

// field pairs a field name with its value.
func field(name string, value *ast.Term) [2]*ast.Term {
	if term, ok := fieldNames[name]; ok {
		return [2]*ast.Term{term, value}
	}
	return [2]*ast.Term{ast.StringTerm(name), value}
}

// fieldNames are the names of sealed.Input as terms, which are never changed
// and shared by all evaluations. It only saves allocations.
var fieldNames = func() map[string]*ast.Term {
	terms := map[string]*ast.Term{}
	for _, name := range []string{
		"phase", "time", "tenant", "requester", "agent", "run", "profile", "key",
		"reason", "entity_id", "name", "person", "groups", "claims", "definition_digest", "spiffe_id",
		"proven", "id", "mode", "workflow", "workflow_proven", "tags", "backend", "isolation",
		"assurance", "network", "interactive", "level", "version", "owner", "allowed_workflows", "host",
		"methods", "paths", "header", "format", "source", "source_kind", "agents", "workflows",
		"risk", "delivery", "bindings", "ttl", "max_ttl", "requester_matches",
	} {
		terms[name] = ast.StringTerm(name)
	}
	return terms
}()
