package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// A Versioned source tells which version of a value is the newest, without
// giving the value.
type Versioned interface {
	// Newest is the newest version, or the one that ref pins if it is there.
	// None: this source does not tell. sealed.ErrNotFound: there is none.
	Newest(ctx context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error)
}

// A replay compares a run that is being planned with an old one, key by key.
// What can't be compared is called so; nothing is guessed.
type replay struct {
	old      runRow
	versions map[sealed.KeyName]sealed.SourceVersion // newest that the old run got; none: the source did not say
	answer   sealed.Replay
}

func (b *backend) newReplay(ctx context.Context, s logical.Storage, old runRow, as string) (*replay, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return nil, err
	}
	grants := slices.Clone(old.Grants)
	for _, g := range x.grants(old.ID) {
		grants = append(grants, g.summary())
	}
	re := &replay{old: old, versions: make(map[sealed.KeyName]sealed.SourceVersion), answer: sealed.Replay{Of: old.ID, As: as, Keys: []sealed.ReplayKey{}}}
	slices.SortFunc(grants, func(a, b grantSummary) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, g := range grants {
		if g.Outcome != outcomeFailed && g.Outcome != outcomeCrashed {
			re.versions[g.Key] = g.Version
		}
	}
	return re, nil
}

// compare judges the keys of a planned run. As recorded, a key that differs is
// denied in the manifest and stays denied at issue (leftOut), and one whose
// version is known is pinned to it.
func (re *replay) compare(ctx context.Context, b *backend, s logical.Storage, m *sealed.Manifest, drafts []keyDraft) error {
	m.ReplayOf, m.ReplayAs = re.old.ID, re.answer.As
	re.answer.AgentChanged = m.Agent.DefinitionDigest != re.old.m.Agent.DefinitionDigest
	re.answer.Keys = []sealed.ReplayKey{}
	for i := range m.Keys {
		mk := &m.Keys[i]
		at := slices.IndexFunc(drafts, func(d keyDraft) bool { return d.terms.name == mk.Name })
		if at < 0 { // no level gives it
			re.answer.Keys = append(re.answer.Keys, sealed.ReplayKey{Name: mk.Name, Differs: []string{sealed.ReplayKeyGone}, Effect: mk.Decision.Effect, Reasons: mk.Decision.Reasons})
			continue
		}
		k, err := re.judge(ctx, b, s, m, *mk, drafts[at].terms.spec)
		if err != nil {
			return err
		}
		if re.answer.As == sealed.ReplayRecorded {
			re.pin(mk, k)
			drafts[at].decision = mk.Decision
		}
		k.Effect, k.Reasons = mk.Decision.Effect, mk.Decision.Reasons
		re.answer.Keys = append(re.answer.Keys, k)
	}
	for _, o := range re.old.m.Keys {
		if !slices.ContainsFunc(m.Keys, func(k sealed.ManifestKey) bool { return k.Name == o.Name }) {
			re.answer.Keys = append(re.answer.Keys, sealed.ReplayKey{Name: o.Name, Differs: []string{sealed.ReplayKeyGone}, Recorded: re.versions[o.Name], Effect: sealed.EffectDeny})
		}
	}
	return nil
}

// judge names in what a key of the new run differs.
func (re *replay) judge(ctx context.Context, b *backend, s logical.Storage, m *sealed.Manifest, mk sealed.ManifestKey, spec sealed.KeySpec) (sealed.ReplayKey, error) {
	k := sealed.ReplayKey{Name: mk.Name, Recorded: re.versions[mk.Name]}
	old, had := re.old.key(mk.Name)
	for what, is := range map[string]bool{
		sealed.ReplayKeyAdded:      !had,
		sealed.ReplayKeyChanged:    had && old.SpecDigest != mk.SpecDigest,
		sealed.ReplayBundleChanged: had && (m.Bundle.Digest != re.old.m.Bundle.Digest || m.Overlay.Digest != re.old.m.Overlay.Digest),
		sealed.ReplayRevoked:       slices.ContainsFunc(mk.Decision.Reasons, func(r sealed.Reason) bool { return r.Code == sealed.ReasonRevoked }),
	} {
		if is {
			k.Differs = append(k.Differs, what)
		}
	}
	if had {
		what, newest, err := re.value(ctx, b, s, mk.Name, spec)
		if err != nil {
			return k, err
		}
		if k.Current = newest; what != "" {
			k.Differs = append(k.Differs, what)
		}
	}
	slices.Sort(k.Differs)
	return k, nil
}

// value compares the version of the value that the old run got with the newest.
func (re *replay) value(ctx context.Context, b *backend, s logical.Storage, name sealed.KeyName, spec sealed.KeySpec) (what string, newest sealed.SourceVersion, err error) {
	cfg, src, err := b.source(ctx, s, spec.Source)
	if errors.Is(err, sealed.ErrNotFound) || errors.Is(err, sealed.ErrUnavailable) {
		return sealed.ReplaySourceGone, "", nil
	}
	if err != nil {
		return "", "", err
	}
	recorded, used := re.versions[name]
	if cfg.Kind() == "dynamic" {
		return sealed.ReplayFresh, "", nil
	}
	versions, ok := src.(Versioned)
	if !ok {
		return sealed.ReplayUnknown, "", nil
	}
	limited, cancel := context.WithTimeout(ctx, sourceLimit)
	defer cancel()
	newest, err = versions.Newest(limited, spec.Ref)
	switch {
	case errors.Is(err, sealed.ErrNotFound):
		return sealed.ReplaySourceGone, "", nil
	case err != nil:
		return sealed.ReplayUnknown, "", nil // the source does not answer
	case !used:
		return sealed.ReplayNotUsed, newest, nil
	case recorded == "", newest == "":
		return sealed.ReplayUnknown, newest, nil
	case recorded != newest:
		return sealed.ReplayRotated, newest, nil
	}
	return "", newest, nil
}

// pin makes a key of the new run that of the old one, or denies it.
func (re *replay) pin(mk *sealed.ManifestKey, k sealed.ReplayKey) {
	harmless := []string{sealed.ReplayFresh, sealed.ReplayNotUsed}
	if k.Recorded != "" {
		harmless = append(harmless, sealed.ReplayUnknown) // whether it is the newest; the pin holds all the same
	}
	differs := slices.DeleteFunc(slices.Clone(k.Differs), func(d string) bool { return slices.Contains(harmless, d) })
	if len(differs) > 0 {
		mk.Decision = sealed.Combine(mk.Decision, sealed.Deny(sealed.ReasonReplay, "not as in the replayed run: "+strings.Join(differs, ", ")))
		return
	}
	mk.SourceVersion = k.Recorded
}

// leftOut reports whether a replay goes without a key because it is not as in
// the old run. That was decided once and for all at enqueue.
func leftOut(mk sealed.ManifestKey) bool {
	return slices.ContainsFunc(mk.Decision.Reasons, func(r sealed.Reason) bool { return r.Code == sealed.ReasonReplay })
}

// pinnedRef is where the value of a key is for this run.
func pinnedRef(mk sealed.ManifestKey, ref sealed.KeyRef) sealed.KeyRef {
	if mk.SourceVersion != "" {
		ref.Version = mk.SourceVersion
	}
	return ref
}

// Newest implements Versioned.
func (s builtinSource) Newest(ctx context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error) {
	if err := checkBuiltinRef(ref); err != nil {
		return "", err
	}
	meta, err := s.b.nouns.versions.get(ref.Path, func() (secretMeta, error) { return loadSecretMeta(ctx, s.storage, ref.Path) })
	if err != nil {
		return "", err
	}
	version, err := meta.pick(ref)
	if err != nil {
		return "", fmt.Errorf("reading versions: %w", err)
	}
	return sealed.VersionNumber(version), nil
}
