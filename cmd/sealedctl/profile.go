package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

func newProfileCmd(a *app) *cobra.Command {
	return group("profile", "Say which keys exist and who may use them",
		`A profile is a set of named keys at one level of the cascade system, workflow,
user. It is a document in YAML or JSON. Every change makes a new version, and
is made only if the version it was made from is still the newest.

  sealedctl profile create -f release.yaml
  sealedctl profile edit team/release`,
		newProfileWriteCmd(a, false), newProfileWriteCmd(a, true), newProfileShowCmd(a), newProfileListCmd(a),
		newProfileEditCmd(a), newProfileDeleteCmd(a))
}

// parseProfile reads a profile in YAML or JSON; errors name the field.
func parseProfile(doc []byte) (sealed.Profile, error) {
	strict, err := toJSON(doc)
	if err != nil {
		return sealed.Profile{}, err
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
		p, err := parseProfile(doc)
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

// findProfile reads a profile at a level, or at the strongest that has it.
func findProfile(ctx context.Context, e *vaultclient.Engine, level, name string, version int) (vaultclient.StoredProfile, error) {
	n, err := sealed.ParseProfileName(name)
	if err != nil {
		return vaultclient.StoredProfile{}, err
	}
	levels := []string{level}
	if level == "" {
		levels = []string{sealed.LevelUser, sealed.LevelWorkflow, sealed.LevelSystem}
	}
	for _, l := range levels {
		p, err := e.Profile(ctx, l, n, version)
		if !errors.Is(err, sealed.ErrNotFound) {
			return p, err
		}
	}
	return vaultclient.StoredProfile{}, fmt.Errorf("reading profile %s: %w", name, sealed.ErrNotFound)
}

func levelFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "level", "", "system, workflow or user (default: the strongest that has it)")
	_ = cmd.RegisterFlagCompletionFunc("level", cobra.FixedCompletions(
		[]string{sealed.LevelSystem, sealed.LevelWorkflow, sealed.LevelUser}, cobra.ShellCompDirectiveNoFileComp))
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
		row(w, name, k.Source, k.Ref.Path, k.Risk, k.Delivery, join(k.Agents), join(hosts))
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
	cmd := &cobra.Command{
		Use: "list", Short: "List profiles", Args: cobra.NoArgs,
		Long: `List shows the profiles of every level, or of one.

  sealedctl profile list --level workflow`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			refs, err := listProfiles(cmd.Context(), e, level)
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
	return cmd
}

// A listedProfile is one profile in a list.
type listedProfile struct {
	Level string             `json:"level"`
	Name  sealed.ProfileName `json:"name"`
}

func listProfiles(ctx context.Context, e *vaultclient.Engine, level string) ([]listedProfile, error) {
	levels := []string{level}
	if level == "" {
		levels = []string{sealed.LevelSystem, sealed.LevelWorkflow, sealed.LevelUser}
	}
	out := []listedProfile{}
	for _, l := range levels {
		names, err := e.Profiles(ctx, l)
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

func newProfileEditCmd(a *app) *cobra.Command {
	var level string
	cmd := &cobra.Command{
		Use: "edit NAME", Short: "Change a profile in your editor", Args: cobra.ExactArgs(1),
		Long: `Edit opens the newest version as YAML in $VISUAL, $EDITOR or vi, and writes what
you saved as a new version. If it is refused the draft is kept, and its path shown.

  sealedctl profile edit team/release`,
		ValidArgsFunction: a.complete(profileNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			p, err := findProfile(cmd.Context(), e, level, args[0], 0)
			if err != nil {
				return err
			}
			return a.editProfile(cmd.Context(), e, p.Profile)
		},
	}
	levelFlag(cmd, &level)
	return cmd
}

func (a *app) editProfile(ctx context.Context, e *vaultclient.Engine, old sealed.Profile) error {
	before, err := yamlOf(old)
	if err != nil {
		return err
	}
	draft, err := os.CreateTemp("", "sealed-profile-*.yaml")
	if err != nil {
		return fmt.Errorf("making draft: %w", err)
	}
	_, err = draft.Write(before)
	if err = errors.Join(err, draft.Close()); err != nil {
		return fmt.Errorf("making draft: %w", err)
	}
	after, err := a.edited(ctx, draft.Name())
	if err == nil && string(after) == string(before) {
		a.talk("unchanged")
		return os.Remove(draft.Name())
	}
	var p sealed.Profile
	if err == nil {
		p, err = parseProfile(after)
	}
	if err == nil && (p.Name != old.Name || p.Level != old.Level) {
		err = fmt.Errorf("editing profile: %w", &sealed.FieldError{Field: "name", Reason: "name and level stay; create makes another profile"})
	}
	if err == nil {
		p.Version = old.Version
		err = a.writeProfile(ctx, e, p)
	}
	if err != nil {
		return &hintError{err: err, hint: "mend the draft, then: sealedctl profile update -f " + draft.Name()}
	}
	return os.Remove(draft.Name())
}

// edited runs the person's editor, which may be a command with arguments, and
// returns what it left.
func (a *app) edited(ctx context.Context, path string) ([]byte, error) {
	editor := "vi"
	for _, name := range []string{"EDITOR", "VISUAL"} {
		if v := a.getenv(name); v != "" {
			editor = v
		}
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", editor+` "$1"`, "sh", path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stderr, a.stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("running the editor: %w", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading draft: %w", err)
	}
	return b, nil
}

func newProfileDeleteCmd(a *app) *cobra.Command {
	var level string
	var yes bool
	cmd := &cobra.Command{
		Use: "delete NAME --level LEVEL", Short: "Delete a profile", Args: cobra.ExactArgs(1),
		Long: `Delete ends a profile: new runs can't use it. Its versions stay for the runs that
pinned them; revoke stops those.

  sealedctl profile delete team/release --level workflow`,
		ValidArgsFunction: a.complete(profileNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.sure("delete "+level+" profile "+args[0]+"?", yes); err != nil {
				return err
			}
			if err := e.DeleteProfile(cmd.Context(), level, sealed.ProfileName(args[0])); err != nil {
				return err
			}
			a.talk("deleted profile %s at level %s", args[0], level)
			return nil
		},
	}
	levelFlag(cmd, &level)
	_ = cmd.MarkFlagRequired("level")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	return cmd
}
