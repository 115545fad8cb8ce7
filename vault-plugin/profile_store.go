package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// levels of the cascade, the last first.
var levels = [...]string{sealed.LevelUser, sealed.LevelWorkflow, sealed.LevelSystem}

// maxNotes bounds what a head says of earlier versions.
const maxNotes = 100

// profileHead names the newest version. A deleted profile keeps its head, so
// that a version, once pinned by a run, never means other content.
type profileHead struct {
	Version int  `json:"version"`
	Deleted bool `json:"deleted,omitempty"`
	// Notes say who made the latest versions, oldest first.
	Notes []profileNote `json:"notes,omitempty"`
}

// A profileNote says who made a version, or deleted the profile at it.
type profileNote struct {
	Version int       `json:"version"`
	Deleted bool      `json:"deleted,omitempty"`
	By      string    `json:"by"`
	At      time.Time `json:"at"`
}

func (h profileHead) exists() bool { return h.Version > 0 && !h.Deleted }

// next returns the head after a change.
func (h profileHead) next(n profileNote) profileHead {
	notes := append(slices.Clone(h.Notes), n)
	return profileHead{Version: n.Version, Deleted: n.Deleted, Notes: notes[max(0, len(notes)-maxNotes):]}
}

func refOf(p sealed.Profile) sealed.ProfileRef {
	return sealed.ProfileRef{Level: p.Level, Name: p.Name, Version: p.Version}
}

// profileVersion returns exactly one version, also of a deleted profile. The
// caller must not change its maps and slices.
func (b *backend) profileVersion(ctx context.Context, s logical.Storage, ref sealed.ProfileRef) (sealed.Profile, error) {
	if err := validateProfileRef(ref.Level, ref.Name); err != nil {
		return sealed.Profile{}, err
	}
	key := profileKey(ref.Level, ref.Name) + strconv.Itoa(ref.Version)
	return b.nouns.profiles.get(key, func() (sealed.Profile, error) { return readVersion(ctx, s, ref) })
}

func readVersion(ctx context.Context, s logical.Storage, ref sealed.ProfileRef) (sealed.Profile, error) {
	key := profileKey(ref.Level, ref.Name) + strconv.Itoa(ref.Version)
	var raw json.RawMessage
	ok, err := get(ctx, s, key, &raw)
	if err != nil {
		return sealed.Profile{}, err
	}
	if !ok {
		return sealed.Profile{}, fmt.Errorf("loading profile %s: %w", ref.Name, sealed.ErrNotFound)
	}
	p, err := sealed.ParseProfile(raw)
	if err != nil || refOf(p) != ref {
		return sealed.Profile{}, fmt.Errorf("decoding stored %s: malformed", key)
	}
	return p, nil
}

// profileHead returns the head, the zero one if there is none: that too is
// remembered, because a run asks for every level.
func (b *backend) profileHead(ctx context.Context, s logical.Storage, level string, name sealed.ProfileName) (profileHead, error) {
	return b.nouns.newest.get(headKey(level, name), func() (profileHead, error) { return readHead(ctx, s, level, name) })
}

func headKey(level string, name sealed.ProfileName) string { return level + "/" + string(name) }

func readHead(ctx context.Context, s logical.Storage, level string, name sealed.ProfileName) (head profileHead, err error) {
	_, err = get(ctx, s, profileKey(level, name)+"current", &head)
	return head, err
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

// profileNames walks one level of the store, or what lies below a prefix that
// ends with a slash: a profile is where a head is. It remembers nothing: a walk
// over many profiles would push out what runs use.
func profileNames(ctx context.Context, s logical.Storage, level, below string) ([]sealed.ProfileName, error) {
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
			if n != "current" || prefix == "" {
				continue
			}
			name := sealed.ProfileName(strings.TrimSuffix(prefix, "/"))
			head, err := readHead(ctx, s, level, name)
			if err != nil {
				return err
			}
			if head.exists() {
				out = append(out, name)
			}
		}
		return nil
	}
	err := walk(below)
	slices.Sort(out)
	return out, err
}

// profileUsing names a current profile that takes a key from a source, or "".
func (b *backend) profileUsing(ctx context.Context, s logical.Storage, source sealed.Name) (sealed.ProfileName, error) {
	for _, level := range levels {
		names, err := profileNames(ctx, s, level, "")
		if err != nil {
			return "", err
		}
		for _, name := range names {
			head, err := readHead(ctx, s, level, name)
			if err != nil {
				return "", err
			}
			p, err := readVersion(ctx, s, sealed.ProfileRef{Level: level, Name: name, Version: head.Version})
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
