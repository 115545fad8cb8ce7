package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

func newPolicyKeysCmd(a *app) *cobra.Command {
	return group("keys", "Say which keys may sign policies",
		`Whoever has one of these keys decides what agents may have. A new one is accepted
at once if a key that is there signs the set; otherwise it waits for a second
person (sealedctl proposals). To remove one needs neither.

  sealedctl policy keys list
  sealedctl policy keys add policy-2=new.pem.pub --key policy-key.pem
  sealedctl policy keys remove policy-1`,
		newPolicyKeysListCmd(a), newPolicyKeysAddCmd(a), newPolicyKeysRemoveCmd(a))
}

func newPolicyKeysListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the keys that may sign policies", Args: cobra.NoArgs,
		Long: `List shows each key's id and the SHA-256 of its public half (PKIX).

  sealedctl policy keys list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			set, err := e.PolicyKeySet(cmd.Context())
			if err != nil {
				return err
			}
			return a.printKeySet(set)
		},
	}
}

func (a *app) printKeySet(set vaultclient.PolicyKeySet) error {
	return a.print(set, func(w io.Writer) {
		row(w, "ID", "SHA256")
		for _, id := range slices.Sorted(maps.Keys(set.Keys)) {
			digest := "(no PEM)"
			if block, _ := pem.Decode([]byte(set.Keys[id])); block != nil {
				sum := sha256.Sum256(block.Bytes)
				digest = hex.EncodeToString(sum[:])
			}
			row(w, id, digest)
		}
	})
}

func newPolicyKeysAddCmd(a *app) *cobra.Command {
	var by signingFlags
	cmd := &cobra.Command{
		Use: "add ID=FILE… [--key FILE | --transit MOUNT/NAME]", Short: "Add public keys, or replace those of these ids", Args: cobra.MinimumNArgs(1),
		Long: `Add reads public keys in PEM. With --key or --transit a key that is trusted already
signs the new set, and it counts at once; without, it waits for a second person.

  sealedctl policy keys add policy-2=new.pem.pub --key policy-key.pem`,
		RunE: func(cmd *cobra.Command, args []string) error {
			add := map[string]string{}
			for _, arg := range args {
				id, file, ok := strings.Cut(arg, "=")
				if _, err := sealed.ParseName("id", id); !ok || err != nil {
					return usagef("%q: wants ID=FILE", arg)
				}
				text, err := a.document(file, 64<<10)
				if err != nil {
					return err
				}
				add[id] = string(text)
			}
			return a.changeKeys(cmd.Context(), by, func(keys map[string]string) error {
				maps.Copy(keys, add)
				return nil
			})
		},
	}
	by.register(cmd)
	return cmd
}

func newPolicyKeysRemoveCmd(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "remove ID…", Short: "Remove keys; their policies stop counting at once", Args: cobra.MinimumNArgs(1),
		Long: `Remove takes keys away. A policy that only they have signed is unusable at once, and
without one in force everything is denied.

  sealedctl policy keys remove policy-1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.sure("remove "+join(args)+"? What only they have signed stops counting.", yes); err != nil {
				return err
			}
			return a.changeKeys(cmd.Context(), signingFlags{}, func(keys map[string]string) error {
				for _, id := range args {
					if keys[id] == "" {
						return fmt.Errorf("removing policy key %s: %w", id, sealed.ErrNotFound)
					}
					delete(keys, id)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	return cmd
}

// changeKeys writes the set that change makes of the one in force.
func (a *app) changeKeys(ctx context.Context, by signingFlags, change func(keys map[string]string) error) error {
	e, err := a.engine(ctx)
	if err != nil {
		return err
	}
	set, err := e.PolicyKeySet(ctx)
	if err != nil {
		return err
	}
	if err := change(set.Keys); err != nil {
		return err
	}
	var sign func(message []byte) (string, []byte, error)
	if by.file != "" || by.transit != "" {
		sign = func(message []byte) (string, []byte, error) { return a.signKeys(ctx, e, by, message) }
	}
	if set.Version, err = e.WritePolicyKeys(ctx, set, sign); err != nil {
		return err
	}
	return a.printKeySet(set)
}

func (a *app) signKeys(ctx context.Context, e *vaultclient.Engine, by signingFlags, message []byte) (id string, sig []byte, err error) {
	key, err := by.signer(ctx, a)
	if err != nil {
		return "", nil, err
	}
	if id = by.id; id == "" {
		if id, err = keyIDOf(ctx, e, key); err != nil {
			return "", nil, err
		}
	}
	sum := sha256.Sum256(message)
	sig, err = key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return "", nil, fmt.Errorf("signing policy keys: %w", err)
	}
	return id, sig, nil
}
