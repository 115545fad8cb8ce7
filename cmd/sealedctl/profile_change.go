package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
)

func newProfilePatchCmd(a *app) *cobra.Command {
	var level, file, inline string
	var end []string
	var version int
	cmd := &cobra.Command{
		Use: "patch NAME -p PATCH", Short: "Change fields of a profile", Args: cobra.ExactArgs(1),
		Long: `Patch writes a new version with what a JSON merge patch (RFC 7396) changes: null
removes a field, an object is merged, anything else replaces. With --version
nothing is written if that is not the newest. --end puts a tombstone in place of
a key: no later level brings it back, and live runs lose it at once.

  sealedctl profile patch team/release -p '{"keys": {"GITHUB_TOKEN": {"ttl": "5m"}}}'
  sealedctl profile patch team/release --end GITHUB_TOKEN`,
		ValidArgsFunction: a.complete(profileNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			patch, err := a.patchOf(file, inline, end)
			if err != nil {
				return err
			}
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			p, err := findProfile(cmd.Context(), e, level, args[0], 0)
			if err != nil {
				return err
			}
			if version == 0 {
				version = p.Newest
			}
			out := sealed.ProfileRef{Level: p.Profile.Level, Name: p.Profile.Name}
			if out.Version, err = e.PatchProfile(cmd.Context(), out.Level, out.Name, version, patch); err != nil {
				return err
			}
			return a.print(out, func(w io.Writer) { row(w, out.Level, out.Name, "version", out.Version) })
		},
	}
	levelFlag(cmd, &level)
	cmd.Flags().StringVarP(&inline, "patch", "p", "", "the patch, JSON or YAML")
	cmd.Flags().StringVarP(&file, "file", "f", "", "a file with the patch; - for standard input")
	cmd.Flags().StringSliceVar(&end, "end", nil, "end this key; may be repeated")
	cmd.Flags().IntVar(&version, "version", 0, "the version that the patch was made for (default: the newest)")
	cmd.MarkFlagsMutuallyExclusive("patch", "file", "end")
	cmd.MarkFlagsOneRequired("patch", "file", "end")
	return cmd
}

// patchOf is the patch that the flags give.
func (a *app) patchOf(file, inline string, end []string) ([]byte, error) {
	switch {
	case len(end) > 0:
		return tombstones(end)
	case file != "":
		doc, err := a.document(file, sealed.MaxProfile)
		if err != nil {
			return nil, err
		}
		return toJSON(doc)
	}
	return toJSON([]byte(inline))
}

// tombstones ends keys: every other field of theirs goes.
func tombstones(names []string) ([]byte, error) {
	keys := map[string]any{}
	for _, name := range names {
		if _, err := sealed.ParseKeyName(name); err != nil {
			return nil, err
		}
		spec := map[string]any{"tombstone": true}
		for _, field := range []string{"source", "ref", "agents", "workflows", "tags", "isolations", "requesters", "risk", "delivery", "bindings", "ttl", "max_ttl", "allow_weak"} {
			spec[field] = nil
		}
		keys[name] = spec
	}
	return jsonOf(map[string]any{"keys": keys})
}

func newProfileDeleteCmd(a *app) *cobra.Command {
	var level string
	var yes, force bool
	cmd := &cobra.Command{
		Use: "delete NAME --level LEVEL", Short: "Delete a profile", Args: cobra.ExactArgs(1),
		Long: `Delete ends a profile: new runs can't use it. It is refused while live runs pin
it, and names them; with --force they lose the keys that it defines. Its versions
stay, for the record.

  sealedctl profile delete team/release --level workflow`,
		ValidArgsFunction: a.complete(profileNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			at, name, err := profileAt(cmd.Context(), e, level, args[0])
			if err != nil {
				return err
			}
			if at == "" {
				return usagef("deleting a profile wants its --level")
			}
			if err := a.sure("delete "+at+" profile "+string(name)+"?", yes); err != nil {
				return err
			}
			err = e.DeleteProfile(cmd.Context(), at, name, force)
			if errors.Is(err, sealed.ErrConflict) {
				return &hintError{err: err, hint: fmt.Sprintf("wait for them, stop them, or: sealedctl profile delete %s --level %s --force", args[0], at)}
			}
			if err != nil {
				return err
			}
			a.talk("deleted profile %s at level %s", name, at)
			return nil
		},
	}
	levelFlag(cmd, &level)
	cmd.Flags().BoolVar(&force, "force", false, "also when live runs pin it; the log says so")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	return cmd
}
