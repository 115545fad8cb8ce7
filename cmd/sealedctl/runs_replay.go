package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/internal/workspace"
)

// replayFlags are the flags of `sealedctl runs replay`.
type replayFlags struct {
	as     string
	dryRun bool
	run    runFlags
}

func newRunsReplayCmd(a *app) *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use: "replay ID [--as recorded|current] [--dry-run] [-- COMMAND [ARG…]]", Short: "Run again what a run was", Args: cobra.MinimumNArgs(1),
		Long: `Replay makes a new run with the command, input, workspace, agent, mode, profile,
workflow, tags and sandbox of an old one. You are its requester, and every key is
decided anew.

As recorded, a key that is not as the old run had it is left out: revoked,
rotated, changed in the profile, decided by another policy bundle, or its source
is gone. As current, it is used as it is now; a revoked one never is. --dry-run
tells which is which, key by key, and makes nothing.

The engine keeps digests of command and input, and what sealed-init redacted of
them. Where nothing was redacted or cut that is enough to run them again. Else
give the command after --, and the input with --input; both, and the workspace,
have to be the same byte for byte.

  sealedctl runs replay 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 --dry-run
  sealedctl runs replay 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 --as current -- claude -p "fix it"`,
		ValidArgsFunction: a.complete(runIDs("")),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sealed.ParseRunID(args[0])
			if err != nil {
				return err
			}
			if f.as != sealed.ReplayRecorded && f.as != sealed.ReplayCurrent {
				return usagef("--as wants recorded or current")
			}
			return a.replay(cmd.Context(), id, f, args[1:])
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.as, "as", sealed.ReplayRecorded, "recorded, or current")
	fl.BoolVar(&f.dryRun, "dry-run", false, "only tell how the replay would stand to the run")
	fl.StringVar(&f.run.input, "input", "", "file with the agent's standard input, - for this one")
	fl.StringVar(&f.run.workspace, "workspace", ".", "directory to copy in, and to bring changes back to")
	fl.BoolVar(&f.run.noWorkspace, "no-workspace", false, "start with an empty workspace and bring nothing back")
	fl.StringArrayVar(&f.run.readOnly, "read-only", nil, "further host directory to show read-only (repeatable)")
	fl.BoolVar(&f.run.detach, "detach", false, "return when the run has started; follow it with runs logs -f")
	_ = cmd.RegisterFlagCompletionFunc("as", cobra.FixedCompletions([]string{sealed.ReplayRecorded, sealed.ReplayCurrent}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) replay(ctx context.Context, id sealed.RunID, f replayFlags, argv []string) error {
	e, err := a.engine(ctx)
	if err != nil {
		return err
	}
	old, err := e.Run(ctx, id)
	if err != nil {
		return err
	}
	if f.dryRun {
		r, err := e.PreviewReplay(ctx, id, f.as)
		if err != nil {
			return err
		}
		return a.print(r, func(w io.Writer) { replayTable(w, r) })
	}
	token, err := a.token()
	if err != nil {
		return err
	}
	f.run.adopt(old.Manifest)
	boot, err := f.run.replayBoot(a, old, argv)
	if err != nil {
		return err
	}
	req, ws, err := f.run.request(boot)
	if err != nil {
		return err
	}
	if err := sameAsRecorded(old, req); err != nil {
		return err
	}
	if err := a.present(ctx, e); err != nil {
		return err
	}
	r, err := enqueueReplay(ctx, e, id, f.as, req)
	if err != nil {
		return err
	}
	if err := aligned(a.stderr, func(w io.Writer) { replayTable(w, r) }); err != nil {
		return err
	}
	return launch(ctx, a, e, token, f.run, boot, req, ws, *r.Enqueued)
}

// adopt takes over what the manifest fixes.
func (f *runFlags) adopt(m sealed.Manifest) {
	f.agent, f.profile, f.workflow, f.mode = string(m.Agent.Name), string(m.Profile), string(m.Workflow), m.Mode
	f.network, f.allow, f.wallTime, f.tty = m.Sandbox.Network, m.Sandbox.Allow, m.Sandbox.WallTime.Std(), m.Sandbox.Interactive
	for _, t := range m.Tags {
		f.tags = append(f.tags, t.Name)
	}
	if m.WorkspaceDigest == workspace.EmptyDigest() {
		f.noWorkspace = true
	}
}

// replayBoot makes the Boot document from what the caller gives, and from what
// the engine has where the caller gives nothing. What the engine has was
// redacted: it is taken only if it has the digest of the original.
func (f runFlags) replayBoot(a *app, old vaultclient.Run, argv []string) (sealed.Boot, error) {
	m := old.Manifest
	if m.Mode == sealed.ModeBare {
		return sealed.Boot{}, fmt.Errorf("replaying a bare run: it had no sandbox and no keys; start its command yourself: %w", sealed.ErrInvalid)
	}
	if len(argv) == 0 {
		if old.Input == nil || sealed.CommandDigest(old.Input.Argv) != m.CommandDigest {
			return sealed.Boot{}, &hintError{err: fmt.Errorf("replaying: the engine does not have the command as it was: %w", sealed.ErrInvalid), hint: "give it after --: " + recordedCommand(old)}
		}
		argv = old.Input.Argv
	}
	boot, err := f.boot(a, argv)
	if err != nil || boot.HasInput || m.InputDigest == "" {
		return boot, err
	}
	if old.Input == nil || !old.Input.HasInput || sealed.DigestOf(sealed.DomainInput, []byte(old.Input.Input)) != m.InputDigest {
		return boot, &hintError{err: fmt.Errorf("replaying: the engine does not have the input as it was: %w", sealed.ErrInvalid), hint: "give it with --input FILE"}
	}
	boot.Input, boot.HasInput = []byte(old.Input.Input), true
	return boot, nil
}

// sameAsRecorded says what differs before the engine refuses it.
func sameAsRecorded(old vaultclient.Run, r sealed.EnqueueRequest) error {
	m := old.Manifest
	differs := func(what, hint string) error {
		return &hintError{err: fmt.Errorf("replaying: %s differs from that of run %s: %w", what, old.ID, sealed.ErrInvalid), hint: hint}
	}
	switch {
	case r.CommandDigest != m.CommandDigest:
		return differs("the command", "the run had: "+recordedCommand(old))
	case r.InputDigest != m.InputDigest:
		return differs("the input", recordedInput(old))
	case r.WorkspaceDigest != m.WorkspaceDigest:
		return differs("the workspace", "bring it back to how it was, or start a new run: sealedctl run")
	case r.Sandbox.Isolation != m.Sandbox.Isolation && os.Geteuid() == 0:
		return differs("the isolation", "the run was not started by root: replay it as its user")
	case r.Sandbox.Isolation != m.Sandbox.Isolation:
		return differs("the isolation", "the run had a uid of its own: replay it as root")
	}
	return nil
}

// recordedCommand shows the command as far as it is kept.
func recordedCommand(old vaultclient.Run) string {
	if old.Input == nil {
		return "digest " + string(old.Manifest.CommandDigest)
	}
	var words []string
	for _, w := range old.Input.Argv {
		words = append(words, strconv.Quote(w))
	}
	return strings.Join(words, " ") + " (as redacted)"
}

func recordedInput(old vaultclient.Run) string {
	switch {
	case old.Manifest.InputDigest == "":
		return "the run had none"
	case old.Input == nil:
		return "it had the digest " + string(old.Manifest.InputDigest)
	}
	return fmt.Sprintf("it had %d bytes once redacted: sealedctl runs show %s -o json", old.Input.InputBytes, old.ID)
}

// enqueueReplay is enqueue for a replay.
func enqueueReplay(ctx context.Context, e *vaultclient.Engine, id sealed.RunID, as string, r sealed.EnqueueRequest) (sealed.Replay, error) {
	idem, err := sealed.NewULID(time.Now(), nil)
	if err != nil {
		return sealed.Replay{}, err
	}
	spec := sealed.ReplaySpec{IdempotencyKey: idem, CommandDigest: r.CommandDigest, InputDigest: r.InputDigest, WorkspaceDigest: r.WorkspaceDigest}
	out, err := e.Replay(ctx, id, as, spec)
	if errors.Is(err, sealed.ErrUnavailable) && ctx.Err() == nil {
		out, err = e.Replay(ctx, id, as, spec)
	}
	if err == nil && out.Enqueued == nil {
		err = fmt.Errorf("replaying: the engine's answer has no run: %w", sealed.ErrInvalid)
	}
	return out, err
}

func replayTable(w io.Writer, r sealed.Replay) {
	row(w, "replay of", r.Of, "as "+r.As)
	if r.AgentChanged {
		row(w, "agent", "another definition is current")
	}
	if len(r.Keys) == 0 {
		return
	}
	row(w, "KEY", "SAME", "DIFFERS", "VERSION", "NOW", "DECISION", "WHY")
	for _, k := range r.Keys {
		var why []string
		for _, reason := range k.Reasons {
			why = append(why, reason.Code)
		}
		row(w, k.Name, yesNo(len(k.Differs) == 0), join(k.Differs), versionText(k.Recorded), versionText(k.Current), k.Effect, join(why))
	}
}

func versionText(v sealed.SourceVersion) string {
	if v == "" {
		return "-"
	}
	return string(v)
}
