package vaultclient

import (
	"context"
	"fmt"
	"strconv"

	"sealed.dev/sealed/internal/sealed"
)

// A StoredProfile is one version of a profile.
type StoredProfile struct {
	Profile sealed.Profile `json:"profile"`
	Newest  int            `json:"newest"` // version
	Deleted bool           `json:"deleted"`
}

// Profiles lists the names of the profiles of a level.
func (e *Engine) Profiles(ctx context.Context, level string) ([]sealed.ProfileName, error) {
	if err := segment("level", level); err != nil {
		return nil, err
	}
	names, _, err := e.list(ctx, nil, "profiles", level)
	if err != nil {
		return nil, err
	}
	out := make([]sealed.ProfileName, 0, len(names))
	for _, n := range names {
		name, err := sealed.ParseProfileName(n)
		if err != nil {
			return nil, fmt.Errorf("listing profiles: %w", err)
		}
		out = append(out, name)
	}
	return out, nil
}

// Profile reads a version of a profile; 0 is the newest, and then a deleted
// profile is sealed.ErrNotFound.
func (e *Engine) Profile(ctx context.Context, level string, name sealed.ProfileName, version int) (StoredProfile, error) {
	var out StoredProfile
	if err := profileRef(level, name); err != nil {
		return out, err
	}
	query := map[string]string{}
	if version != 0 {
		query["version"] = strconv.Itoa(version)
	}
	f, err := e.read(ctx, query, "profiles", level, string(name))
	if err != nil {
		return out, err
	}
	if err := f.document("profile", &out.Profile); err != nil {
		return out, err
	}
	out.Deleted = f.bool("deleted")
	out.Newest, err = f.int("newest")
	return out, err
}

// WriteProfile writes a new version where p.Version is the newest one now (0:
// there must be none), and returns its number. Otherwise it is sealed.ErrConflict.
func (e *Engine) WriteProfile(ctx context.Context, p sealed.Profile) (version int, err error) {
	if err := profileRef(p.Level, p.Name); err != nil {
		return 0, err
	}
	doc, err := encode("profile", p)
	if err != nil {
		return 0, err
	}
	f, err := e.write(ctx, map[string]any{"profile": doc}, "profiles", p.Level, string(p.Name))
	if err != nil {
		return 0, err
	}
	return f.int("version")
}

// DeleteProfile deletes a profile. One that is not there is no error.
func (e *Engine) DeleteProfile(ctx context.Context, level string, name sealed.ProfileName) error {
	if err := profileRef(level, name); err != nil {
		return err
	}
	return e.remove(ctx, nil, "profiles", level, string(name))
}

func profileRef(level string, name sealed.ProfileName) error {
	if err := segment("level", level); err != nil {
		return err
	}
	_, err := sealed.ParseProfileName(string(name))
	return err
}
