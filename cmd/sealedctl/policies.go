package main

import (
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/install"
)

func newPoliciesCmd(a *app) *cobra.Command {
	return group("policies", "Show and install the ready-made Vault policies of a mount",
		`A policy of Vault says who may call which path of the engine: one per role, made for
one mount. What agents may have is decided elsewhere: sealedctl policy.

  sealedctl policies show > sealed-policies.hcl
  sealedctl policies install`,
		newPoliciesInstallCmd(a), newPoliciesShowCmd(a))
}

func newPoliciesInstallCmd(a *app) *cobra.Command {
	var f jobFlags
	cmd := &cobra.Command{
		Use: "install", Short: "Write the policies of the mount, and remove old ones", Args: cobra.NoArgs,
		Long: `Install shows what differs from the policies of this version, asks, and writes them.
Policies of the mount that an older version wrote and this one does not have are
removed. Nothing is given to anybody: assign them in your auth methods.

  sealedctl policies install --mount tenants/beta/sealed --yes`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			job, err := install.Policies(c, a.mount)
			if err != nil {
				return err
			}
			return a.runJob(cmd.Context(), job, f, outcome{}, "Apply this plan to "+a.addr+"?")
		},
	}
	f.register(cmd)
	return cmd
}

func newPoliciesShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show [NAME]", Short: "Print the policies of the mount", Args: cobra.MaximumNArgs(1),
		Long: `Show prints the text of one policy, or of all, as install would write them. It asks
nobody.

  sealedctl policies show sealed-operator`,
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := install.RenderPolicies(a.mount)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				text, ok := all[args[0]]
				if !ok {
					return usagef("there is no policy %q: wants one of %s", args[0], join(slices.Sorted(maps.Keys(all))))
				}
				all = map[string]string{args[0]: text}
			}
			if a.output != "table" {
				return a.print(all, nil)
			}
			for i, name := range slices.Sorted(maps.Keys(all)) {
				if i > 0 {
					_, _ = io.WriteString(a.stdout, "\n")
				}
				_, _ = io.WriteString(a.stdout, "# Policy "+name+"\n"+all[name])
			}
			return nil
		},
	}
}
