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
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	opabundle "sealed.dev/sealed/opa-bundle"
)

func newPolicyCmd(a *app) *cobra.Command {
	return group("policy", "Write, test, sign and upload the policy that decides, and check what it decided",
		`The engine decides by a signed OPA bundle with a rising sequence and an expiry.
Whoever has the signing key decides what agents may have: keep it apart.

  sealedctl policy init policy && sealedctl policy test policy/policies
  sealedctl policy eval --bundle default --risk high
  sealedctl policy keygen policy-key.pem
  sealedctl policy upload --default --key policy-key.pem
  sealedctl policy replay --since 24h`,
		newPolicyInitCmd(a), newPolicyFmtCmd(a), newPolicyCheckCmd(a), newPolicyTestCmd(a), newPolicyEvalCmd(a),
		newPolicyBuildCmd(a), newPolicySignCmd(a), newPolicyVerifyCmd(a), newPolicyUploadCmd(a), newPolicyStatusCmd(a), newPolicyKeygenCmd(a), newPolicyKeysCmd(a),
		newPolicyDecisionsCmd(a), newPolicyReplayCmd(a), newPolicyDiffCmd(a), newPolicyExplainCmd(a), newPolicyOverlayCmd(a), newPolicyShadowCmd(a))
}

// keyIDOf finds the id under which the engine knows the public half of key.
func keyIDOf(ctx context.Context, e *vaultclient.Engine, key crypto.Signer) (string, error) {
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
		if own, ok := key.Public().(*ecdsa.PublicKey); err == nil && ok && own.Equal(pub) {
			return id, nil
		}
	}
	return "", &hintError{err: fmt.Errorf("signing policy: the engine does not know this key: %w", sealed.ErrDenied),
		hint: "sealedctl policy keys add, or name it with --key-id"}
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
	var all bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show the bundle in force", Args: cobra.NoArgs,
		Long: `Status shows digest, sequence and expiry of the bundle that decides now, the overlay
over it if there is one, and the ids of the keys that may sign the next one.
--all-tenants shows each mount that the token can reach, and exits with 1 if one has
a lower sequence than another.

  sealedctl policy status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all {
				return a.statusAll(cmd.Context())
			}
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
	cmd.Flags().BoolVar(&all, "all-tenants", false, "of every mount that the token can reach")
	return cmd
}

func policyTable(w io.Writer, s vaultclient.PolicyStatus) {
	row(w, "digest", s.Digest)
	row(w, "sequence", s.Sequence)
	row(w, "expires", stamp(s.Expires))
	row(w, "activated", stamp(s.ActivatedAt))
	if over := s.Overlay; over != (sealed.BundleRef{}) {
		row(w, "overlay", over.Digest, fmt.Sprintf("sequence %d", over.Sequence))
	}
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
