package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

// bundleLife is how long a bundle holds unless told otherwise.
const bundleLife = 90 * 24 * time.Hour

type uploadFlags struct {
	key       signingFlags
	revision  string
	sequence  uint64
	life      time.Duration
	standard  bool
	yes       bool
	compareTo recorded
	overlay   bool   // what is built is to be laid over the policy
	above     uint64 // the next sequence is above this one, too
}

func newPolicyUploadCmd(a *app) *cobra.Command {
	var f uploadFlags
	var all bool
	cmd := &cobra.Command{
		Use: "upload (DIR | --default) (--key FILE | --transit MOUNT/NAME) | upload FILE", Short: "Put a policy in force", Args: cobra.MaximumNArgs(1),
		Long: `Upload builds a bundle from the Rego files below DIR (package sealed.…) or from
the default policies, signs it, and puts it in force. The sequence is one above that
in force unless it is given. A FILE is a bundle that is signed already. Before that,
it shows what would have been decided otherwise of the requests of the last week (of
--since, or of --from), if the token may read the log, and asks on a terminal. A copy
of the bundle stays on this machine for policy replay. --all-tenants uploads it to
every mount of the engine that the token can reach, and says which are behind.

  sealedctl policy upload policies --key policy-key.pem
  sealedctl policy upload policy.tar.gz --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all {
				return a.uploadAll(cmd.Context(), &f, args)
			}
			raw, e, err := f.make(cmd.Context(), a, args)
			if err != nil {
				return err
			}
			if err := a.showEffect(cmd.Context(), raw, f.compareTo, false); err != nil {
				return err
			}
			if err := a.sure("Put this policy in force?", f.yes); err != nil {
				return err
			}
			status, err := a.uploadBundle(cmd.Context(), e, raw)
			if err != nil {
				return err
			}
			return a.print(status, func(w io.Writer) { policyTable(w, status) })
		},
	}
	f.register(cmd, "the bundle denies everything after this time")
	f.registerEffect(cmd)
	cmd.Flags().BoolVar(&all, "all-tenants", false, "upload to every mount that the token can reach")
	return cmd
}

// registerEffect adds the flags of what is shown before an upload.
func (f *uploadFlags) registerEffect(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.DurationVar(&f.compareTo.since, "since", 7*24*time.Hour, "compare the decisions of this time; 0 for none")
	fl.StringVar(&f.compareTo.from, "from", "", "compare the decisions in this file or directory")
	fl.BoolVarP(&f.yes, "yes", "y", false, "don't ask")
}

// register adds the flags that say what bundle is made; expires is what its end
// means.
func (f *uploadFlags) register(cmd *cobra.Command, expires string) {
	f.registerSigning(cmd, expires)
	cmd.Flags().BoolVar(&f.standard, "default", false, "the policies that come with sealedctl")
}

// registerSigning is register without the default policies.
func (f *uploadFlags) registerSigning(cmd *cobra.Command, expires string) {
	f.key.register(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.revision, "revision", "", "free text for people, such as a commit")
	fl.Uint64Var(&f.sequence, "sequence", 0, "sequence of the bundle (default: the next one)")
	fl.DurationVar(&f.life, "expires-in", bundleLife, expires)
}

// make returns the signed bundle that flags and arguments ask for.
func (f *uploadFlags) make(ctx context.Context, a *app, args []string) ([]byte, *vaultclient.Engine, error) {
	maker, err := f.maker(args)
	if err != nil {
		return nil, nil, err
	}
	if f.life <= 0 {
		return nil, nil, usagef("--expires-in wants a time to come")
	}
	return maker(ctx, a)
}

type bundleMaker = func(context.Context, *app) ([]byte, *vaultclient.Engine, error)

// maker says where the signed bundle comes from.
func (f *uploadFlags) maker(args []string) (bundleMaker, error) {
	if f.standard != (len(args) == 0) {
		return nil, usagef("policy upload wants a directory or --default, not both")
	}
	if f.standard {
		return f.building(rego.FS()), nil
	}
	st, err := os.Stat(args[0])
	if err != nil {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	if st.IsDir() {
		return f.building(os.DirFS(args[0])), nil
	}
	if f.key != (signingFlags{}) || f.sequence != 0 || f.revision != "" {
		return nil, usagef("a bundle file has its signature, sequence and revision already")
	}
	return func(ctx context.Context, a *app) ([]byte, *vaultclient.Engine, error) {
		raw, err := readBundleFile(args[0])
		if err != nil {
			return nil, nil, err
		}
		e, err := a.engine(ctx)
		return raw, e, err
	}, nil
}

// building builds and signs, with the next sequence unless one is given.
func (f *uploadFlags) building(source fs.FS) bundleMaker {
	return func(ctx context.Context, a *app) ([]byte, *vaultclient.Engine, error) {
		key, err := f.key.signer(ctx, a)
		if err != nil {
			return nil, nil, err
		}
		e, err := a.engine(ctx)
		if err != nil {
			return nil, nil, err
		}
		m := opabundle.Manifest{Revision: f.revision, Sequence: f.sequence, Expires: time.Now().Add(f.life), Overlay: f.overlay}
		if m.Sequence == 0 {
			next := nextPolicy
			if f.overlay {
				next = nextOverlay
			}
			if m.Sequence, err = next(ctx, e); err != nil {
				return nil, nil, err
			}
			m.Sequence = max(m.Sequence, f.above+1)
		}
		id := f.key.id
		if id == "" {
			if id, err = keyIDOf(ctx, e, key); err != nil {
				return nil, nil, err
			}
		}
		raw, err := opabundle.Build(ctx, source, m)
		if err != nil {
			return nil, nil, err
		}
		raw, err = opabundle.Sign(ctx, raw, key, id)
		return raw, e, err
	}
}

// nextPolicy is the sequence above the policy in force.
func nextPolicy(ctx context.Context, e *vaultclient.Engine) (uint64, error) {
	now, err := e.PolicyStatus(ctx)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		return 0, err
	}
	return now.Sequence + 1, nil
}

// showEffect says on stderr what would have been decided otherwise with the bundle
// in the place of the one in force, or of its overlay. It only informs: a bundle that
// can't be opened the engine refuses, with the reason, and without recorded requests
// there is nothing to say.
func (a *app) showEffect(ctx context.Context, raw []byte, r recorded, asOverlay bool) error {
	if r.since == 0 && r.from == "" || a.quiet {
		return nil
	}
	next, err := opabundle.Inspect(ctx, raw, authorLimits)
	if err != nil {
		return nil
	}
	base, overlay, err := a.inForce(ctx)
	if err != nil {
		a.talk("no comparison with the policy in force: %v", err)
		return ctx.Err()
	}
	then := over(next, overlay)
	if asOverlay {
		then = over(base, next)
	}
	d, err := a.diffRecorded(ctx, r, []decisionlog.Decider{over(base, overlay), then})
	d.Overlays, d.Votes = 0, 0 // both sides are with their overlays; of votes nothing is shown
	if err != nil && (r.from != "" || ctx.Err() != nil) {
		return err
	}
	if err != nil || d.Decisions == 0 {
		a.talk("no recorded requests to compare with")
		return nil
	}
	return aligned(a.stderr, func(w io.Writer) { diffTable(w, d) })
}

// uploadBundle keeps a copy before the bundle decides anything.
func (a *app) uploadBundle(ctx context.Context, e *vaultclient.Engine, raw []byte) (vaultclient.PolicyStatus, error) {
	if err := a.keepOpened(ctx, raw); err != nil {
		return vaultclient.PolicyStatus{}, err
	}
	done, err := e.UploadPolicy(ctx, raw)
	if err != nil {
		return vaultclient.PolicyStatus{}, err
	}
	if done.ShadowRemoved {
		a.talk("this bundle was the shadow; its trial is over")
	}
	return e.PolicyStatus(ctx)
}

// keepOpened keeps a copy of a bundle that can be opened; others the engine refuses.
func (a *app) keepOpened(ctx context.Context, raw []byte) error {
	b, err := opabundle.Inspect(ctx, raw, authorLimits)
	if err != nil {
		return nil
	}
	return a.keepBundle(b.Ref().Digest, raw)
}
