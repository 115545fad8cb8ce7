package main

import "github.com/spf13/cobra"

func newTenantCmd(a *app) *cobra.Command {
	return group("tenant", "Make tenants: one mount of the engine each",
		`A tenant is a wall: a mount with its own keys, log, policies and agents' role.
install makes the first; create makes more of them next to it.

  sealedctl tenant create beta --trust-domain corp.example --bundle-endpoint https://spire.corp.example:8443/ --bundle-ca spire-ca.pem`,
		newTenantCreateCmd(a))
}

func newTenantCreateCmd(a *app) *cobra.Command {
	var f targetFlags
	var job jobFlags
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a mount for another tenant, or mend it", Args: cobra.ExactArgs(1),
		Long: `Create does what install does, for the mount tenants/NAME/sealed (--mount names
another), with the plug-in that is in the catalog and the auth mount that is there.
The policies are called tenants.NAME.sealed-….

  sealedctl tenant create beta --trust-domain corp.example --bundle-endpoint https://spire.corp.example:8443/ --bundle-ca spire-ca.pem`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.tenant = args[0]
			if !cmd.Flags().Changed("mount") {
				a.mount = "tenants/" + args[0] + "/sealed"
			}
			return a.install(cmd.Context(), f, job)
		},
	}
	f.register(cmd)
	f.plugin.register(cmd)
	job.register(cmd)
	return cmd
}
