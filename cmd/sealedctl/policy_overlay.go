package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	opabundle "sealed.dev/sealed/opa-bundle"
)

func newPolicyOverlayCmd(a *app) *cobra.Command {
	return group("overlay", "Lay a second policy over the one in force, which can only narrow",
		`An overlay is a bundle that the engine asks what it asks the policy in force. The
stronger answer counts: what either denies is denied. It is for what one tenant has
besides the policy that all have. One at a time.

  sealedctl policy overlay upload hours --key policy-key.pem
  sealedctl policy overlay status
  sealedctl policy overlay remove`,
		newOverlayUploadCmd(a), newOverlayStatusCmd(a), newOverlayRemoveCmd(a))
}

func newOverlayUploadCmd(a *app) *cobra.Command {
	f := uploadFlags{overlay: true}
	cmd := &cobra.Command{
		Use: "upload DIR (--key FILE | --transit MOUNT/NAME) | upload FILE", Short: "Lay a policy over the one in force", Args: cobra.ExactArgs(1),
		Long: `Upload builds and signs as policy upload does, shows what would have been decided
otherwise, asks on a terminal, and lays the bundle over the policy in force, in the
place of another overlay. It counts at once, for runs that are there as well. Overlays
have sequences of their own. Once it has expired, everything is denied.

  sealedctl policy overlay upload hours --key policy-key.pem
  sealedctl policy overlay upload hours.tar.gz --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, e, err := f.make(cmd.Context(), a, args)
			if err != nil {
				return err
			}
			if err := a.showEffect(cmd.Context(), raw, f.compareTo, true); err != nil {
				return err
			}
			if err := a.sure("Lay this over the policy in force?", f.yes); err != nil {
				return err
			}
			if err := a.keepOpened(cmd.Context(), raw); err != nil {
				return err
			}
			o, err := e.UploadPolicyOverlay(cmd.Context(), raw)
			if err != nil {
				return err
			}
			return a.print(o, func(w io.Writer) { overlayTable(w, o) })
		},
	}
	f.registerSigning(cmd, "everything is denied after this time")
	f.registerEffect(cmd)
	return cmd
}

// nextOverlay is the sequence above the floor of overlays.
func nextOverlay(ctx context.Context, e *vaultclient.Engine) (uint64, error) {
	now, err := e.PolicyOverlay(ctx)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		return 0, err
	}
	return now.Sequence + 1, nil
}

func newOverlayStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the overlay", Args: cobra.NoArgs,
		Long: `Status shows digest, sequence and expiry of the overlay, and whether it is in force.
An expired one denies everything; with one that can't be opened (unusable: its signing
key was removed) or that a restored snapshot has lost (awaited), nothing is decided.

  sealedctl policy overlay status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			o, err := e.PolicyOverlay(cmd.Context())
			if errors.Is(err, sealed.ErrNotFound) || err == nil && o.State == "removed" {
				return &hintError{err: fmt.Errorf("there is no overlay: %w", sealed.ErrNotFound), hint: "sealedctl policy overlay upload"}
			}
			if err != nil {
				return err
			}
			return a.print(o, func(w io.Writer) { overlayTable(w, o) })
		},
	}
}

func overlayTable(w io.Writer, o vaultclient.PolicyOverlay) {
	row(w, "overlay", o.Digest)
	row(w, "sequence", o.Sequence)
	row(w, "state", o.State)
	row(w, "expires", stamp(o.Expires))
	row(w, "activated", stamp(o.ActivatedAt))
}

func newOverlayRemoveCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "remove", Short: "Take the overlay away, with a second person", Args: cobra.NoArgs,
		Long: `Remove takes the overlay away, which lets more happen: it waits for a second person,
unless the mount asks none. Runs that began under the overlay stay under it. Its
sequence stays the floor for the next one. Without an overlay, nothing happens.

  sealedctl policy overlay remove`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			return e.RemovePolicyOverlay(cmd.Context())
		},
	}
}

// layers are a policy and the overlay over it, if there is one, which decide together.
type layers []decisionlog.Decider

// Decide implements decisionlog.Decider as the engine combines.
func (l layers) Decide(ctx context.Context, question string, input any, at time.Time) sealed.Decision {
	var all []sealed.Decision
	for _, d := range l {
		all = append(all, d.Decide(ctx, question, input, at))
	}
	return sealed.Combine(all...)
}

// inForce opens what decides now.
func (a *app) inForce(ctx context.Context) (base, overlay *opabundle.Inspection, err error) {
	e, err := a.engine(ctx)
	if err != nil {
		return nil, nil, err
	}
	now, err := e.PolicyStatus(ctx)
	if err != nil {
		return nil, nil, err
	}
	if base, err = inspectStored(ctx, e, now.Digest); err != nil || now.Overlay.Digest == "" {
		return base, nil, err
	}
	overlay, err = inspectStored(ctx, e, now.Overlay.Digest)
	return base, overlay, err
}

// over lays what is not nil over a base.
func over(base, overlay *opabundle.Inspection) layers {
	if overlay == nil {
		return layers{base}
	}
	return layers{base, overlay}
}
