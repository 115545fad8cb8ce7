package vaultplugin

import (
	"context"
	"reflect"
	"slices"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// profileChange is profileDiff with what only the other levels can tell:
// taking a definition away widens where one of them defines the key too, which
// then takes its place.
func (b *backend) profileChange(ctx context.Context, s logical.Storage, old, now sealed.Profile) (changed, widened []string, err error) {
	changed, widened = profileDiff(old, now)
	if old.Level == sealed.LevelUser {
		return changed, widened, nil // what is left is what the levels before allow everybody
	}
	others, err := b.besides(ctx, s, now.Level, now.Name)
	if err != nil {
		return nil, nil, err
	}
	for name, was := range old.Keys {
		if spec, ok := now.Keys[name]; was.Source == "" || (ok && (spec.Source != "" || spec.Tombstone)) {
			continue
		}
		defines := func(p sealed.Profile) bool { return p.Keys[name].Source != "" }
		if now.Name == defaultProfile || slices.ContainsFunc(others, defines) {
			widened = append(widened, string(name))
		}
	}
	slices.Sort(widened)
	return changed, slices.Compact(widened), nil
}

// besides are the current profiles at level system and workflow that a run has
// beside this one.
func (b *backend) besides(ctx context.Context, s logical.Storage, level string, name sealed.ProfileName) ([]sealed.Profile, error) {
	var out []sealed.Profile
	for _, ref := range layersOf(name, "") {
		if ref.Level == level && ref.Name == name {
			continue
		}
		head, err := b.profileHead(ctx, s, ref.Level, ref.Name)
		if err != nil {
			return nil, err
		}
		if !head.exists() {
			continue
		}
		ref.Version = head.Version
		p, err := b.profileVersion(ctx, s, ref)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// profileDiff names the keys that differ and, among them, those that became
// reachable by more, sendable to more, or weaker protected. The names come
// sorted; "*" stands for the profile's own fields. Whatever can't be proven
// narrower counts as wider.
func profileDiff(old, now sealed.Profile) (changed, widened []string) {
	changed, widened = []string{}, []string{}
	note := func(name string, isChanged, isWider bool) {
		if isChanged {
			changed = append(changed, name)
		}
		if isWider {
			widened = append(widened, name)
		}
	}
	a, z := old, now
	a.Keys, z.Keys, a.Version, z.Version = nil, nil, 0, 0
	note("*", !reflect.DeepEqual(a, z), widerProfile(old, now))
	for name, spec := range now.Keys {
		was, existed := old.Keys[name]
		note(string(name), !existed || was.Digest() != spec.Digest(), widerKey(was, spec))
	}
	for name, was := range old.Keys {
		if _, ok := now.Keys[name]; !ok {
			note(string(name), true, was.Source == "") // what it took away is back
		}
	}
	slices.Sort(changed)
	slices.Sort(widened)
	return changed, widened
}

// widerProfile is about what binds all keys. Policies see owner and tags.
func widerProfile(old, now sealed.Profile) bool {
	if old.Version == 0 {
		return len(now.AllowedWorkflows) > 0 || !now.Requesters.Empty()
	}
	return widerWall(old.AllowedWorkflows, now.AllowedWorkflows) || !reflect.DeepEqual(old.Requesters, now.Requesters) ||
		old.Owner != now.Owner || !slices.Equal(old.Tags, now.Tags)
}

// widerKey compares the entries of one key; the zero KeySpec is none.
func widerKey(was, now sealed.KeySpec) bool {
	switch {
	case now.Tombstone:
		return false
	case was.Tombstone, was.Source == "" && now.Source != "":
		return true
	case was.Source != "" && now.Source == "":
		return false // profileChange looks whether another level defines it
	}
	defines := now.Source != ""
	return was.Source != now.Source || was.Ref != now.Ref || widerBindings(was.Bindings, now.Bindings, defines) ||
		(was.Delivery != "" && !now.Delivery.Stronger(was.Delivery)) ||
		(defines && wider(was.Agents, now.Agents)) || (!defines && widerWall(was.Agents, now.Agents)) ||
		widerWall(was.Workflows, now.Workflows) || widerWall(was.Tags, now.Tags) || widerWall(was.Isolations, now.Isolations) ||
		((defines || !was.Requesters.Empty()) && !reflect.DeepEqual(was.Requesters, now.Requesters)) || sealed.HigherRisk(was.Risk, now.Risk) != now.Risk ||
		longer(was.TTL, now.TTL) || longer(was.MaxTTL, now.MaxTTL) || (now.AllowWeak && !was.AllowWeak)
}

// wider reports whether now names somebody that was did not.
func wider(was, now []string) bool {
	return slices.ContainsFunc(now, func(n string) bool { return !slices.Contains(was, n) })
}

// widerWall is wider for a list that says nothing when it is empty.
func widerWall(was, now []string) bool {
	return len(was) > 0 && (len(now) == 0 || wider(was, now))
}

// widerBindings: none are no request in a definition, and any where a level
// only narrows.
func widerBindings(was, now []sealed.Binding, defines bool) bool {
	if !defines && (len(was) == 0 || len(now) == 0) {
		return len(now) < len(was)
	}
	return slices.ContainsFunc(now, func(x sealed.Binding) bool {
		return !slices.ContainsFunc(was, func(y sealed.Binding) bool { return y.Covers(x) })
	})
}

// longer compares lifetimes of which 0 says nothing.
func longer(was, now sealed.Duration) bool {
	return was > 0 && (now == 0 || now > was)
}
