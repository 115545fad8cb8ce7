package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/vaultclient"
)

func newAuditRollbackCmd(a *app) *cobra.Command {
	return group("rollback", "A restored snapshot: what is known of it, and your word that it was meant",
		`When a snapshot of Vault is restored, the log goes back with it. The first
sealedctl that has seen more of the log proves that to the engine, which issues
nothing from then on. show tells what was lost; attest ends it.

  sealedctl audit rollback show
  sealedctl audit rollback attest --lost-size 812 --policy-sequence 7 --reason "restored after the outage of 2 May"`,
		newRollbackShowCmd(a), newRollbackAttestCmd(a))
}

func newRollbackShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show whether the mount's storage went back", Args: cobra.NoArgs,
		Long: `Show tells whether the engine was shown a proof that its storage went back, and
the two heads of the log that are the proof. Who configures the mount may ask.

  sealedctl audit rollback show -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			r, err := e.Rollback(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { rollbackTable(w, r) })
		},
	}
}

func rollbackTable(w io.Writer, r vaultclient.Rollback) {
	if !r.RolledBack {
		row(w, "rolled back", "no proof of it was presented")
		return
	}
	row(w, "rolled back", "yes: nothing is issued until it is attested")
	row(w, "entries that were seen", r.LostSize)
	row(w, "entries that were found", r.RestoredSize)
	row(w, "noticed", r.SeenAt)
	row(w, "shown by", r.SeenBy)
}

type attestFlags struct {
	lost, policy, overlay uint64
	reason                string
	yes                   bool
}

func newRollbackAttestCmd(a *app) *cobra.Command {
	var f attestFlags
	cmd := &cobra.Command{
		Use: "attest --lost-size N --policy-sequence N --reason R", Short: "Say that the restore was meant, and go on", Args: cobra.NoArgs,
		Long: `Attest says that the restore by which --lost-size entries were lost was meant. The
numbers of the lost entries are never used again, every run that is not over is
aborted, and no policy below --policy-sequence, the newest that ever was in force,
is taken; the same goes for --overlay-sequence, of a tenant that ever had an overlay:
nothing is decided until it, or the word of two persons, is there. Revocations of the lost history are gone: make them again before this.

  sealedctl audit rollback attest --lost-size 812 --policy-sequence 7 --reason "restored after the outage of 2 May"`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.attestRollback(cmd.Context(), f) },
	}
	cmd.Flags().Uint64Var(&f.lost, "lost-size", 0, "entries of the lost head, as show tells")
	cmd.Flags().Uint64Var(&f.policy, "policy-sequence", 0, "sequence of the newest policy that ever was in force")
	cmd.Flags().Uint64Var(&f.overlay, "overlay-sequence", 0, "sequence of the newest overlay that ever was in force; 0 for none")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for people; it is logged")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "don't ask")
	for _, name := range []string{"lost-size", "policy-sequence", "reason"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

func (a *app) attestRollback(ctx context.Context, f attestFlags) error {
	if f.lost == 0 {
		return usagef("--lost-size wants the number of entries that show tells")
	}
	e, err := a.engine(ctx)
	if err != nil {
		return err
	}
	if !f.yes && isTerminal(a.stdin) {
		r, err := e.Rollback(ctx)
		if err != nil {
			return err
		}
		if err := aligned(a.stderr, func(w io.Writer) { rollbackTable(w, r) }); err != nil {
			return err
		}
		if err := a.confirm(fmt.Sprintf("give up %d entries and abort every run?", f.lost)); err != nil {
			return err
		}
	}
	aborted, err := e.AttestRollback(ctx, f.lost, f.policy, f.overlay, f.reason)
	if err != nil {
		return err
	}
	out := struct {
		Aborted int `json:"aborted"`
	}{aborted}
	return a.line(out, func() { a.printf("attested; %d runs aborted\n", aborted) })
}
