package opabundle

import (
	"context"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// A Use is one key under one profile.
type Use struct {
	Profile sealed.InputProfile
	Key     sealed.InputKey
}

// DecideAll decides every key of a run: the answers are those of Decide to
// sealed.QuestionAuthz for shared with the Profile and Key of each use, in the
// order of uses. The two fields of shared itself are ignored. Each use is
// checked, decided and, where it has to be, denied alone; none changes the
// answer of another.
//
// Uses that differ only in fields that no policy of the bundle reads have one
// answer, which is found once and shared: its slices must not be changed.
// Limits.Eval bounds each evaluation, not all of them; ctx bounds all.
func (b *Bundle) DecideAll(ctx context.Context, shared sealed.Input, uses []Use, at time.Time) []sealed.Decision {
	out := make([]sealed.Decision, len(uses))
	query, no := b.query(sealed.QuestionAuthz, at)
	if no != nil {
		for i := range out {
			out[i] = *no
		}
		return out
	}
	common := sharedTerms(&shared, query.reads, b.limits.Input)
	var asked []int // of uses, each different from those before
	for i := range uses {
		if !common.fits(&uses[i]) {
			out[i] = badInput()
			continue
		}
		same := slices.IndexFunc(asked, func(j int) bool { return query.reads.same(&uses[i], &uses[j]) })
		if same >= 0 {
			out[i] = out[asked[same]]
			continue
		}
		out[i] = b.answer(ctx, query, common.with(&uses[i]), at)
		asked = append(asked, i)
	}
	return out
}

// common is the part of the input that all keys of a run share.
type common struct {
	terms   terms // after the shared part
	members [][2]*ast.Term
}

func sharedTerms(in *sealed.Input, reads fieldSet, limit int) *common {
	c := &common{terms: terms{left: limit, reads: reads}}
	o := c.terms.object()
	o.shared(in)
	c.members, c.terms.members = c.terms.members, nil
	return c
}

// fits reports whether the input for one use can be given to a policy.
func (c *common) fits(u *Use) bool {
	t := terms{left: c.terms.left, err: c.terms.err}
	o := t.object()
	o.profile(&u.Profile)
	o.key(&u.Key)
	return t.err == nil
}

// with returns the whole input for one use that fits.
func (c *common) with(u *Use) ast.Value {
	t := terms{left: c.terms.left, reads: c.terms.reads, members: append(make([][2]*ast.Term, 0, maxMembers), c.members...)}
	o := object{terms: &t}
	o.profile(&u.Profile)
	o.key(&u.Key)
	return o.value()
}

// same reports whether two uses do not differ in the fields of s, so that a
// policy that reads no others cannot tell them apart.
func (s fieldSet) same(a, b *Use) bool {
	p, q, k, l := &a.Profile, &b.Profile, &a.Key, &b.Key
	return (p.Name == q.Name || !s.has(fProfileName)) &&
		(p.Level == q.Level || !s.has(fProfileLevel)) &&
		(p.Version == q.Version || !s.has(fProfileVersion)) &&
		(p.Owner == q.Owner || !s.has(fProfileOwner)) &&
		(sameList(p.Tags, q.Tags) || !s.has(fProfileTags)) &&
		(sameList(p.AllowedWorkflows, q.AllowedWorkflows) || !s.has(fProfileAllowedWorkflows)) &&
		(k.Name == l.Name || !s.has(fKeyName)) &&
		(k.Source == l.Source || !s.has(fKeySource)) &&
		(k.SourceKind == l.SourceKind || !s.has(fKeySourceKind)) &&
		(sameList(k.Agents, l.Agents) || !s.has(fKeyAgents)) &&
		(sameList(k.Workflows, l.Workflows) || !s.has(fKeyWorkflows)) &&
		(sameList(k.Tags, l.Tags) || !s.has(fKeyTags)) &&
		(k.Risk == l.Risk || !s.has(fKeyRisk)) &&
		(k.Delivery == l.Delivery || !s.has(fKeyDelivery)) &&
		(!s.has(fKeyBindings) || sameBindings(k.Bindings, l.Bindings)) &&
		(k.TTL == l.TTL || !s.has(fKeyTTL)) &&
		(k.MaxTTL == l.MaxTTL || !s.has(fKeyMaxTTL)) &&
		(k.RequesterMatches == l.RequesterMatches || !s.has(fKeyRequesterMatches))
}

// sameList tells nil (null) from empty, as a policy does.
func sameList(a, b []string) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }

func sameBindings(a, b []sealed.Binding) bool {
	return (a == nil) == (b == nil) && slices.EqualFunc(a, b, func(x, y sealed.Binding) bool {
		return x.Host == y.Host && x.Header == y.Header && x.Format == y.Format &&
			sameList(x.Methods, y.Methods) && sameList(x.Paths, y.Paths)
	})
}
