package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
)

// maxBundleFile is the engine's limit of a bundle, in bytes.
const maxBundleFile = 1 << 20

// authorLimits are the engine's, but for the time: a busy machine must not make
// a decision come out otherwise than it was.
var authorLimits = opabundle.Limits{Eval: 30 * time.Second}

// A bundleInfo is what build, sign and verify say about a bundle.
type bundleInfo struct {
	File     string        `json:"file"`
	Digest   sealed.Digest `json:"digest"`
	Sequence uint64        `json:"sequence"`
	Expires  time.Time     `json:"expires"`
	Revision string        `json:"revision,omitempty"`
	Overlay  bool          `json:"overlay,omitempty"`
	Verified bool          `json:"verified"` // the signature was checked
}

func (a *app) printBundle(file string, b interface {
	Ref() sealed.BundleRef
	Expires() time.Time
	Revision() string
	IsOverlay() bool
}, verified bool) error {
	info := bundleInfo{
		File: file, Digest: b.Ref().Digest, Sequence: b.Ref().Sequence, Expires: b.Expires(), Revision: b.Revision(), Overlay: b.IsOverlay(), Verified: verified,
	}
	return a.print(info, func(w io.Writer) {
		row(w, "file", info.File)
		row(w, "digest", info.Digest)
		row(w, "sequence", info.Sequence)
		row(w, "expires", stamp(info.Expires))
		row(w, "revision", info.Revision)
		if info.Overlay {
			row(w, "overlay", yesNo(true))
		}
		row(w, "signature verified", yesNo(info.Verified))
	})
}

func newPolicyBuildCmd(a *app) *cobra.Command {
	var m opabundle.Manifest
	var to string
	var life time.Duration
	cmd := &cobra.Command{
		Use: "build (DIR | default) --to FILE --sequence N", Short: "Build a bundle, not signed", Args: cobra.ExactArgs(1),
		Long: `Build writes a bundle that opa loads as well (opa eval -b FILE). The engine takes
it once it is signed, if its sequence is above the one in force.

  sealedctl policy build policies --to policy.tar.gz --sequence 8`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if life <= 0 || m.Sequence < 1 {
				return usagef("--expires-in wants a time to come, and --sequence a number from 1")
			}
			fsys, err := policySource(args[0])
			if err != nil {
				return err
			}
			m.Expires = time.Now().Add(life)
			raw, err := opabundle.Build(cmd.Context(), fsys, m)
			if err != nil {
				return err
			}
			b, err := opabundle.Inspect(cmd.Context(), raw, authorLimits)
			if err != nil {
				return err
			}
			if err := replaceFile(to, raw); err != nil {
				return fmt.Errorf("writing bundle: %w", err)
			}
			return a.printBundle(to, b, false)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "file to write")
	cmd.Flags().Uint64Var(&m.Sequence, "sequence", 0, "sequence of the bundle, above the one in force")
	cmd.Flags().StringVar(&m.Revision, "revision", "", "free text for people, such as a commit")
	cmd.Flags().BoolVar(&m.Overlay, "overlay", false, "to be laid over another bundle; it can't be the policy itself")
	cmd.Flags().DurationVar(&life, "expires-in", bundleLife, "the bundle denies everything after this time")
	_ = cmd.MarkFlagRequired("to")
	_ = cmd.MarkFlagRequired("sequence")
	return cmd
}

func newPolicySignCmd(a *app) *cobra.Command {
	var key signingFlags
	var to string
	cmd := &cobra.Command{
		Use: "sign FILE (--key FILE|URI | --transit MOUNT/NAME) --key-id ID", Short: "Sign a bundle", Args: cobra.ExactArgs(1),
		Long: `Sign puts an ES256 signature into the bundle, as opa sign does; one that is there
is replaced. The key is a file, an ecdsa-p256 key of Vault's transit engine
(--transit), or one of another key management system, as sigstore's tools name it
(--key SCHEME://KEY, with the program sigstore-kms-SCHEME in PATH); such a key
stays where it is. The id is the one under which the engine knows the public half.

  sealedctl policy sign policy.tar.gz --transit transit/policy --key-id team-1
  sealedctl policy sign policy.tar.gz --key awskms:///alias/policy --key-id team-1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if key.id == "" {
				return usagef("policy sign wants --key-id")
			}
			raw, err := readBundleFile(args[0])
			if err != nil {
				return err
			}
			signer, err := key.signer(cmd.Context(), a)
			if err != nil {
				return err
			}
			if raw, err = opabundle.Sign(cmd.Context(), raw, signer, key.id); err != nil {
				return err
			}
			b, err := opabundle.Inspect(cmd.Context(), raw, authorLimits)
			if err != nil {
				return err
			}
			if to == "" {
				to = args[0]
			}
			if err := replaceFile(to, raw); err != nil {
				return fmt.Errorf("writing bundle: %w", err)
			}
			return a.printBundle(to, b, false)
		},
	}
	key.register(cmd)
	cmd.Flags().StringVar(&to, "to", "", "file to write (default: the bundle itself)")
	return cmd
}

func newPolicyVerifyCmd(a *app) *cobra.Command {
	var public, id string
	cmd := &cobra.Command{
		Use: "verify FILE --public-key FILE --key-id ID", Short: "Verify a signed bundle as the engine does", Args: cobra.ExactArgs(1),
		Long: `Verify checks signature, files, functions and shape of a bundle with the public
key of that id, and shows what it is. It contacts nobody. Whether the sequence is
above the one in force, only the engine knows. An expired bundle verifies.

  sealedctl policy verify policy.tar.gz --public-key policy-key.pem.pub --key-id team-1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := readBundleFile(args[0])
			if err != nil {
				return err
			}
			pem, err := a.document(public, 64<<10)
			if err != nil {
				return err
			}
			b, err := opabundle.Open(cmd.Context(), raw, opabundle.Options{Keys: map[string]string{id: string(pem)}})
			if err != nil {
				return err
			}
			return a.printBundle(args[0], b, true)
		},
	}
	cmd.Flags().StringVar(&public, "public-key", "", "PEM file with the public key")
	cmd.Flags().StringVar(&id, "key-id", "", "id of the key, as the signature names it")
	_ = cmd.MarkFlagRequired("public-key")
	_ = cmd.MarkFlagRequired("key-id")
	return cmd
}

// signingFlags name the key that signs.
type signingFlags struct{ file, transit, id string }

func (f *signingFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "key", "", "file with the signing key, PEM, that only its owner may read; or SCHEME://KEY of a key management system")
	cmd.Flags().StringVar(&f.transit, "transit", "", "MOUNT/NAME of an ecdsa-p256 key of Vault's transit engine")
	cmd.Flags().StringVar(&f.id, "key-id", "", "id under which the engine knows the key")
	cmd.MarkFlagsMutuallyExclusive("key", "transit")
}

func (f signingFlags) signer(ctx context.Context, a *app) (crypto.Signer, error) {
	switch {
	case f.transit != "":
		c, err := a.client(ctx)
		if err != nil {
			return nil, err
		}
		return newTransitSigner(ctx, c, f.transit)
	case strings.Contains(f.file, "://"):
		return newKMSSigner(ctx, f.file)
	case f.file == "":
		return nil, usagef("wants the key that signs: --key FILE or --transit MOUNT/NAME")
	}
	return readSigningKey(f.file)
}

func readBundleFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading bundle: %w", err)
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxBundleFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading bundle: %w", err)
	}
	if len(raw) > maxBundleFile {
		return nil, fmt.Errorf("reading bundle %s: more than 1 MiB: %w", name, sealed.ErrInvalid)
	}
	return raw, nil
}

// inspect opens what an argument names: a bundle file, a directory of policies,
// default for those that come with sealedctl, or active for the one in force.
// Signatures are not looked at: whoever names a file trusts it.
func (a *app) inspect(ctx context.Context, arg string) (*opabundle.Inspection, error) {
	if arg == "active" {
		e, err := a.engine(ctx)
		if err != nil {
			return nil, err
		}
		now, err := e.PolicyStatus(ctx)
		if err != nil {
			return nil, err
		}
		return inspectStored(ctx, e, now.Digest)
	}
	st, err := os.Stat(arg)
	if arg == "default" && errors.Is(err, os.ErrNotExist) || err == nil && st.IsDir() {
		fsys, err := policySource(arg)
		if err != nil {
			return nil, err
		}
		raw, err := opabundle.Build(ctx, fsys, opabundle.Manifest{Revision: filepath.Base(arg), Sequence: 1, Expires: time.Unix(math.MaxUint32, 0)})
		if err != nil {
			return nil, err
		}
		return opabundle.Inspect(ctx, raw, authorLimits)
	}
	raw, err := readBundleFile(arg)
	if err != nil {
		return nil, err
	}
	return opabundle.Inspect(ctx, raw, authorLimits)
}
