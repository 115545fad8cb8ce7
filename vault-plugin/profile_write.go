package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// profileWrite takes a whole document. Its version is the one expected.
func (b *backend) profileWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	p, err := b.parseProfile(ctx, req.Storage, text(d, "level"), text(d, "name"), text(d, "profile"))
	if err != nil {
		return nil, err
	}
	return b.newVersion(ctx, req, refOf(p), func(sealed.Profile) (sealed.Profile, error) { return p, nil }, nil)
}

// profilePatch takes what is to change, as a JSON merge patch (RFC 7396): a
// member that is null goes, an object is merged, anything else takes the place
// of what was there.
func (b *backend) profilePatch(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	ref := sealed.ProfileRef{Level: text(d, "level"), Name: sealed.ProfileName(text(d, "name"))}
	if err := validateProfileRef(ref.Level, ref.Name); err != nil {
		return nil, err
	}
	if ref.Version, _ = d.Get("version").(int); ref.Version < 1 {
		return nil, invalid("version", "wants the version that the patch was made for")
	}
	var patch map[string]any
	if err := sealed.Decode([]byte(text(d, "profile")), sealed.MaxProfile, &patch); err != nil {
		return nil, fmt.Errorf("parsing patch: %w", err)
	}
	for _, fixed := range []string{"name", "level", "version"} {
		if _, ok := patch[fixed]; ok || patch == nil {
			return nil, invalid("profile."+fixed, "a patch is an object without name, level and version")
		}
	}
	return b.newVersion(ctx, req, ref, func(old sealed.Profile) (sealed.Profile, error) {
		if old.Version == 0 {
			return old, logical.CodedError(http.StatusNotFound, "field name: there is no such profile")
		}
		doc, err := patched(old, patch)
		if err != nil {
			return old, err
		}
		return b.parseProfile(ctx, req.Storage, ref.Level, string(ref.Name), string(doc))
	}, nil)
}

// applyProfile is a write or a deletion that a second person has confirmed.
func (b *backend) applyProfile(ctx context.Context, req *logical.Request, ref sealed.ProfileRef, yes *consent) (map[string]any, error) {
	if yes.object.Delete {
		return b.endProfile(ctx, req, ref.Level, ref.Name, yes.object.Force, yes)
	}
	p, err := b.parseProfile(ctx, req.Storage, ref.Level, string(ref.Name), yes.object.Content)
	if err != nil {
		return nil, err
	}
	return b.newVersion(ctx, req, ref, func(sealed.Profile) (sealed.Profile, error) { return p, nil }, yes)
}

// profileText is the text of the newest version; none, or a deleted one, is empty.
func (b *backend) profileText(ctx context.Context, s logical.Storage, level string, name sealed.ProfileName) (string, error) {
	head, err := readHead(ctx, s, level, name)
	if err != nil || !head.exists() {
		return "", err
	}
	p, err := readVersion(ctx, s, sealed.ProfileRef{Level: level, Name: name, Version: head.Version})
	if err != nil {
		return "", err
	}
	return textOf(p), nil
}

func patched(old sealed.Profile, patch map[string]any) ([]byte, error) {
	before, err := json.Marshal(old)
	if err != nil {
		return nil, fmt.Errorf("encoding profile: %w", err)
	}
	var doc map[string]any
	if err := json.Unmarshal(before, &doc); err != nil {
		return nil, fmt.Errorf("decoding profile: %w", err)
	}
	after, err := json.Marshal(mergePatch(doc, patch))
	if err != nil {
		return nil, fmt.Errorf("encoding profile: %w", err)
	}
	return after, nil
}

// mergePatch is the function MergePatch of RFC 7396 §2. It may change target.
func mergePatch(target, patch any) any {
	members, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	out, ok := target.(map[string]any)
	if !ok {
		out = map[string]any{}
	}
	for name, v := range members {
		if v == nil {
			delete(out, name)
		} else {
			out[name] = mergePatch(out[name], v)
		}
	}
	return out
}

// newVersion makes the next version of a profile out of the newest one (the
// zero Profile if there is none) if that has the version of ref. What widens waits
// for a second person.
func (b *backend) newVersion(ctx context.Context, req *logical.Request, ref sealed.ProfileRef, change func(old sealed.Profile) (sealed.Profile, error), yes *consent) (map[string]any, error) {
	s, key := req.Storage, profileKey(ref.Level, ref.Name)
	defer b.locks.lock(key)()
	head, err := readHead(ctx, s, ref.Level, ref.Name)
	if err != nil {
		return nil, err
	}
	var old sealed.Profile
	if head.exists() {
		if old, err = b.profileVersion(ctx, s, sealed.ProfileRef{Level: ref.Level, Name: ref.Name, Version: head.Version}); err != nil {
			return nil, err
		}
	}
	p, err := change(old)
	if err != nil {
		return nil, err
	}
	if err := checkAndSet(ref.Version, head.Version, head.Deleted); err != nil {
		return nil, err
	}
	p.Version = head.Version + 1
	changed, widened, err := b.profileChange(ctx, s, old, p)
	if err != nil {
		return nil, err
	}
	w := widening{kind: sealed.ProposalProfile, target: ref.Level + "/" + string(ref.Name), version: ref.Version,
		after: textOf(p), widens: profileWidens(old, p, widened)}
	if head.exists() {
		w.before = textOf(old)
	}
	if answer, err := b.gate(ctx, req, w, yes); answer != nil || err != nil {
		return answer, err
	}
	body := map[string]any{"profile": p.Name, "level": p.Level, "version": p.Version, "keys": changed, "widened": widened}
	if err := b.change(ctx, req, "profile.changed", yes.sign(body)); err != nil {
		return nil, err
	}
	if err := b.storeVersion(ctx, s, head, p, yes.author(b.actor(req))); err != nil {
		return nil, err
	}
	return map[string]any{"version": p.Version}, nil
}

// storeVersion writes the version, and then the head, which makes it current.
func (b *backend) storeVersion(ctx context.Context, s logical.Storage, head profileHead, p sealed.Profile, by string) error {
	key := profileKey(p.Level, p.Name)
	version := key + strconv.Itoa(p.Version)
	defer b.nouns.newest.forget(headKey(p.Level, p.Name))
	defer b.nouns.profiles.forget(version)
	if err := put(ctx, s, version, p); err != nil {
		return err
	}
	return put(ctx, s, key+"current", head.next(profileNote{Version: p.Version, By: by, At: b.now().UTC()}))
}

// parseProfile accepts a profile that belongs at the path and whose keys take
// their values from sources that exist and that its level may name.
func (b *backend) parseProfile(ctx context.Context, s logical.Storage, level, name, doc string) (sealed.Profile, error) {
	if err := validateProfileRef(level, sealed.ProfileName(name)); err != nil {
		return sealed.Profile{}, err
	}
	if level == sealed.LevelUser && !strings.Contains(name, "/") {
		return sealed.Profile{}, invalid("name", "at level user wants the entity id of its owner, a slash and a name")
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
		if spec.Source == "" {
			continue // a tombstone, or only narrower
		}
		if err := checkSource(ctx, s, "keys."+string(key), level, spec); err != nil {
			return p, err
		}
	}
	return p, nil
}

func checkSource(ctx context.Context, s logical.Storage, field, level string, spec sealed.KeySpec) error {
	cfg, err := loadSource(ctx, s, spec.Source)
	switch {
	case isNotFound(err):
		return invalid(field+".source", "there is no such source")
	case err != nil:
		return err
	case !cfg.AllowsLevel(level):
		return invalid(field+".source", "a profile at level "+level+" may not name this source")
	case cfg.Type == sealed.SourceBuiltin && checkBuiltinRef(spec.Ref) != nil:
		return invalid(field+".ref", "wants the path of a built-in secret, without field")
	}
	return nil
}

// profileDelete ends a profile, but not one that a live run pins: at its next
// use of a key that run would find less than it was promised. With force it
// does, and the entry says so.
func (b *backend) profileDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	level, name := text(d, "level"), sealed.ProfileName(text(d, "name"))
	if err := validateProfileRef(level, name); err != nil {
		return nil, err
	}
	force, _ := d.Get("force").(bool)
	return b.endProfile(ctx, req, level, name, force, nil)
}

func (b *backend) endProfile(ctx context.Context, req *logical.Request, level string, name sealed.ProfileName, force bool, yes *consent) (map[string]any, error) {
	key := profileKey(level, name)
	defer b.locks.lock(key)()
	head, err := readHead(ctx, req.Storage, level, name)
	if err != nil || !head.exists() {
		return nil, err
	}
	runs, err := b.runsPinning(ctx, req.Storage, level, name)
	if err != nil {
		return nil, err
	}
	if len(runs) > 0 && !force {
		return nil, fmt.Errorf("deleting profile: %d live runs pin it (%s): %w", len(runs), firstFew(runs), sealed.ErrConflict)
	}
	old, err := b.profileVersion(ctx, req.Storage, sealed.ProfileRef{Level: level, Name: name, Version: head.Version})
	if err != nil {
		return nil, err
	}
	none := sealed.Profile{Level: level, Name: name}
	_, widened, err := b.profileChange(ctx, req.Storage, old, none)
	if err != nil {
		return nil, err
	}
	answer, err := b.gate(ctx, req, widening{kind: sealed.ProposalProfile, target: level + "/" + string(name), version: head.Version,
		before: textOf(old), widens: profileWidens(old, none, widened), deletes: true, force: force}, yes)
	if answer != nil || err != nil {
		return answer, err
	}
	body := map[string]any{"profile": name, "level": level, "version": head.Version, "widened": widened, "forced": len(runs) > 0, "runs": len(runs)}
	if err := b.change(ctx, req, "profile.deleted", yes.sign(body)); err != nil {
		return nil, err
	}
	defer b.nouns.newest.forget(headKey(level, name))
	return nil, put(ctx, req.Storage, key+"current", head.next(profileNote{Version: head.Version, Deleted: true, By: yes.author(b.actor(req)), At: b.now().UTC()}))
}

// runsPinning are the live runs that pin a version of a profile, oldest first.
func (b *backend) runsPinning(ctx context.Context, s logical.Storage, level string, name sealed.ProfileName) ([]sealed.RunID, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return nil, err
	}
	var out []sealed.RunID
	for _, r := range x.list() {
		if !r.over() && slices.ContainsFunc(r.m.Profiles, func(p sealed.ProfileRef) bool { return p.Level == level && p.Name == name }) {
			out = append(out, r.ID)
		}
	}
	slices.Sort(out)
	return out, nil
}

// firstFew lists ids for a message.
func firstFew(ids []sealed.RunID) string {
	const few = 10
	out := strings.Join(stringsOf(ids[:min(few, len(ids))]), ", ")
	if len(ids) > few {
		out += ", …"
	}
	return out
}
