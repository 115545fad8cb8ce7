package vaultclient

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A StoredProfile is one version of a profile.
type StoredProfile struct {
	Profile sealed.Profile `json:"profile"`
	Newest  int            `json:"newest"` // version
	Deleted bool           `json:"deleted"`
	// History says who made the latest versions, oldest first; old ones are
	// forgotten, the log has them.
	History []ProfileNote `json:"history"`
}

// A ProfileNote says who made a version, or deleted the profile at it.
type ProfileNote struct {
	Version int       `json:"version"`
	Deleted bool      `json:"deleted,omitempty"`
	By      string    `json:"by"` // entity id
	At      time.Time `json:"at"`
}

// Profiles lists the names of the profiles of a level, or of those below a name.
func (e *Engine) Profiles(ctx context.Context, level string, below ...string) ([]sealed.ProfileName, error) {
	parts := []string{"profiles", level}
	for _, part := range slices.Concat(parts[1:], below) {
		if err := segment("level", part); err != nil {
			return nil, err
		}
	}
	names, _, err := e.list(ctx, nil, append(parts, below...)...)
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
	if err := f.document("history", &out.History); err != nil {
		return out, err
	}
	out.Deleted = f.bool("deleted")
	out.Newest, err = f.int("newest")
	return out, err
}

// WriteProfile writes a new version where p.Version is the newest one now (0:
// there must be none), and returns its number. Otherwise it is sealed.ErrConflict.
// One that waits for a second person is a *ProposedError.
func (e *Engine) WriteProfile(ctx context.Context, p sealed.Profile) (version int, err error) {
	if err := profileRef(p.Level, p.Name); err != nil {
		return 0, err
	}
	doc, err := encode("profile", p)
	if err != nil {
		return 0, err
	}
	f, err := e.write(ctx, map[string]any{"profile": doc}, "profiles", p.Level, string(p.Name))
	if err == nil {
		err = f.proposed()
	}
	if err != nil {
		return 0, err
	}
	return f.int("version")
}

// PatchProfile changes what a JSON merge patch (RFC 7396) says, where version is
// the newest one, and returns the number of the new one. Otherwise it is
// sealed.ErrConflict. One that waits for a second person is a *ProposedError.
func (e *Engine) PatchProfile(ctx context.Context, level string, name sealed.ProfileName, version int, patch []byte) (int, error) {
	if err := profileRef(level, name); err != nil {
		return 0, err
	}
	path := e.path("profiles", level, string(name))
	s, err := e.c.api.Logical().JSONMergePatch(ctx, path, map[string]any{"profile": string(patch), "version": version})
	if err != nil {
		return 0, edge("patching", path, err)
	}
	if s == nil {
		return 0, fields{path: path}.malformed("version")
	}
	f := fields{path, s.Data}
	if err := f.proposed(); err != nil {
		return 0, err
	}
	return f.int("version")
}

// DeleteProfile deletes a profile. One that is not there is no error. One that
// live runs pin is sealed.ErrConflict, and the error names them, unless force
// is given. One whose end would widen is a *ProposedError.
func (e *Engine) DeleteProfile(ctx context.Context, level string, name sealed.ProfileName, force bool) error {
	if err := profileRef(level, name); err != nil {
		return err
	}
	path, query := e.path("profiles", level, string(name)), map[string][]string{}
	if force {
		query["force"] = []string{"true"}
	}
	s, err := e.c.api.Logical().DeleteWithDataWithContext(ctx, path, query)
	if err != nil {
		return edge("deleting", path, err)
	}
	if s == nil {
		return nil
	}
	return fields{path, s.Data}.proposed()
}

// Preview shows what a run of requester (an entity id; empty: the token's own)
// would have. Nothing comes of it.
func (e *Engine) Preview(ctx context.Context, requester string, r sealed.PreviewRequest) (sealed.Preview, error) {
	var out sealed.Preview
	doc, err := encode("run", r)
	if err != nil {
		return out, err
	}
	path, data := "preview", map[string]any{"run": doc}
	if requester != "" {
		path, data["requester"] = "preview-as", requester
	}
	f, err := e.write(ctx, data, "profiles", path)
	if err != nil {
		return out, err
	}
	return out, f.document("preview", &out)
}

func profileRef(level string, name sealed.ProfileName) error {
	if err := segment("level", level); err != nil {
		return err
	}
	_, err := sealed.ParseProfileName(string(name))
	return err
}
