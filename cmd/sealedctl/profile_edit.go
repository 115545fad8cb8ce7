package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

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
	var waits *vaultclient.ProposedError
	if errors.As(err, &waits) { // the engine has the text now
		return errors.Join(err, os.Remove(draft.Name()))
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
