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

func newPolicyShadowCmd(a *app) *cobra.Command {
	return group("shadow", "Try a policy beside the one in force, without any effect",
		`A shadow is a bundle that the engine asks whenever it asks the one in force, about
the very same request. What it says is logged and decides nothing. One at a time.

  sealedctl policy shadow set policies --key policy-key.pem
  sealedctl policy shadow report --since 24h
  sealedctl policy shadow remove`,
		newShadowSetCmd(a), newShadowStatusCmd(a), newShadowReportCmd(a), newShadowRemoveCmd(a))
}

func newShadowSetCmd(a *app) *cobra.Command {
	var f uploadFlags
	cmd := &cobra.Command{
		Use: "set (DIR | --default) (--key FILE | --transit MOUNT/NAME) | set FILE", Short: "Put a policy on trial", Args: cobra.MaximumNArgs(1),
		Long: `Set builds and signs as policy upload does, and puts the bundle on trial in the place
of another one; a FILE is a bundle that is signed already. Its sequence may be any. A
copy stays on this machine: upload that file to put the very same bundle in force.

  sealedctl policy shadow set policies --key policy-key.pem
  sealedctl policy shadow set policy.tar.gz`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.standard != (len(args) == 0) {
				return usagef("policy shadow set wants a directory, a bundle file or --default")
			}
			raw, e, err := f.make(cmd.Context(), a, args)
			if err != nil {
				return err
			}
			s, err := a.setShadow(cmd.Context(), e, raw)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { shadowTable(w, s) })
		},
	}
	f.register(cmd, "the trial ends at this time")
	return cmd
}

// setShadow keeps a copy first: the engine forgets a shadow when its trial ends.
func (a *app) setShadow(ctx context.Context, e *vaultclient.Engine, raw []byte) (vaultclient.PolicyShadow, error) {
	if err := a.keepOpened(ctx, raw); err != nil {
		return vaultclient.PolicyShadow{}, err
	}
	s, err := e.SetPolicyShadow(ctx, raw)
	if err == nil {
		a.talk("to put it in force later: sealedctl policy upload %s", a.keptBundle(s.Digest))
	}
	return s, err
}

func newShadowStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the policy on trial", Args: cobra.NoArgs,
		Long: `Status shows digest, sequence and expiry of the shadow, since when it is there and
who set it, and whether it is asked: an expired one is not, nor one whose signing key
was removed.

  sealedctl policy shadow status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			s, err := e.PolicyShadow(cmd.Context())
			if errors.Is(err, sealed.ErrNotFound) {
				return &hintError{err: fmt.Errorf("no policy is on trial: %w", sealed.ErrNotFound), hint: "sealedctl policy shadow set"}
			}
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { shadowTable(w, s) })
		},
	}
}

func shadowTable(w io.Writer, s vaultclient.PolicyShadow) {
	row(w, "shadow", s.Digest)
	row(w, "sequence", s.Sequence)
	row(w, "state", s.State)
	row(w, "since", stamp(s.Since))
	row(w, "set by", s.By)
	row(w, "expires", stamp(s.Expires))
}

func newShadowRemoveCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "remove", Short: "End the trial", Args: cobra.NoArgs,
		Long: `Remove ends the trial at once. What the shadow has said stays in the log. Without a
shadow, nothing happens.

  sealedctl policy shadow remove`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			return e.RemovePolicyShadow(cmd.Context())
		},
	}
}
