package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/install"
	"sealed.dev/sealed/internal/sealed"
)

func newUpgradeCmd(a *app) *cobra.Command {
	var f pluginFlags
	var job jobFlags
	cmd := &cobra.Command{
		Use: "upgrade (--plugin FILE | --plugin-version VERSION)", Short: "Bring a mount to another version of the engine", Args: cobra.NoArgs,
		Long: `Upgrade registers the version, binds the mount to it, reloads the plug-in and checks
what runs then. Leases and runs live on: their state is Vault's. Leave the old file in
plugin_directory, under its own name, and you can go back by naming its version.

  sealedctl upgrade --plugin vault-plugin-secrets-sealed-v0.2.0
  sealedctl upgrade --plugin-version v0.1.0`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.upgrade(cmd.Context(), f, job) },
	}
	f.register(cmd)
	job.register(cmd)
	return cmd
}

func (a *app) upgrade(ctx context.Context, f pluginFlags, jf jobFlags) error {
	if f.file == "" && f.version == "" {
		return usagef("upgrade wants --plugin or --plugin-version")
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	p, err := f.plugin(ctx, c)
	if err != nil {
		return err
	}
	_, before, err := c.Engine(a.mount).PluginVersion(ctx)
	if err != nil {
		return err
	}
	job, err := install.Upgrade(c, install.Target{Mount: a.mount, Plugin: p})
	if err != nil {
		return err
	}
	leases, countErr := install.Leases(ctx, c, a.mount)
	if err := a.runJob(ctx, job, jf, outcome{}, "Apply this plan to "+a.addr+"?"); err != nil {
		return err
	}
	if jf.dryRun {
		return nil
	}
	_, after, err := c.Engine(a.mount).PluginVersion(ctx)
	if err != nil {
		return err
	}
	a.talk("%s/ runs %s", a.mount, after)
	if now, err := install.Leases(ctx, c, a.mount); countErr == nil && err == nil {
		a.talk("%s before, %d now", describe(leases, "lease"), now)
	}
	if before != after && before != "" {
		a.talk("to go back: sealedctl upgrade --plugin-version %s", before)
	}
	return nil
}

// A removalFlags says what goes with a mount.
type removalFlags struct {
	jobFlags
	confirm, export, authMount, socket, tenant, domain, trustFile string
}

func newUninstallCmd(a *app) *cobra.Command {
	var f removalFlags
	cmd := &cobra.Command{
		Use: "uninstall --confirm MOUNT", Short: "Take the engine out of Vault, with all that the mount holds", Args: cobra.NoArgs,
		Long: `Uninstall shows what would be lost, and does it if --yes is said and --confirm has
the mount's name: it stops every run, revokes the leases, and then removes the mount
with its keys, secrets, profiles and log, and the policies, role, auth mount and
plug-in that install made and nobody else uses. --export takes the log away first.

  sealedctl uninstall --dry-run
  sealedctl uninstall --export ./last-log --confirm sealed --yes`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.uninstall(cmd.Context(), f) },
	}
	f.register(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.confirm, "confirm", "", "name of the mount once more")
	fl.StringVar(&f.export, "export", "", "new directory for log and records; without it they are lost")
	fl.StringVar(&f.authMount, "auth-mount", defaultAuthMount, "auth mount of the agents")
	fl.StringVar(&f.socket, "spire-socket", "", "SPIRE server's own socket, to remove the tenant's entries")
	fl.StringVar(&f.tenant, "tenant", "", "tenant whose entries go")
	fl.StringVar(&f.domain, "trust-domain", "", "trust domain of the entries")
	fl.StringVar(&f.trustFile, "trust-file", "", "trust file on this host to remove")
	return cmd
}

func (a *app) uninstall(ctx context.Context, f removalFlags) error {
	if !f.dryRun && (!f.yes || f.confirm != a.mount) {
		return usagef("nothing was done: uninstall wants --yes and --confirm %s; --dry-run shows what would be lost", a.mount)
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	r := install.Removal{
		Mount: a.mount, AuthMount: f.authMount, SPIRESocket: f.socket,
		Tenant: sealed.Name(f.tenant), TrustDomain: f.domain, TrustFile: f.trustFile,
	}
	if f.export != "" {
		r.Checkpoint = filepath.Join(f.export, "checkpoint")
		r.Export = func(ctx context.Context) error {
			_, err := a.pull(ctx, c.Engine(a.mount), f.export, false)
			return err
		}
	}
	job, err := install.Uninstall(c, r)
	if err != nil {
		return err
	}
	return a.runJob(ctx, job, f.jobFlags, outcome{}, "")
}
