package opabundle

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// In any order of calls, documents says what OPA's own cache says.
func TestDocumentsLikeOPAs(t *testing.T) {
	rnd := rand.New(rand.NewPCG(31, 32))
	for range 200 {
		ours, theirs := &documents{}, topdown.NewVirtualCache()
		depth := 0
		ref := make(ast.Ref, 3) // one array for all, as the evaluator has it
		for range 300 {
			ref[0], ref[1] = ast.DefaultRootDocument, ast.StringTerm("p")
			ref[2] = ast.StringTerm(fmt.Sprint(rnd.IntN(2 * maxFew)))
			switch rnd.IntN(12) {
			case 0:
				ours.Push()
				theirs.Push()
				depth++
			case 1:
				if depth > 0 {
					ours.Pop()
					theirs.Pop()
					depth--
				}
			case 2, 3, 4:
				// The evaluator never says that a document is defined after all.
				if v, _ := theirs.Get(ref); v == nil {
					ours.Put(ref, nil)
					theirs.Put(ref, nil)
				}
			case 5, 6, 7:
				if _, undefined := theirs.Get(ref); !undefined {
					v := ast.NumberTerm("1")
					ours.Put(ref, v)
					theirs.Put(ref, v)
				}
			default:
				v, undefined := ours.Get(ref)
				if want, wantUndefined := theirs.Get(ref); v != want || undefined != wantUndefined {
					t.Fatalf("%v: %v, %v, want %v, %v", ref, v, undefined, want, wantUndefined)
				}
			}
		}
		keys := func(c topdown.VirtualCache) map[string]int {
			out := map[string]int{}
			for _, k := range c.Keys() {
				out[k.String()]++
			}
			return out
		}
		if diff := cmp.Diff(keys(theirs), keys(ours)); diff != "" {
			t.Fatalf("keys (-OPA +ours):\n%s", diff)
		}
	}
}
