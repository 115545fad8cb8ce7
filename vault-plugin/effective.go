package vaultplugin

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/cascade"
	"sealed.dev/sealed/internal/sealed"
)

// defaultProfile is the name of the profile at level system that binds every
// run that names any profile.
const defaultProfile sealed.ProfileName = "default"

// maxEffective bounds the memory for resolved profiles: one may have 200 keys.
const maxEffective = 256

// An effective is what pinned versions of profiles come to. It is a function of
// the versions and shared: nobody changes it.
type effective struct {
	cascade.Effective
	layers  []sealed.Profile
	digests map[sealed.KeyName]sealed.Digest
}

// terms are those of a key, also of one that has ended.
func (e *effective) terms(name sealed.KeyName) (keyTerms, bool) {
	k, ok := e.Key(name)
	if !ok {
		return keyTerms{}, false
	}
	return termsOf(k, e.digests[name]), true
}

// env are the knobs without their origins.
func (e *effective) env() map[string]string {
	out := make(map[string]string, len(e.Knobs))
	for name, k := range e.Knobs {
		out[name] = k.Value
	}
	return out
}

// layersOf names the profiles that a run of a requester may have, earliest
// first: system/default, and the named one at each level. The user level of a
// requester lies below its entity id, so that one person's profile is never
// another's.
func layersOf(name sealed.ProfileName, requester string) []sealed.ProfileRef {
	var out []sealed.ProfileRef
	if name != defaultProfile {
		out = append(out, sealed.ProfileRef{Level: sealed.LevelSystem, Name: defaultProfile})
	}
	out = append(out, sealed.ProfileRef{Level: sealed.LevelSystem, Name: name}, sealed.ProfileRef{Level: sealed.LevelWorkflow, Name: name})
	own := requester + "/" + string(name)
	if _, err := sealed.ParseProfileName(own); err == nil && !strings.Contains(requester, "/") {
		out = append(out, sealed.ProfileRef{Level: sealed.LevelUser, Name: sealed.ProfileName(own)})
	}
	return out
}

// effectiveNow resolves the newest versions under a name for a requester.
// sealed.ErrNotFound: the name exists at no level.
func (b *backend) effectiveNow(ctx context.Context, s logical.Storage, name sealed.ProfileName, requester string) (*effective, error) {
	if _, err := sealed.ParseProfileName(string(name)); err != nil {
		return nil, err
	}
	var refs []sealed.ProfileRef
	named := false
	for _, ref := range layersOf(name, requester) {
		head, err := b.profileHead(ctx, s, ref.Level, ref.Name)
		if err != nil {
			return nil, err
		}
		if !head.exists() {
			continue
		}
		ref.Version = head.Version
		refs = append(refs, ref)
		named = named || ref.Name != defaultProfile || name == defaultProfile
	}
	if !named {
		return nil, fmt.Errorf("loading profile %s: %w", name, sealed.ErrNotFound)
	}
	return b.effectivePinned(ctx, s, refs)
}

// effectivePinned resolves exactly these versions, also of deleted profiles. No
// refs give no keys.
func (b *backend) effectivePinned(ctx context.Context, s logical.Storage, refs []sealed.ProfileRef) (*effective, error) {
	return b.nouns.effective.get(refsKey(refs), func() (*effective, error) {
		e := &effective{layers: make([]sealed.Profile, 0, len(refs))}
		for _, ref := range refs {
			p, err := b.profileVersion(ctx, s, ref)
			if err != nil {
				return nil, err
			}
			e.layers = append(e.layers, p)
		}
		e.Effective = cascade.Resolve(e.layers)
		e.digests = make(map[sealed.KeyName]sealed.Digest, len(e.Keys))
		for _, k := range e.Keys {
			e.digests[k.Name] = k.Digest()
		}
		return e, nil
	})
}

// refsKey is a name for a list of versions; no name of a profile has a space.
func refsKey(refs []sealed.ProfileRef) string {
	var key strings.Builder
	for _, ref := range refs {
		key.WriteString(ref.Level)
		key.WriteByte(' ')
		key.WriteString(string(ref.Name))
		key.WriteByte(' ')
		key.WriteString(strconv.Itoa(ref.Version))
		key.WriteByte('\n')
	}
	return key.String()
}

// ended is the denial of a key that the cascade ended.
func ended(k cascade.Key) sealed.Decision {
	by := k.By.Level + " profile " + string(k.By.Name)
	msg := "no level of the profile says where its value comes from"
	switch k.Ended {
	case cascade.EndedTombstone:
		msg = by + " removes it"
	case cascade.EndedDisjoint:
		msg = by + " leaves nothing of what the levels before allow"
	}
	return sealed.Deny(sealed.ReasonCascade+k.Ended, msg)
}
