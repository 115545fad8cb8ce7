package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/vaultclient"
)

func newSecretCmd(a *app) *cobra.Command {
	return group("secret", "Put values into the built-in store; nobody reads them back",
		`The built-in store is the source "builtin" of a mount. Values go in and come out
only as ciphertext for a run: there is no command that shows one.

  sealedctl secret put ci/github --from-file token.txt
  sealedctl secret list`,
		newSecretPutCmd(a), newSecretListCmd(a), newSecretShowCmd(a), newSecretDeleteCmd(a))
}

func newSecretPutCmd(a *app) *cobra.Command {
	var from string
	var isBase64, exact bool
	cmd := &cobra.Command{
		Use: "put PATH [--from-file FILE]", Short: "Write a new version of a value", Args: cobra.ExactArgs(1),
		Long: `Put reads a value from --from-file, from standard input, or from the terminal
without echo, and writes it as a new version. A value is never an argument:
other processes can read those.

The line break at the end of a value of one line is dropped; --exact keeps it.

  pass show github | sealedctl secret put ci/github
  sealedctl secret put ci/cert --from-file cert.p12.b64 --base64`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if isBase64 && exact {
				return usagef("--base64 and --exact exclude each other: base64 is always exact")
			}
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			raw, err := a.value("value of "+args[0], from)
			if err != nil {
				return err
			}
			defer clear(raw)
			value := raw
			switch {
			case isBase64:
				if value, err = fromBase64(raw); err != nil {
					return err
				}
				defer clear(value)
			case !exact:
				value = oneLine(raw)
			}
			version, err := e.PutSecret(cmd.Context(), args[0], value)
			if err != nil {
				return err
			}
			out := struct {
				Path    string `json:"path"`
				Version int    `json:"version"`
			}{args[0], version}
			return a.print(out, func(w io.Writer) { row(w, out.Path, "version", out.Version) })
		},
	}
	cmd.Flags().StringVar(&from, "from-file", "", "file with the value, - for standard input")
	cmd.Flags().BoolVar(&isBase64, "base64", false, "the input is base64; store what it encodes")
	cmd.Flags().BoolVar(&exact, "exact", false, "keep a final line break")
	return cmd
}

func newSecretListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list [PREFIX]", Short: "List names of secrets", Args: cobra.MaximumNArgs(1),
		Long: `List shows the names below a prefix. A name that ends with a slash is a folder.

  sealedctl secret list ci`,
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			prefix := ""
			if len(args) == 1 {
				prefix = strings.TrimSuffix(args[0], "/")
			}
			names, err := e.Secrets(cmd.Context(), prefix)
			if err != nil {
				return err
			}
			return a.names(names)
		},
	}
}

// names prints a plain list, one name on a line.
func (a *app) names(names []string) error {
	if names == nil {
		names = []string{}
	}
	return a.print(names, func(w io.Writer) {
		for _, n := range names {
			row(w, n)
		}
	})
}

func newSecretShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show PATH", Short: "Show which versions of a secret exist, never the value", Args: cobra.ExactArgs(1),
		Long: `Show lists the versions of a secret and when they were written. The value itself
is not readable by anybody.

  sealedctl secret show ci/github`,
		ValidArgsFunction: a.complete(secretNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			m, err := e.Secret(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(m, func(w io.Writer) {
				row(w, "VERSION", "WRITTEN")
				for _, v := range m.Versions {
					row(w, v.Version, stamp(v.CreatedAt))
				}
			})
		},
	}
}

func newSecretDeleteCmd(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete PATH", Short: "Delete a secret with all its versions", Args: cobra.ExactArgs(1),
		Long: `Delete removes every version of a value. It can't be undone. Runs that hold the
value already are not stopped: that is what revoke is for.

  sealedctl secret delete ci/github`,
		ValidArgsFunction: a.complete(secretNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.sure("delete every version of "+args[0]+"?", yes); err != nil {
				return err
			}
			if err := e.DeleteSecret(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.talk("deleted %s", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	return cmd
}

func secretNames(ctx context.Context, e *vaultclient.Engine) ([]string, error) {
	return e.Secrets(ctx, "")
}
