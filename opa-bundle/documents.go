package opabundle

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// documents remembers, for one evaluation, what rules have come to, so that the
// evaluator asks each of them once. It is a topdown.VirtualCache that differs
// from OPA's own in cost only: most decisions need a few documents, and finding
// one in a short list is cheaper than keeping a tree of maps. What the list has
// no room for, and everything below a "with", goes to OPA's own.
type documents struct {
	few   []document // at most maxFew, outside of any "with"
	depth int        // of "with"
	more  topdown.VirtualCache
}

const maxFew = 16

// A document is what a rule has come to. A nil value is undefined.
type document struct {
	ref   ast.Ref
	value *ast.Term
}

// Push begins a "with": nothing that was remembered holds below it.
func (d *documents) Push() {
	d.depth++
	d.rest().Push()
}

// Pop ends the last "with".
func (d *documents) Pop() {
	d.depth--
	d.rest().Pop()
}

// Get returns what a document has come to, or whether it is undefined.
func (d *documents) Get(ref ast.Ref) (value *ast.Term, undefined bool) {
	if known := d.find(ref); known != nil {
		return known.value, known.value == nil
	}
	if d.more == nil {
		return nil, false
	}
	return d.more.Get(ref)
}

// Put remembers what a document has come to; nil is undefined.
func (d *documents) Put(ref ast.Ref, value *ast.Term) {
	if known := d.find(ref); known != nil {
		known.value = value
		return
	}
	if d.depth > 0 || len(d.few) == maxFew {
		d.rest().Put(ref, value)
		return
	}
	// The evaluator goes on to use the array of ref for other documents.
	d.few = append(d.few, document{slices.Clone(ref), value})
}

// Keys returns the documents that are remembered and defined.
func (d *documents) Keys() []ast.Ref {
	var keys []ast.Ref
	if d.depth == 0 {
		for _, known := range d.few {
			if known.value != nil {
				keys = append(keys, known.ref)
			}
		}
	}
	if d.more == nil {
		return keys
	}
	return append(keys, d.more.Keys()...)
}

func (d *documents) find(ref ast.Ref) *document {
	if d.depth > 0 {
		return nil
	}
	for i := range d.few {
		if sameRef(d.few[i].ref, ref) {
			return &d.few[i]
		}
	}
	return nil
}

// sameRef compares from the end, where references differ.
func sameRef(a, b ast.Ref) bool {
	if len(a) != len(b) {
		return false
	}
	for i := len(a) - 1; i >= 0; i-- {
		if a[i] != b[i] && !a[i].Equal(b[i]) {
			return false
		}
	}
	return true
}

func (d *documents) rest() topdown.VirtualCache {
	if d.more == nil {
		d.more = topdown.NewVirtualCache()
	}
	return d.more
}
