package opabundle

import (
	"encoding/json"
	"errors"

	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// A reason's code is kept in the log for good, while its sentence is masked
// where it could quote the agent. So a code must be a constant that the signer
// wrote down: one word of the bundle's policies or data. A code that is made of
// the input, or that merely has words of the input in it, makes the answer no
// decision.

// maxCode is the length of the longest code.
const maxCode = 64

var errCode = errors.New("reason with a code that the bundle does not spell out")

// words are all strings of a bundle that have the form of a code.
type words map[string]struct{}

// isCode reports whether s matches ^[a-z][a-z0-9_]{0,63}$.
func isCode(s string) bool {
	if len(s) == 0 || len(s) > maxCode || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

func (w words) add(s string) {
	if isCode(s) {
		w[s] = struct{}{}
	}
}

// wordsOf collects the words of the policies, and of a document of data as
// encoding/json decodes it.
func wordsOf(compiler *ast.Compiler, data any) words {
	w := words{}
	for _, m := range compiler.Modules {
		ast.WalkTerms(m, func(t *ast.Term) bool {
			if s, ok := t.Value.(ast.String); ok {
				w.add(string(s))
			}
			return false
		})
	}
	w.addData(data)
	return w
}

func (w words) addData(v any) {
	switch x := v.(type) {
	case string:
		w.add(x)
	case []any:
		for _, e := range x {
			w.addData(e)
		}
	case map[string]any:
		for k, e := range x {
			w.add(k)
			w.addData(e)
		}
	case json.Number, bool, nil:
	}
}

// decision reads an answer to this question: a decision whose codes are words
// of the bundle.
func (q *query) decision(v ast.Value) (sealed.Decision, error) {
	d, err := decision(v)
	if err != nil {
		return sealed.Decision{}, err
	}
	for _, r := range d.Reasons {
		if _, ok := q.words[r.Code]; !ok {
			return sealed.Decision{}, errCode
		}
	}
	return d, nil
}
