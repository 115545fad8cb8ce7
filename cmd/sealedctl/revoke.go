package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

type revokeFlags struct {
	reason             string
	hard, preview, yes bool
}

func newRevokeCmd(a *app) *cobra.Command {
	var f revokeFlags
	cmd := &cobra.Command{
		Use: "revoke KIND TARGET --reason R [--hard]", Short: "Put up a standing no", Args: cobra.ExactArgs(2),
		Long: `Revoke stops the use of a key (KEY or profile#KEY), profile, source, identity
(SPIFFE ID), run or tenant. From then on nothing is issued or renewed. With
--hard, what was issued is revoked at its source too, and every run that holds it
is ordered to stop. It stands until it is lifted.

On a terminal it shows first what it would stop, and asks.

  sealedctl revoke key team/release#GITHUB_TOKEN --reason "found in a paste" --hard
  sealedctl revoke run 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 --reason "went astray" --hard
  sealedctl revoke profile team/release --reason audit --preview`,
		ValidArgsFunction: a.completeRevocation,
		RunE: func(cmd *cobra.Command, args []string) error {
			r := sealed.Revocation{Kind: args[0], Target: args[1], Hard: f.hard, Reason: f.reason}
			if f.preview && r.Reason == "" {
				r.Reason = "preview"
			}
			if r.Reason == "" {
				return usagef("required flag \"reason\" not set")
			}
			if err := r.Validate(); err != nil {
				return fmt.Errorf("revoking: %w", err)
			}
			return a.revoke(cmd.Context(), r, f)
		},
	}
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for people; it is logged")
	cmd.Flags().BoolVar(&f.hard, "hard", false, "also revoke what was issued and stop the runs that hold it")
	cmd.Flags().BoolVar(&f.preview, "preview", false, "only show what a hard revocation would stop")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "don't ask")
	return cmd
}

// revoke never waits for anything but the person: a revocation that is sent is
// in force, whatever fails after it.
func (a *app) revoke(ctx context.Context, r sealed.Revocation, f revokeFlags) error {
	e, err := a.engine(ctx)
	if err != nil {
		return err
	}
	if f.preview {
		p, err := e.PreviewRevocation(ctx, r)
		if err != nil {
			return err
		}
		return a.print(p, func(w io.Writer) { previewTable(w, p) })
	}
	if !f.yes && isTerminal(a.stdin) {
		p, err := e.PreviewRevocation(ctx, r)
		if err != nil {
			return err
		}
		if r.Hard {
			if err := aligned(a.stderr, func(w io.Writer) { previewTable(w, p) }); err != nil {
				return err
			}
		}
		if err := a.confirm(fmt.Sprintf("revoke %s %s?", r.Kind, r.Target)); err != nil {
			return err
		}
	}
	done, err := e.Revoke(ctx, r)
	if err != nil {
		return err
	}
	a.revokeLeases(ctx, e, done.Runs)
	if !done.Logged {
		a.talk("warning: it is in force, but not in the log yet; the engine repeats that")
	}
	if r.Hard && !done.Enforced {
		a.talk("warning: it is in force, but not every run was told yet; the engine repeats that")
	}
	return a.print(done, func(w io.Writer) {
		row(w, "revocation", done.ID)
		row(w, "epoch", done.Epoch)
		for _, run := range done.Runs {
			row(w, "stopped run", run)
		}
		if r.Hard {
			row(w, "grants", len(done.Grants))
		}
	})
}

func previewTable(w io.Writer, p vaultclient.Preview) {
	row(w, "runs that would stop", len(p.Runs))
	for _, run := range p.Runs {
		row(w, "  "+string(run))
	}
	row(w, "credentials covered", p.Grants)
}

// revokeLeases has Vault drop the leases of stopped runs now instead of at
// their end. The grants are dead already, so a token without this right costs
// nothing but tidiness, and is told once.
func (a *app) revokeLeases(ctx context.Context, e *vaultclient.Engine, runs []sealed.RunID) {
	var failed error
	for _, run := range runs {
		if err := e.RevokeLeases(ctx, run); err != nil {
			failed = err
			if errors.Is(err, sealed.ErrDenied) {
				break
			}
		}
	}
	if failed != nil {
		a.talk("warning: the leases of stopped runs were not dropped (%v); they end by themselves", failed)
	}
}

func (a *app) completeRevocation(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	const nothing = cobra.ShellCompDirectiveNoFileComp
	if len(args) == 0 {
		return []string{sealed.RevokeKey, sealed.RevokeProfile, sealed.RevokeSource, sealed.RevokeIdentity, sealed.RevokeRun, sealed.RevokeTenant}, nothing
	}
	lists := map[string]func(context.Context, *vaultclient.Engine) ([]string, error){
		sealed.RevokeProfile: profileNames, sealed.RevokeSource: sourceNames, sealed.RevokeRun: runIDs(sealed.RunClaimed),
	}
	list, ok := lists[args[0]]
	if !ok || len(args) > 1 {
		return nil, nothing
	}
	return a.complete(list)(cmd, nil, word)
}

func newRevocationsCmd(a *app) *cobra.Command {
	return group("revocations", "See and lift revocations",
		`Revocations stand until somebody lifts them. Lifting brings back nothing that was
killed; it lets new runs have what was revoked.

  sealedctl revocations list
  sealedctl revocations lift 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 --reason "key was rotated"`,
		newRevocationsListCmd(a), newRevocationsLiftCmd(a))
}

func newRevocationsListCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "List standing revocations", Args: cobra.NoArgs,
		Long: `List shows what is revoked now; --all shows lifted ones too.

  sealedctl revocations list --all`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			found, err := e.Revocations(cmd.Context())
			if err != nil {
				return err
			}
			list := []vaultclient.StoredRevocation{}
			for _, r := range found {
				if all || r.Standing {
					list = append(list, r)
				}
			}
			return a.print(list, func(w io.Writer) {
				row(w, "ID", "KIND", "TARGET", "MODE", "STANDING", "SINCE", "REASON")
				for _, r := range list {
					mode := "soft"
					if r.Hard {
						mode = "hard"
					}
					row(w, r.ID, r.Kind, r.Target, mode, yesNo(r.Standing), stamp(r.CreatedAt), r.Reason)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "lifted ones too")
	return cmd
}

func newRevocationsLiftCmd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "lift ID --reason R", Short: "End a revocation", Args: cobra.ExactArgs(1),
		Long: `Lift ends a standing no. It is an act of its own, with a reason and an entry.

  sealedctl revocations lift 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 --reason "key was rotated"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			if err := e.LiftRevocation(cmd.Context(), args[0], reason); err != nil {
				return err
			}
			a.talk("lifted %s", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people; it is logged")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}
