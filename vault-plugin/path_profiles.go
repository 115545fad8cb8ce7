package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// levels of the cascade, strongest first.
var levels = [...]string{sealed.LevelUser, sealed.LevelWorkflow, sealed.LevelSystem}

// profileHead names the newest version. A deleted profile keeps its head, so
// that a version, once pinned by a run, never means other content.
type profileHead struct {
	Version int  `json:"version"`
	Deleted bool `json:"deleted,omitempty"`
}

func (h profileHead) exists() bool { return h.Version > 0 && !h.Deleted }

func (b *backend) pathProfiles() []*framework.Path {
	level := &framework.FieldSchema{Type: framework.TypeString, Description: "system, workflow or user."}
	return []*framework.Path{
		{
			Pattern:      "profiles/(?P<level>[^/]+)/?$",
			DisplayAttrs: display("profiles"),
			Fields:       map[string]*framework.FieldSchema{"level": level},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: &framework.PathOperation{Summary: "List the profiles of a level.", Callback: b.profileList},
			},
			HelpSynopsis:    "List profiles.",
			HelpDescription: "A profile is a set of named keys at one level of the cascade system, workflow, user.",
		},
		{
			Pattern:      "profiles/(?P<level>[^/]+)/(?P<name>.+)",
			DisplayAttrs: display("profile"),
			Fields: map[string]*framework.FieldSchema{
				"level":   level,
				"name":    {Type: framework.TypeString, Description: "Name of the profile, one to four segments."},
				"profile": {Type: framework.TypeString, Description: "The profile (JSON). version is the one expected: 0 for a new profile."},
				"version": {Type: framework.TypeInt, Description: "On read: this version instead of the newest.", Query: true},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   b.op("Read a profile.", b.profileRead),
				logical.UpdateOperation: b.op("Write a new version of a profile, check-and-set.", b.profileWrite),
				logical.DeleteOperation: b.op("Delete a profile; its versions stay for the runs that pin them.", b.profileDelete),
			},
			HelpSynopsis: "Versioned sets of named keys.",
			HelpDescription: "Every version is kept. In this version one holder of sealed-profiles can widen a binding, a delivery or the requesters; " +
				"the change is logged by name as widened, and a second person is asked for in a later version.",
		},
	}
}

// profileByName returns the newest version of a profile at the strongest level
// that has it: user, then workflow, then system. sealed.ErrNotFound: at none.
func (b *backend) profileByName(ctx context.Context, s logical.Storage, name sealed.ProfileName) (sealed.Profile, error) {
	if _, err := sealed.ParseProfileName(string(name)); err != nil {
		return sealed.Profile{}, err
	}
	for _, level := range levels {
		head, err := b.profileHead(ctx, s, level, name)
		if err != nil {
			return sealed.Profile{}, err
		}
		if head.exists() {
			return b.profileVersion(ctx, s, sealed.ProfileRef{Level: level, Name: name, Version: head.Version})
		}
	}
	return sealed.Profile{}, fmt.Errorf("loading profile %s: %w", name, sealed.ErrNotFound)
}

// profileVersion returns exactly one version, also of a deleted profile. The
// caller must not change its maps and slices.
func (b *backend) profileVersion(ctx context.Context, s logical.Storage, ref sealed.ProfileRef) (sealed.Profile, error) {
	if err := validateProfileRef(ref.Level, ref.Name); err != nil {
		return sealed.Profile{}, err
	}
	key := profileKey(ref.Level, ref.Name) + strconv.Itoa(ref.Version)
	return b.nouns.profiles.get(key, func() (sealed.Profile, error) {
		var raw json.RawMessage
		ok, err := get(ctx, s, key, &raw)
		if err != nil {
			return sealed.Profile{}, err
		}
		if !ok {
			return sealed.Profile{}, fmt.Errorf("loading profile %s: %w", ref.Name, sealed.ErrNotFound)
		}
		p, err := sealed.ParseProfile(raw)
		if err != nil || p.Level != ref.Level || p.Name != ref.Name || p.Version != ref.Version {
			return sealed.Profile{}, fmt.Errorf("decoding stored %s: malformed", key)
		}
		return p, nil
	})
}

func (b *backend) profileHead(ctx context.Context, s logical.Storage, level string, name sealed.ProfileName) (profileHead, error) {
	return b.nouns.newest.get(level+"/"+string(name), func() (head profileHead, err error) {
		_, err = get(ctx, s, profileKey(level, name)+"current", &head)
		return head, err
	})
}

func profileKey(level string, name sealed.ProfileName) string {
	return storeProfiles + level + "/" + string(name) + "/"
}

func validateProfileRef(level string, name sealed.ProfileName) error {
	if !slices.Contains(levels[:], level) {
		return invalid("level", "wants system, workflow or user")
	}
	_, err := sealed.ParseProfileName(string(name))
	return err
}

// profileNames walks one level of the store: a profile is where a head is.
func (b *backend) profileNames(ctx context.Context, s logical.Storage, level string) ([]sealed.ProfileName, error) {
	var out []sealed.ProfileName
	var walk func(prefix string) error
	walk = func(prefix string) error {
		names, err := s.List(ctx, storeProfiles+level+"/"+prefix)
		if err != nil {
			return fmt.Errorf("listing profiles: %w", err)
		}
		for _, n := range names {
			if strings.HasSuffix(n, "/") {
				if err := walk(prefix + n); err != nil {
					return err
				}
			}
			if n != "current" {
				continue
			}
			name := sealed.ProfileName(strings.TrimSuffix(prefix, "/"))
			head, err := b.profileHead(ctx, s, level, name)
			if err != nil {
				return err
			}
			if head.exists() {
				out = append(out, name)
			}
		}
		return nil
	}
	err := walk("")
	slices.Sort(out)
	return out, err
}

// profileUsing names a current profile that takes a key from a source, or "".
func (b *backend) profileUsing(ctx context.Context, s logical.Storage, source sealed.Name) (sealed.ProfileName, error) {
	for _, level := range levels {
		names, err := b.profileNames(ctx, s, level)
		if err != nil {
			return "", err
		}
		for _, name := range names {
			head, err := b.profileHead(ctx, s, level, name)
			if err != nil {
				return "", err
			}
			p, err := b.profileVersion(ctx, s, sealed.ProfileRef{Level: level, Name: name, Version: head.Version})
			if err != nil {
				return "", err
			}
			for _, spec := range p.Keys {
				if spec.Source == source {
					return name, nil
				}
			}
		}
	}
	return "", nil
}

func (b *backend) profileList(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	level := text(d, "level")
	if !slices.Contains(levels[:], level) {
		return nil, b.edge(invalid("level", "wants system, workflow or user"))
	}
	names, err := b.profileNames(ctx, req.Storage, level)
	if err != nil {
		return nil, b.edge(err)
	}
	out := []string{}
	for _, n := range names {
		out = append(out, string(n))
	}
	return logical.ListResponse(out), nil
}

func (b *backend) profileRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	ref := sealed.ProfileRef{Level: text(d, "level"), Name: sealed.ProfileName(text(d, "name"))}
	if err := validateProfileRef(ref.Level, ref.Name); err != nil {
		return nil, err
	}
	head, err := b.profileHead(ctx, req.Storage, ref.Level, ref.Name)
	if err != nil {
		return nil, err
	}
	ref.Version, _ = d.Get("version").(int)
	if ref.Version == 0 {
		if !head.exists() {
			return nil, nil
		}
		ref.Version = head.Version
	}
	if ref.Version < 0 || ref.Version > head.Version {
		return nil, nil
	}
	p, err := b.profileVersion(ctx, req.Storage, ref)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding profile: %w", err)
	}
	return map[string]any{"profile": string(doc), "version": p.Version, "newest": head.Version, "deleted": head.Deleted}, nil
}

// profileWrite logs, writes the version, and then the head, which makes it
// current.
func (b *backend) profileWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	p, err := b.parseProfile(ctx, req.Storage, text(d, "level"), text(d, "name"), text(d, "profile"))
	if err != nil {
		return nil, err
	}
	s, key := req.Storage, profileKey(p.Level, p.Name)
	defer b.locks.lock(key)()
	var head profileHead
	if _, err := get(ctx, s, key+"current", &head); err != nil {
		return nil, err
	}
	if err := checkAndSet(p.Version, head.Version, head.Deleted); err != nil {
		return nil, err
	}
	var old sealed.Profile
	if head.exists() {
		if old, err = b.profileVersion(ctx, s, sealed.ProfileRef{Level: p.Level, Name: p.Name, Version: head.Version}); err != nil {
			return nil, err
		}
	}
	p.Version = head.Version + 1
	changed, widened := profileDiff(old, p)
	body := map[string]any{"profile": p.Name, "level": p.Level, "version": p.Version, "keys": changed, "widened": widened}
	if err := b.change(ctx, req, "profile.changed", body); err != nil {
		return nil, err
	}
	defer b.nouns.newest.drop()
	defer b.nouns.profiles.drop()
	if err := put(ctx, s, key+strconv.Itoa(p.Version), p); err != nil {
		return nil, err
	}
	if err := put(ctx, s, key+"current", profileHead{Version: p.Version}); err != nil {
		return nil, err
	}
	return map[string]any{"version": p.Version}, nil
}

// parseProfile accepts a profile that belongs at the path and whose keys take
// their values from sources that exist.
func (b *backend) parseProfile(ctx context.Context, s logical.Storage, level, name, doc string) (sealed.Profile, error) {
	if err := validateProfileRef(level, sealed.ProfileName(name)); err != nil {
		return sealed.Profile{}, err
	}
	p, err := sealed.ParseProfile([]byte(doc))
	switch {
	case err != nil:
		return p, err
	case p.Level != level:
		return p, invalid("profile.level", "differs from the path")
	case string(p.Name) != name:
		return p, invalid("profile.name", "differs from the path")
	}
	for key, spec := range p.Keys {
		field := "keys." + string(key)
		cfg, err := loadSource(ctx, s, spec.Source)
		if isNotFound(err) {
			return p, invalid(field+".source", "there is no such source")
		}
		if err != nil {
			return p, err
		}
		if cfg.Type == sealed.SourceBuiltin && checkBuiltinRef(spec.Ref) != nil {
			return p, invalid(field+".ref", "wants the path of a built-in secret, without field")
		}
	}
	return p, nil
}

func (b *backend) profileDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	level, name := text(d, "level"), sealed.ProfileName(text(d, "name"))
	if err := validateProfileRef(level, name); err != nil {
		return nil, err
	}
	key := profileKey(level, name)
	defer b.locks.lock(key)()
	var head profileHead
	if _, err := get(ctx, req.Storage, key+"current", &head); err != nil || !head.exists() {
		return nil, err
	}
	if err := b.change(ctx, req, "profile.deleted", map[string]any{"profile": name, "level": level, "version": head.Version}); err != nil {
		return nil, err
	}
	defer b.nouns.newest.drop()
	return nil, put(ctx, req.Storage, key+"current", profileHead{Version: head.Version, Deleted: true})
}

// profileDiff names the keys that differ and, among them, those that became
// reachable by more, sendable to more, or weaker protected. The names come
// sorted; "*" stands for the profile's own fields.
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
	note("*", !reflect.DeepEqual(a, z), wider(old.AllowedWorkflows, now.AllowedWorkflows) || !reflect.DeepEqual(old.Requesters, now.Requesters))
	for name, spec := range now.Keys {
		was, existed := old.Keys[name]
		note(string(name), !existed || was.Digest() != spec.Digest(), !existed || widerKey(was, spec))
	}
	for name := range old.Keys {
		if _, ok := now.Keys[name]; !ok {
			note(string(name), true, false)
		}
	}
	slices.Sort(changed)
	slices.Sort(widened)
	return changed, widened
}

// widerKey errs on the side of "wider": a change it can't prove narrower counts.
func widerKey(was, now sealed.KeySpec) bool {
	for _, x := range now.Bindings {
		if !slices.ContainsFunc(was.Bindings, func(y sealed.Binding) bool { return reflect.DeepEqual(x, y) }) {
			return true
		}
	}
	return !now.Delivery.Stronger(was.Delivery) || wider(was.Agents, now.Agents) ||
		!reflect.DeepEqual(was.Workflows, now.Workflows) || !reflect.DeepEqual(was.Tags, now.Tags) ||
		!reflect.DeepEqual(was.Requesters, now.Requesters) || was.Source != now.Source || was.Ref != now.Ref ||
		was.Risk != now.Risk || now.TTL > was.TTL || now.MaxTTL > was.MaxTTL || (now.AllowWeak && !was.AllowWeak)
}

// wider reports whether now names somebody that was did not.
func wider(was, now []string) bool {
	return slices.ContainsFunc(now, func(n string) bool { return !slices.Contains(was, n) })
}
