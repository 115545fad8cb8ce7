// Package cascade turns the profiles of a run, level by level, into the keys
// and knobs that the run has.
//
// A profile of an earlier level binds every later one: system, then workflow,
// then user. Per key, the last level that names a source says where the value
// comes from; every other level can only take away. So whoever may write a
// later level can never reach more than the levels before it left open.
//
// # Rules
//
//   - A key with a source defines it. A later definition replaces source, ref
//     and bindings, but not what earlier levels asked for: lists of agents,
//     workflows, tags and isolations are cut to what all of them name, the
//     stronger delivery, the higher risk and the shorter lifetimes stay. When it
//     names the same value (source and ref), the bindings are cut too.
//   - A key without a source narrows: the one before it or, if no level before
//     defines it, whatever a later level will define. What it leaves empty stays
//     as it is. If no level defines it at all, it is an orphan and gives nothing.
//   - A tombstone ends a key. No later level brings it back.
//   - Requesters add up: each level that names some has to be met. The level
//     that defines a key has to name some, or nobody may use it.
//   - allowed_workflows of a profile, where it is not empty, binds the keys of
//     its own and all later levels. The level that defines a key has to name some.
//   - A name that is a key at any level, also a dead one, is never a knob. Among
//     knobs the later level wins.
//
// # Guarantee
//
// Resolve is a function of its arguments. Adding a level never lets a run use a
// value that it could not use without that level, except one which that level
// itself defines. It does not judge who may write a level, nor which sources
// that level may name: the engine does.
package cascade

import (
	"encoding/json"
	"maps"
	"slices"

	"sealed.dev/sealed/internal/sealed"
)

// Why a key of some level is not usable.
const (
	EndedTombstone = "tombstone" // a level removed it
	EndedOrphan    = "orphan"    // no level defines it
	EndedDisjoint  = "disjoint"  // the levels have nobody, no workflow, tag, isolation or binding in common
)

// A Key is one effective key. Keys that have ended are listed too, so that a
// preview can say why they are not there; they must never be issued.
type Key struct {
	Name   sealed.KeyName
	Origin sealed.ProfileRef // of the definition
	Ended  string            // empty: usable
	By     sealed.ProfileRef // the level that ended it

	// Spec is the definition after all narrowing. Its Requesters are zero: see below.
	Spec sealed.KeySpec
	// NarrowedBy are the other levels that had a say, in order.
	NarrowedBy []sealed.ProfileRef

	Owner            string
	ProfileTags      []string
	AllowedWorkflows []string // of the profiles, cut to what they share
	// Entitled have all to be met for workflow and tags to count: the requesters
	// that the profiles name.
	Entitled []sealed.Requesters
	// Admitted have all to be met to use the key: from each level those that it
	// names for the key or, if none, for the profile.
	Admitted []sealed.Requesters
}

// Entitles reports whether a requester may assert workflow and tags under this key.
func (k Key) Entitles(groups []string, claims map[string]string) bool {
	return matchAll(k.Entitled, groups, claims)
}

// Admits reports whether a requester may use the key.
func (k Key) Admits(groups []string, claims map[string]string) bool {
	return matchAll(k.Admitted, groups, claims)
}

func matchAll(rs []sealed.Requesters, groups []string, claims map[string]string) bool {
	for _, r := range rs {
		if !r.Match(groups, claims) {
			return false
		}
	}
	return len(rs) > 0
}

// Digest identifies what the key is and for whom: everything but the versions
// of the profiles, so that a version that changes nothing about the key has the
// same.
func (k Key) Digest() sealed.Digest {
	doc, err := json.Marshal(struct {
		Level            string              `json:"level"`
		Profile          sealed.ProfileName  `json:"profile"`
		Name             sealed.KeyName      `json:"name"`
		Ended            string              `json:"ended"`
		Spec             sealed.KeySpec      `json:"spec"`
		Owner            string              `json:"owner"`
		Tags             []string            `json:"tags"`
		AllowedWorkflows []string            `json:"allowed_workflows"`
		Entitled         []sealed.Requesters `json:"entitled"`
		Admitted         []sealed.Requesters `json:"admitted"`
	}{k.Origin.Level, k.Origin.Name, k.Name, k.Ended, k.Spec, k.Owner, k.ProfileTags, k.AllowedWorkflows, k.Entitled, k.Admitted})
	if err != nil { // text and numbers always marshal
		return ""
	}
	return sealed.DigestOf(sealed.DomainEffectiveKey, doc)
}

// A Knob is one plain variable with the level that set it.
type Knob struct {
	Value  string
	Origin sealed.ProfileRef
}

// Effective is what a run has. The zero Effective has nothing.
type Effective struct {
	Layers []sealed.ProfileRef
	Keys   []Key // by name
	Knobs  map[string]Knob
	// Shadowed are the names of knobs that were dropped because a level has a
	// key of that name, sorted.
	Shadowed []string
}

// Key returns the effective key of a name, also an ended one.
func (e Effective) Key(name sealed.KeyName) (Key, bool) {
	i, ok := slices.BinarySearchFunc(e.Keys, name, func(k Key, n sealed.KeyName) int {
		switch {
		case k.Name < n:
			return -1
		case k.Name > n:
			return 1
		}
		return 0
	})
	if !ok {
		return Key{}, false
	}
	return e.Keys[i], true
}

// Entitles reports whether a requester may assert workflow and tags for the
// run as a whole: every level that names requesters is met, and one does.
func Entitles(layers []sealed.Profile, groups []string, claims map[string]string) bool {
	var all []sealed.Requesters
	for _, p := range layers {
		if !p.Requesters.Empty() {
			all = append(all, p.Requesters)
		}
	}
	return matchAll(all, groups, claims)
}

// Resolve overlays profiles, earliest level first. The profiles must be
// normalized (sealed.ParseProfile); they are not changed, and the answer shares
// no slice with them that it would write to.
func Resolve(layers []sealed.Profile) Effective {
	out := Effective{Knobs: map[string]Knob{}}
	keys := map[sealed.KeyName]*Key{}
	for i, p := range layers {
		ref := RefOf(p)
		out.Layers = append(out.Layers, ref)
		for _, name := range slices.Sorted(maps.Keys(p.Keys)) {
			k, ok := keys[name]
			if !ok {
				k = &Key{Name: name}
				keys[name] = k
			}
			k.apply(layers[:i+1], p.Keys[name])
		}
		for name, value := range p.Env {
			out.Knobs[name] = Knob{Value: value, Origin: ref}
		}
	}
	for name, k := range keys {
		if k.Ended == "" && !k.defined() {
			k.Ended, k.By = EndedOrphan, k.NarrowedBy[len(k.NarrowedBy)-1]
		}
		if _, ok := out.Knobs[string(name)]; ok {
			delete(out.Knobs, string(name))
			out.Shadowed = append(out.Shadowed, string(name))
		}
	}
	slices.Sort(out.Shadowed)
	out.Keys = make([]Key, 0, len(keys))
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		out.Keys = append(out.Keys, *keys[name])
	}
	return out
}

// RefOf pins a version of a profile.
func RefOf(p sealed.Profile) sealed.ProfileRef {
	return sealed.ProfileRef{Level: p.Level, Name: p.Name, Version: p.Version}
}

// apply gives the last of the levels its say about the key.
func (k *Key) apply(levels []sealed.Profile, spec sealed.KeySpec) {
	p := &levels[len(levels)-1]
	switch {
	case k.Ended != "":
		return
	case spec.Tombstone:
		k.end(EndedTombstone, p)
	case spec.Source == "":
		k.narrow(p, spec)
	default:
		k.define(levels, spec)
	}
}

func (k *Key) defined() bool { return k.Origin != (sealed.ProfileRef{}) }

func (k *Key) end(why string, p *sealed.Profile) { k.Ended, k.By = why, RefOf(*p) }

// define makes the last of the levels the origin of the key. What earlier ones
// asked of the same key, and of all keys, goes on to hold.
func (k *Key) define(levels []sealed.Profile, spec sealed.KeySpec) {
	p := &levels[len(levels)-1]
	was := *k
	*k = Key{Name: k.Name, Origin: RefOf(*p), Spec: spec, NarrowedBy: was.NarrowedBy, Owner: p.Owner, ProfileTags: p.Tags}
	k.Spec.Requesters = sealed.Requesters{}
	k.AllowedWorkflows = p.AllowedWorkflows
	for i := range levels {
		k.require(&levels[i], levels[i].Keys[k.Name])
	}
	if len(k.AllowedWorkflows) == 0 && len(p.AllowedWorkflows) > 0 {
		k.end(EndedDisjoint, p)
	}
	old := was.Spec
	if was.defined() {
		k.NarrowedBy = append(k.NarrowedBy, was.Origin)
		if old.Source != spec.Source || old.Ref != spec.Ref {
			old.Bindings = nil // of another value
		}
	}
	k.cut(p, old)
}

// require adds what one level asks of requesters and workflows. Where it
// defines the key, naming none means nobody; elsewhere it says nothing.
func (k *Key) require(p *sealed.Profile, spec sealed.KeySpec) {
	defines := spec.Source != ""
	admitted := p.Requesters
	if !spec.Requesters.Empty() {
		admitted = spec.Requesters
	}
	if defines || !admitted.Empty() {
		k.Admitted = append(k.Admitted, admitted)
	}
	if defines || !p.Requesters.Empty() {
		k.Entitled = append(k.Entitled, p.Requesters)
	}
	if defines || len(p.AllowedWorkflows) > 0 {
		k.AllowedWorkflows = common(k.AllowedWorkflows, p.AllowedWorkflows)
	}
}

// narrow lets p take away from the key, or from what later levels may make of it.
func (k *Key) narrow(p *sealed.Profile, spec sealed.KeySpec) {
	k.NarrowedBy = append(k.NarrowedBy, RefOf(*p))
	if k.defined() {
		k.require(p, spec)
		if len(k.AllowedWorkflows) == 0 && len(p.AllowedWorkflows) > 0 {
			k.end(EndedDisjoint, p)
		}
	}
	k.cut(p, spec)
}

// cut takes from the key what other does not allow. Empty fields of other
// allow everything.
func (k *Key) cut(p *sealed.Profile, other sealed.KeySpec) {
	s := &k.Spec
	for _, list := range []struct {
		mine  *[]string
		other []string
	}{{&s.Agents, other.Agents}, {&s.Workflows, other.Workflows}, {&s.Tags, other.Tags}, {&s.Isolations, other.Isolations}} {
		// No agents in a definition are nobody, and stay so. Any other empty
		// list says nothing, and the other list stands.
		if len(list.other) == 0 {
			if list.mine == &s.Agents && other.Source != "" {
				s.Agents = nil
			}
			continue
		}
		if len(*list.mine) == 0 && (list.mine != &s.Agents || !k.defined()) {
			*list.mine = list.other
			continue
		}
		*list.mine = common(*list.mine, list.other)
		if len(*list.mine) == 0 {
			k.end(EndedDisjoint, p)
		}
	}
	switch {
	case len(other.Bindings) == 0:
	case len(s.Bindings) == 0 && !k.defined():
		s.Bindings = other.Bindings
	default:
		if s.Bindings = Meet(s.Bindings, other.Bindings); len(s.Bindings) == 0 {
			k.end(EndedDisjoint, p)
		}
	}
	if other.Delivery != "" && !s.Delivery.Stronger(other.Delivery) {
		s.Delivery = other.Delivery
	}
	if k.defined() && s.Delivery == sealed.DeliveryProxy && len(s.Bindings) == 0 {
		k.end(EndedDisjoint, p) // proxy by an earlier level, and nowhere to send it
	}
	s.Risk = sealed.HigherRisk(s.Risk, other.Risk)
	s.TTL, s.MaxTTL = shorter(s.TTL, other.TTL), shorter(s.MaxTTL, other.MaxTTL)
	s.TTL = shorter(s.TTL, s.MaxTTL)
	s.AllowWeak = s.AllowWeak && (other.AllowWeak || other.Source == "")
}

// shorter is the lesser of two lifetimes; 0 says nothing.
func shorter(a, b sealed.Duration) sealed.Duration {
	if a == 0 || b == 0 {
		return a + b
	}
	return min(a, b)
}

// common are the names that both lists allow; "*" allows any.
func common(a, b []string) []string {
	if slices.Contains(a, "*") {
		return b
	}
	if slices.Contains(b, "*") {
		return a
	}
	var out []string
	for _, n := range a {
		if slices.Contains(b, n) {
			out = append(out, n)
		}
	}
	return out
}

// Meet returns bindings of the requests that both sides allow, as far as
// patterns can say it: of two paths that overlap without one covering the
// other, none.
func Meet(a, b []sealed.Binding) []sealed.Binding {
	var out []sealed.Binding
	for _, x := range a {
		for _, y := range b {
			m, ok := x.Meet(y)
			if ok && !slices.ContainsFunc(out, func(o sealed.Binding) bool { return o.Covers(m) }) {
				out = append(out, m)
			}
		}
	}
	return out
}
