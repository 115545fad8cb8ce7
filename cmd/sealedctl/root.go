package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/vaultclient"
)

// newRootCmd makes the whole tree of commands. Nothing of it is shared: tests
// make as many as they like.
func newRootCmd(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "sealedctl",
		Short: "Let coding agents use credentials without holding them",
		Long: `Sealed lets a coding agent use a credential without holding it, only while a
policy and, where the policy says so, a person allows it, and leaves a record
that anyone can verify.

  sealedctl dev up
  eval "$(sealedctl dev env)"
  sealedctl run --agent claude-code --profile team/release --workflow release -- claude -p "fix it"

Exit status: 0 ok, 1 failure, 2 usage, 3 denied, 4 waits for approval.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.settle() },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.addr, "vault-addr", "", "address of Vault (VAULT_ADDR)")
	f.StringVar(&a.caFile, "ca-file", "", "PEM file with the CA of Vault (VAULT_CACERT)")
	f.StringVar(&a.mount, "mount", "", "mount of the engine (SEALED_MOUNT, default sealed)")
	f.StringVarP(&a.output, "output", "o", "", "table, json or yaml (SEALED_OUTPUT)")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no talk on standard error")
	f.StringVarP(&a.devDir, "dev-dir", "C", "", "directory of the development stack (SEALED_DEV_DIR)")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		newRunCmd(a), newRunsCmd(a), newApprovalsCmd(a), newReviewsCmd(a), newProposalsCmd(a), newRevokeCmd(a), newRevocationsCmd(a),
		newProfileCmd(a), newAgentCmd(a), newSourceCmd(a), newSecretCmd(a), newPolicyCmd(a),
		newAuditCmd(a), newInstallCmd(a), newUpgradeCmd(a), newUninstallCmd(a), newTenantCmd(a), newPoliciesCmd(a), newRedactCmd(a), newDoctorCmd(a), newDevCmd(a), newDemoCmd(a), newSuperviseCmd(a), newVersionCmd(a),
	)
	return root
}

// group makes a command that only holds others. Cobra would show its help for
// a misspelled one and exit with 0.
func group(use, short, long string, sub ...*cobra.Command) *cobra.Command {
	var names []string
	for _, c := range sub {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	c := &cobra.Command{
		Use: use, Short: short, Long: long,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q for %q: wants %s", args[0], "sealedctl "+use, strings.Join(names, ", "))
			}
			return usagef("%s wants a command: %s", use, strings.Join(names, ", "))
		},
	}
	c.AddCommand(sub...)
	return c
}

func newVersionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of sealedctl", Args: cobra.NoArgs,
		Long: `Version shows which build of sealedctl this is. doctor shows the engine's.

  sealedctl version -o json`,
		RunE: func(*cobra.Command, []string) error {
			v := thisVersion()
			return a.line(v, func() { a.printf("sealedctl %s %s\n", v.Version, v.Go) })
		},
	}
}

// thisVersion is what the linker wrote into this program.
func thisVersion() version {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version{Version: "(unknown)"}
	}
	v := version{Version: info.Main.Version, Go: info.GoVersion}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Revision = s.Value
		}
	}
	return v
}

type version struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
}

// completeLimit bounds a shell completion: a shell that hangs is worse than
// one that offers nothing.
const completeLimit = 2 * time.Second

// complete offers the names that the engine has now for the first argument.
// It says nothing when it can't.
func (a *app) complete(names func(context.Context, *vaultclient.Engine) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		const nothing = cobra.ShellCompDirectiveNoFileComp
		if len(args) > 0 || a.settle() != nil {
			return nil, nothing
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeLimit)
		defer cancel()
		e, err := a.engine(ctx)
		if err != nil {
			return nil, nothing
		}
		out, err := names(ctx, e)
		if err != nil {
			return nil, nothing
		}
		return out, nothing
	}
}

// write writes data to stdout. What could not be written makes the command fail
// at its end: a script must not take half an answer for a whole one.
func (a *app) write(s string) {
	if _, err := io.WriteString(a.stdout, s); err != nil && a.lost == nil {
		a.lost = fmt.Errorf("writing output: %w", err)
	}
}

// printf writes a line of a human answer to stdout.
func (a *app) printf(format string, args ...any) {
	for i, v := range args {
		if s, ok := v.(string); ok {
			args[i] = printable(s)
		}
	}
	a.write(fmt.Sprintf(format, args...))
}
