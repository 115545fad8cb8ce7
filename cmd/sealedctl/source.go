package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

func newSourceCmd(a *app) *cobra.Command {
	return group("source", "Say where values come from",
		`A source is a place that the engine reads values from, with a narrow login of its
own. The source "builtin" always exists: it is the mount's own store.

  sealedctl source create vault-kv --type vault-kv --address https://kv.example:8200 --path secret --credential-file token
  sealedctl source check vault-kv`,
		newSourceCreateCmd(a), newSourceListCmd(a), newSourceShowCmd(a), newSourceCheckCmd(a), newSourceDeleteCmd(a))
}

// sourceFlags are the flags of `source create`. The CA of a source is not
// called --ca-file: that is the CA of the engine's own Vault everywhere.
type sourceFlags struct {
	kind, address, ca, path, namespace, region, credential string
	auth                                                   sealed.SourceAuth
	levels                                                 []string
	replace                                                bool
}

func newSourceCreateCmd(a *app) *cobra.Command {
	var f sourceFlags
	cmd := &cobra.Command{
		Use: "create NAME --type TYPE [flags]", Short: "Create or, with --replace, change a source", Args: cobra.ExactArgs(1),
		Long: `Create writes the configuration of a source and, apart from it, its login. The
login is read from a file or standard input and never shown again. Changing
where a source points drops its login unless the same call brings a new one.

  sealedctl source create vault-kv --type vault-kv --address https://kv.example:8200 \
      --source-ca kv-ca.pem --path secret --credential-file -

The login is, by type and --auth-method: a Vault token (token), a secret id
(approle, with the role id as --auth-role) or a JWT (jwt, with --auth-role); a
Connect token; an access token of a Bitwarden machine account; a JSON object
with access_key_id and secret_access_key (static) or a JWT (web_identity) for
AWS; age or PGP private keys for SOPS.`,
		RunE: func(cmd *cobra.Command, args []string) error { return createSource(cmd.Context(), a, f, args[0]) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.kind, "type", "", strings.Join(sealed.SourceTypes, ", "))
	fl.StringVar(&f.address, "address", "", "https://host:port of the source")
	fl.StringVar(&f.ca, "source-ca", "", "PEM file: the only roots for the source (default: the system's)")
	fl.StringVar(&f.path, "path", "", "where in the source: a mount, a 1Password vault, a Bitwarden organization, a prefix, a directory")
	fl.StringVar(&f.namespace, "namespace", "", "namespace in the source")
	fl.StringVar(&f.region, "region", "", "region of AWS")
	fl.StringVar(&f.auth.Method, "auth-method", "", "how the source logs in: token, approle, jwt; static, web_identity")
	fl.StringVar(&f.auth.Mount, "auth-path", "", "path of the auth mount in the source")
	fl.StringVar(&f.auth.Role, "auth-role", "", "role id, name or ARN of the role")
	fl.StringVar(&f.auth.Address, "auth-address", "", "https:// of Bitwarden's identity service or of AWS STS")
	fl.StringVar(&f.credential, "credential-file", "", "file with the source's login, - for standard input")
	fl.StringSliceVar(&f.levels, "levels", nil, "levels of profiles that may name it (default system,workflow)")
	fl.BoolVar(&f.replace, "replace", false, "change a source that exists")
	_ = cmd.MarkFlagRequired("type")
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(
		sealed.SourceTypes, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func createSource(ctx context.Context, a *app, f sourceFlags, name string) error {
	cfg := sealed.SourceConfig{Name: sealed.Name(name), Type: f.kind, Address: strings.TrimSuffix(f.address, "/"), Mount: f.path, Namespace: f.namespace, Region: f.region, Auth: f.auth, Levels: f.levels}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return fmt.Errorf("reading the source's CA: %w", err)
		}
		cfg.CA = string(pem)
	}
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("creating source: %w", err)
	}
	e, err := a.engine(ctx)
	if err != nil {
		return err
	}
	if !f.replace {
		switch _, err := e.Source(ctx, cfg.Name); {
		case err == nil:
			return &hintError{err: fmt.Errorf("creating source %s: it exists: %w", name, sealed.ErrConflict), hint: "--replace changes it"}
		case !errors.Is(err, sealed.ErrNotFound):
			return err
		}
	}
	var credential []byte
	if f.credential != "" {
		raw, err := a.value("login of "+name, f.credential)
		if err != nil {
			return err
		}
		defer clear(raw)
		credential = oneLine(raw)
	}
	dropped, err := e.WriteSource(ctx, cfg, credential)
	var waits *vaultclient.ProposedError
	if errors.As(err, &waits) && waits.LoginDropped {
		a.talk("the login was not kept: give it with --replace once the source is confirmed")
	}
	if err != nil {
		return err
	}
	if dropped {
		a.talk("the source points elsewhere now: its login was dropped")
	}
	return a.showSource(ctx, e, cfg.Name)
}

func (a *app) showSource(ctx context.Context, e *vaultclient.Engine, name sealed.Name) error {
	s, err := e.Source(ctx, name)
	if err != nil {
		return err
	}
	return a.print(s, func(w io.Writer) {
		row(w, "name", s.Name)
		row(w, "type", s.Type)
		row(w, "kind", s.Kind())
		row(w, "revocable", yesNo(s.Revocable()))
		row(w, "renewable", yesNo(s.Renewable()))
		if s.Type != sealed.SourceBuiltin {
			row(w, "address", s.Address)
			row(w, "path", s.Mount)
			row(w, "namespace", s.Namespace)
			row(w, "region", s.Region)
			row(w, "login by", s.Auth.Method)
			row(w, "login at", s.Auth.Address)
			row(w, "own CA", yesNo(s.CA != ""))
			row(w, "has login", yesNo(s.HasCredential))
		}
	})
}

func newSourceListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the sources", Args: cobra.NoArgs,
		Long: `List shows the names of the sources.

  sealedctl source list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			names, err := e.Sources(cmd.Context())
			if err != nil {
				return err
			}
			return a.names(names)
		},
	}
}

func newSourceShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a source, never its login", Args: cobra.ExactArgs(1),
		Long: `Show prints where a source points and whether it has a login.

  sealedctl source show vault-kv`,
		ValidArgsFunction: a.complete(sourceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			return a.showSource(cmd.Context(), e, sealed.Name(args[0]))
		},
	}
}

func newSourceCheckCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "check NAME", Short: "Let the engine try a source", Args: cobra.ExactArgs(1),
		Long: `Check makes the engine call the source with its login, without reading a value.
A source that can't be used is a failure.

  sealedctl source check vault-kv`,
		ValidArgsFunction: a.complete(sourceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			problem, err := e.CheckSource(cmd.Context(), sealed.Name(args[0]))
			if err != nil {
				return err
			}
			if problem != "" {
				return &hintError{err: fmt.Errorf("source %s can't be used: %s", args[0], problem), hint: "sealedctl source show " + args[0]}
			}
			a.printf("%s ok\n", args[0])
			return nil
		},
	}
}

func newSourceDeleteCmd(a *app) *cobra.Command {
	var force, yes bool
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a source and its login", Args: cobra.ExactArgs(1),
		Long: `Delete removes a source and its login. A source that a current profile uses is
kept, unless --force is given.

  sealedctl source delete vault-kv`,
		ValidArgsFunction: a.complete(sourceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.sure("delete source "+args[0]+"?", yes); err != nil {
				return err
			}
			if err := e.DeleteSource(cmd.Context(), sealed.Name(args[0]), force); err != nil {
				return err
			}
			a.talk("deleted source %s", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when a profile uses it")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	return cmd
}

func sourceNames(ctx context.Context, e *vaultclient.Engine) ([]string, error) { return e.Sources(ctx) }
