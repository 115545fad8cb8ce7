package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

func newRunsCmd(a *app) *cobra.Command {
	return group("runs", "See, follow, stop and replay runs",
		`Runs shows what the engine knows of runs: names, digests and states. logs shows
the redacted output of a run of this machine.

  sealedctl runs list --state claimed
  sealedctl runs logs -f 01JD0Z5X7RS3X7Q4K5M6N7P8Q9
  sealedctl runs stop 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 --reason "took too long"`,
		newRunsListCmd(a), newRunsShowCmd(a), newRunsLogsCmd(a), newRunsStopCmd(a), newRunsReplayCmd(a))
}

func newRunsListCmd(a *app) *cobra.Command {
	var f vaultclient.RunFilter
	var after, since, until string
	cmd := &cobra.Command{
		Use: "list", Short: "List runs, newest first", Args: cobra.NoArgs,
		Long: `List shows runs, newest first, of which all filters hold. --since and --until
take a time or how long ago. --after pages on.

  sealedctl runs list --state claimed --limit 20
  sealedctl runs list --since 24h --agent claude-code --tag production`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			f.After = sealed.RunID(after)
			if f.Since, err = moment("since", since); err != nil {
				return err
			}
			if f.Until, err = moment("until", until); err != nil {
				return err
			}
			list, err := e.Runs(cmd.Context(), f)
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) {
				row(w, "ID", "STATE", "AGENT", "MODE", "PROFILE", "WORKFLOW", "REQUESTER", "CREATED")
				for _, r := range list {
					row(w, r.ID, r.State, r.Agent, r.Mode, r.Profile, r.Workflow, r.Requester, stamp(r.CreatedAt))
				}
			})
		},
	}
	cmd.Flags().StringVar(&f.State, "state", "", "enqueued, claimed, finished, closed, aborted or expired")
	cmd.Flags().StringVar(&f.Agent, "agent", "", "only runs of this agent")
	cmd.Flags().StringVar(&f.Profile, "profile", "", "only runs under this profile")
	cmd.Flags().StringVar(&f.Workflow, "workflow", "", "only runs of this workflow")
	cmd.Flags().StringVar(&f.Requester, "requester", "", "only runs of this person: name, entity id or person claim")
	cmd.Flags().StringVar(&f.Tag, "tag", "", "only runs with this tag")
	cmd.Flags().StringVar(&since, "since", "", "only runs from then on: a time (RFC 3339), or how long ago (24h)")
	cmd.Flags().StringVar(&until, "until", "", "only runs before that: a time (RFC 3339), or how long ago (24h)")
	cmd.Flags().StringVar(&after, "after", "", "only runs older than this one")
	cmd.Flags().IntVar(&f.Limit, "limit", 0, "at most so many (default 100, at most 1000)")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{sealed.RunEnqueued, sealed.RunClaimed, sealed.RunFinished,
		sealed.RunClosed, sealed.RunAborted, sealed.RunExpired}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// moment reads a time, or a duration as so long ago; "" is no time.
func moment(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return at, usagef("--%s wants a time such as 2026-01-02T15:04:05Z, or a duration such as 24h", flag)
	}
	return at, nil
}

func newRunsShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a run: manifest, history, grants, approvals", Args: cobra.ExactArgs(1),
		Long: `Show prints what was fixed when the run was enqueued, and what has happened since.
The manifest was compared with its digest. Command and input are shown as
sealed-init redacted them before the agent started, the input with its first 256
bytes; -o json has what is kept.

  sealedctl runs show 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
		ValidArgsFunction: a.complete(runIDs("")),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sealed.ParseRunID(args[0])
			if err != nil {
				return err
			}
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			r, err := e.Run(cmd.Context(), id)
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { runTable(w, r) })
		},
	}
}

func runTable(w io.Writer, r vaultclient.Run) {
	m := r.Manifest
	row(w, "run", r.ID)
	row(w, "state", r.State)
	row(w, "agent", m.Agent.Name)
	row(w, "mode", m.Mode)
	row(w, "requester", m.Requester.Name)
	row(w, "workflow", string(m.Workflow))
	if m.ReplayOf != "" {
		row(w, "replay of", m.ReplayOf, "as "+m.ReplayAs)
	}
	row(w, "isolation", m.Sandbox.Isolation)
	row(w, "network", m.Sandbox.Network)
	row(w, "manifest", r.ManifestDigest)
	row(w, "identity", r.SPIFFEID)
	inputRows(w, r.Input)
	row(w)
	row(w, "KEY", "DECISION", "RISK", "DELIVERY", "ORIGIN", "APPROVAL", "WHY")
	for _, k := range m.Keys {
		var why []string
		for _, reason := range k.Decision.Reasons {
			why = append(why, reason.Code)
		}
		row(w, k.Name, k.Decision.Effect, k.Risk, k.Delivery, string(k.Origin.Level)+"/"+string(k.Origin.Name), string(k.Approval), join(why))
	}
	row(w)
	row(w, "GRANT", "KEY", "STATE", "OUTCOME", "SINCE")
	for _, g := range r.Grants {
		row(w, g.ID, g.Key, g.State, g.Outcome, stamp(g.ChangedAt))
	}
	row(w)
	row(w, "AT", "STATE", "BY", "WHY")
	for _, h := range r.History {
		row(w, stamp(h.At), h.State, h.By, h.Reason)
	}
	for _, id := range slices.Sorted(maps.Keys(r.Approvals)) {
		row(w, "approval", id, r.Approvals[id])
	}
}

// inputRows shows command and input as init redacted them, quoted, because they
// are whatever somebody typed. -o json has them whole.
func inputRows(w io.Writer, in *sealed.RedactedInput) {
	if in == nil {
		return
	}
	var words []string
	kept := len(in.Argv) - 1 // what stood between the arguments
	for _, a := range in.Argv {
		kept += len(a)
		words = append(words, strconv.Quote(a))
	}
	row(w, "command", strings.Join(words, " ")+cut(kept, in.ArgvBytes))
	if in.HasInput {
		const line = 256
		shown := in.Input[:min(len(in.Input), line)]
		row(w, "input", strconv.Quote(strings.ToValidUTF8(shown, ""))+cut(len(shown), in.InputBytes))
		row(w, "input digest", in.InputDigest, "of the redacted input")
	}
}

func cut(shown, whole int) string {
	if shown >= whole {
		return ""
	}
	return fmt.Sprintf(" (%d of %d bytes)", shown, whole)
}

func newRunsStopCmd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "stop ID --reason R", Short: "Order a run to stop", Args: cobra.ExactArgs(1),
		Long: `Stop kills the run's grants at once and orders its sandbox to end.

  sealedctl runs stop 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 --reason "took too long"`,
		ValidArgsFunction: a.complete(runIDs(sealed.RunClaimed)),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sealed.ParseRunID(args[0])
			if err != nil {
				return err
			}
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			if err := e.StopRun(cmd.Context(), id, reason); err != nil {
				return err
			}
			a.talk("stopped run %s", id)
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people; it is logged")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

// runIDs lists runs in a state for completion.
func runIDs(state string) func(context.Context, *vaultclient.Engine) ([]string, error) {
	return func(ctx context.Context, e *vaultclient.Engine) ([]string, error) {
		list, err := e.Runs(ctx, vaultclient.RunFilter{State: state, Limit: 20})
		var out []string
		for _, r := range list {
			out = append(out, string(r.ID)+"\t"+string(r.Agent)+" "+r.State)
		}
		return out, err
	}
}
