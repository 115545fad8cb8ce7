package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

func newPolicyCmd(a *app) *cobra.Command {
	return group("policy", "Sign and upload the policy that decides",
		`The engine decides by a signed OPA bundle with a rising sequence and an expiry.
Whoever has the signing key decides what agents may have: keep it apart.

  sealedctl policy keygen policy-key.pem
  sealedctl policy upload --default --key policy-key.pem
  sealedctl policy status`,
		newPolicyUploadCmd(a), newPolicyStatusCmd(a), newPolicyKeygenCmd(a))
}

// bundleLife is how long a bundle holds unless told otherwise.
const bundleLife = 90 * 24 * time.Hour

type uploadFlags struct {
	key, keyID, revision string
	sequence             uint64
	life                 time.Duration
	standard             bool
}

func newPolicyUploadCmd(a *app) *cobra.Command {
	var f uploadFlags
	cmd := &cobra.Command{
		Use: "upload (DIR | --default) --key FILE", Short: "Build, sign and upload a policy bundle", Args: cobra.MaximumNArgs(1),
		Long: `Upload builds a bundle from the Rego files below DIR (package sealed.…) or from
the default policies, signs it with an ECDSA P-256 key, and puts it in force. The
sequence is one above that in force unless it is given.

  sealedctl policy upload policies --key policy-key.pem`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var source fs.FS
			switch {
			case f.standard && len(args) == 0:
				source = rego.FS()
			case !f.standard && len(args) == 1:
				source = os.DirFS(args[0])
			default:
				return usagef("policy upload wants a directory or --default, not both")
			}
			key, err := readSigningKey(f.key)
			if err != nil {
				return err
			}
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			status, err := f.upload(cmd.Context(), e, source, key)
			if err != nil {
				return err
			}
			return a.print(status, func(w io.Writer) { policyTable(w, status) })
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.standard, "default", false, "the policies that come with sealedctl")
	fl.StringVar(&f.key, "key", "", "file with the signing key, PEM; only its owner may read it")
	fl.StringVar(&f.keyID, "key-id", "", "id under which the engine knows the key (default: found by its public half)")
	fl.StringVar(&f.revision, "revision", "", "free text for people, such as a commit")
	fl.Uint64Var(&f.sequence, "sequence", 0, "sequence of the bundle (default: the next one)")
	fl.DurationVar(&f.life, "expires-in", bundleLife, "the bundle denies everything after this time")
	_ = cmd.MarkFlagRequired("key")
	return cmd
}

func (f uploadFlags) upload(ctx context.Context, e *vaultclient.Engine, source fs.FS, key *ecdsa.PrivateKey) (vaultclient.PolicyStatus, error) {
	var none vaultclient.PolicyStatus
	if f.life <= 0 {
		return none, usagef("--expires-in wants a time to come")
	}
	now, err := e.PolicyStatus(ctx)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		return none, err
	}
	if f.sequence == 0 {
		f.sequence = now.Sequence + 1
	}
	if f.keyID == "" {
		if f.keyID, err = keyIDOf(ctx, e, key); err != nil {
			return none, err
		}
	}
	raw, err := opabundle.Build(ctx, source, opabundle.Manifest{Revision: f.revision, Sequence: f.sequence, Expires: time.Now().Add(f.life)})
	if err != nil {
		return none, err
	}
	if raw, err = opabundle.Sign(ctx, raw, key, f.keyID); err != nil {
		return none, err
	}
	if _, err := e.UploadPolicy(ctx, raw); err != nil {
		return none, err
	}
	return e.PolicyStatus(ctx)
}

// keyIDOf finds the id under which the engine knows the public half of key.
func keyIDOf(ctx context.Context, e *vaultclient.Engine, key *ecdsa.PrivateKey) (string, error) {
	keys, err := e.PolicyKeys(ctx)
	if err != nil {
		return "", err
	}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		block, _ := pem.Decode([]byte(keys[id]))
		if block == nil {
			continue
		}
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err == nil && key.PublicKey.Equal(pub) {
			return id, nil
		}
	}
	return "", &hintError{err: fmt.Errorf("signing policy: the engine does not know this key: %w", sealed.ErrDenied),
		hint: "add its public half to config/policy-keys, or name it with --key-id"}
}

// readSigningKey reads a PKCS #8 P-256 key. A file that others may read is
// refused: whoever has it decides for every agent.
func readSigningKey(path string) (*ecdsa.PrivateKey, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading signing key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, &hintError{err: fmt.Errorf("reading signing key: others may read %s: %w", path, sealed.ErrInvalid), hint: "chmod 600 " + path}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading signing key: %w", err)
	}
	defer clear(b)
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("reading signing key: no PEM: %w", sealed.ErrInvalid)
	}
	defer clear(block.Bytes)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading signing key: not PKCS #8: %w", sealed.ErrInvalid)
	}
	signer, _ := parsed.(crypto.Signer)
	key, ok := signer.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("reading signing key: wants ECDSA P-256: %w", sealed.ErrInvalid)
	}
	return key, nil
}

func newPolicyStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the bundle in force", Args: cobra.NoArgs,
		Long: `Status shows digest, sequence and expiry of the bundle that decides now, and the
ids of the keys that may sign the next one.

  sealedctl policy status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			s, err := e.PolicyStatus(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { policyTable(w, s) })
		},
	}
}

func policyTable(w io.Writer, s vaultclient.PolicyStatus) {
	row(w, "digest", s.Digest)
	row(w, "sequence", s.Sequence)
	row(w, "expires", stamp(s.Expires))
	row(w, "activated", stamp(s.ActivatedAt))
	row(w, "signing keys", join(s.KeyIDs))
}

func newPolicyKeygenCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "keygen FILE", Short: "Make a key pair that signs policies", Args: cobra.ExactArgs(1),
		Long: `Keygen writes a new ECDSA P-256 key to FILE, for its owner only, and the public
half to FILE.pub and standard output. A file that exists is never replaced.

  sealedctl policy keygen policy-key.pem`,
		RunE: func(_ *cobra.Command, args []string) error {
			private, public, err := opabundle.GenerateKey()
			if err != nil {
				return err
			}
			defer clear(private)
			if err := newFile(args[0], private, 0o600); err != nil {
				return err
			}
			if err := newFile(args[0]+".pub", public, 0o644); err != nil {
				return errors.Join(err, os.Remove(args[0]))
			}
			out := struct {
				Private string `json:"private_file"`
				Public  string `json:"public_key"`
			}{filepath.Clean(args[0]), string(public)}
			return a.line(out, func() { a.write(strings.TrimSpace(out.Public) + "\n") })
		},
	}
}

// newFile writes a file that must not exist.
func newFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("writing key: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing key: %w", err)
	}
	return nil
}
