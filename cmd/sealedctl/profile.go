package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

func newProfileCmd(a *app) *cobra.Command {
	return group("profile", "Say which keys exist and who may use them",
		`A profile is a set of named keys at one level of the cascade system, workflow,
user. It is a document in YAML or JSON. Every change makes a new version, and
is made only if the version it was made from is still the newest. ~/NAME is one
of your own, at level user.

  sealedctl profile create -f release.yaml
  sealedctl profile preview team/release --agent claude-code --workflow release`,
		newProfileWriteCmd(a, false), newProfileWriteCmd(a, true), newProfileShowCmd(a), newProfileListCmd(a),
		newProfileEditCmd(a), newProfilePatchCmd(a), newProfileDeleteCmd(a),
		newProfilePreviewCmd(a), newProfileMatrixCmd(a), newProfileHistoryCmd(a), newProfileDiffCmd(a))
}

// parseProfile reads a profile in YAML or JSON; errors name the field.
func parseProfile(doc []byte) (sealed.Profile, error) {
	strict, err := toJSON(doc)
	if err != nil {
		return sealed.Profile{}, err
	}
	return sealed.ParseProfile(strict)
}

// readProfile is parseProfile for a document that may say ~ in its name.
func (a *app) readProfile(ctx context.Context, doc []byte) (sealed.Profile, error) {
	strict, err := toJSON(doc)
	if err != nil {
		return sealed.Profile{}, err
	}
	if bytes.Contains(strict, []byte(`"`+ownPrefix)) {
		e, err := a.engine(ctx)
		if err != nil {
			return sealed.Profile{}, err
		}
		if strict, err = ownDocument(ctx, e, strict); err != nil {
			return sealed.Profile{}, err
		}
	}
	return sealed.ParseProfile(strict)
}

func newProfileWriteCmd(a *app, update bool) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "create -f FILE", Short: "Create a profile from a document", Args: cobra.NoArgs,
		Long: `Create writes a new profile. One that exists already is not touched. The
document is checked here first; an error names the field.

  sealedctl profile create -f release.yaml`,
	}
	if update {
		cmd.Use, cmd.Short = "update -f FILE", "Write a new version of a profile from a document"
		cmd.Long = `Update writes a new version. The field version of the document is the version it
was made from: if somebody else has changed the profile since, nothing is written.

  sealedctl profile show team/release -o yaml > release.yaml
  sealedctl profile update -f release.yaml`
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		doc, err := a.document(file, sealed.MaxProfile)
		if err != nil {
			return err
		}
		p, err := a.readProfile(cmd.Context(), doc)
		if err != nil {
			return err
		}
		if !update {
			p.Version = 0
		} else if p.Version < 1 {
			return fmt.Errorf("updating profile: %w", &sealed.FieldError{Field: "version", Reason: "wants the version that the document was made from"})
		}
		e, err := a.engine(cmd.Context())
		if err != nil {
			return err
		}
		return a.writeProfile(cmd.Context(), e, p)
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the profile, YAML or JSON; - for standard input")
	_ = cmd.MarkFlagRequired("file")
	return cmd
}

func (a *app) writeProfile(ctx context.Context, e *vaultclient.Engine, p sealed.Profile) error {
	version, err := e.WriteProfile(ctx, p)
	if errors.Is(err, sealed.ErrConflict) {
		return &hintError{err: err, hint: "sealedctl profile show " + string(p.Name) + " --level " + p.Level + " -o yaml"}
	}
	if err != nil {
		return err
	}
	out := sealed.ProfileRef{Level: p.Level, Name: p.Name, Version: version}
	return a.print(out, func(w io.Writer) { row(w, out.Level, out.Name, "version", out.Version) })
}

func newProfileShowCmd(a *app) *cobra.Command {
	var level string
	var version int
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a profile", Args: cobra.ExactArgs(1),
		Long: `Show prints a profile: its newest version or, with --version, another. With
-o yaml it is the document that update takes.

  sealedctl profile show team/release -o yaml`,
		ValidArgsFunction: a.complete(profileNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			p, err := findProfile(cmd.Context(), e, level, args[0], version)
			if err != nil {
				return err
			}
			if p.Deleted {
				a.talk("this profile was deleted")
			}
			return a.print(p.Profile, func(w io.Writer) { profileTable(w, p.Profile) })
		},
	}
	levelFlag(cmd, &level)
	cmd.Flags().IntVar(&version, "version", 0, "this version instead of the newest")
	return cmd
}

func profileTable(w io.Writer, p sealed.Profile) {
	row(w, "name", p.Name)
	row(w, "level", p.Level)
	row(w, "version", p.Version)
	row(w, "owner", p.Owner)
	row(w, "description", p.Description)
	row(w, "tags", join(p.Tags))
	row(w, "workflows", join(p.AllowedWorkflows))
	row(w, "requesters", requesters(p.Requesters))
	row(w)
	row(w, "KEY", "SOURCE", "PATH", "RISK", "DELIVERY", "AGENTS", "HOSTS")
	for _, name := range slices.Sorted(maps.Keys(p.Keys)) {
		k := p.Keys[name]
		var hosts []string
		for _, b := range k.Bindings {
			hosts = append(hosts, b.Host)
		}
		source := string(k.Source)
		switch {
		case k.Tombstone:
			source = "(ended)"
		case source == "":
			source = "(narrows)"
		}
		row(w, name, source, dash(k.Ref.Path), dash(k.Risk), dash(string(k.Delivery)), join(k.Agents), join(hosts))
	}
}

func requesters(r sealed.Requesters) string {
	out := append([]string{}, r.Groups...)
	for _, name := range slices.Sorted(maps.Keys(r.Claims)) {
		out = append(out, name+"="+r.Claims[name])
	}
	return join(out)
}

func newProfileListCmd(a *app) *cobra.Command {
	var level string
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "List profiles", Args: cobra.NoArgs,
		Long: `List shows the profiles of every level, or of one. At level user these are your
own, or with --all everybody's.

  sealedctl profile list --level workflow`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var below []string
			if level == sealed.LevelUser && !all {
				id, err := e.Client().Entity(cmd.Context())
				if err != nil {
					return fmt.Errorf("finding your own profiles: %w", err)
				}
				below = []string{id}
			}
			refs, err := listProfiles(cmd.Context(), e, level, below...)
			if err != nil {
				return err
			}
			return a.print(refs, func(w io.Writer) {
				row(w, "LEVEL", "NAME")
				for _, r := range refs {
					row(w, r.Level, r.Name)
				}
			})
		},
	}
	levelFlag(cmd, &level)
	cmd.Flags().Lookup("level").Usage = "system, workflow or user (default: all)"
	cmd.Flags().BoolVar(&all, "all", false, "at level user, everybody's")
	return cmd
}

// A listedProfile is one profile in a list.
type listedProfile struct {
	Level string             `json:"level"`
	Name  sealed.ProfileName `json:"name"`
}

func listProfiles(ctx context.Context, e *vaultclient.Engine, level string, below ...string) ([]listedProfile, error) {
	levels := []string{level}
	if level == "" {
		levels = []string{sealed.LevelSystem, sealed.LevelWorkflow, sealed.LevelUser}
	}
	out := []listedProfile{}
	for _, l := range levels {
		names, err := e.Profiles(ctx, l, below...)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			out = append(out, listedProfile{l, n})
		}
	}
	return out, nil
}

func profileNames(ctx context.Context, e *vaultclient.Engine) ([]string, error) {
	all, err := listProfiles(ctx, e, "")
	var out []string
	for _, p := range all {
		out = append(out, string(p.Name))
	}
	slices.Sort(out)
	return slices.Compact(out), err
}
