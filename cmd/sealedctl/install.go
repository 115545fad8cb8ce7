package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/install"
	"sealed.dev/sealed/internal/sealed"
)

// A jobFlags says how a job is shown and confirmed: plan first, then apply.
type jobFlags struct {
	yes, dryRun bool
	skip        []string
}

func (f *jobFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVarP(&f.yes, "yes", "y", false, "apply the plan without asking; needed where nobody can answer")
	fl.BoolVar(&f.dryRun, "dry-run", false, "show the plan and change nothing")
	fl.StringSliceVar(&f.skip, "skip", nil, "step that somebody else does, by its name in the plan (repeatable)")
}

// outcome is what a job prints in JSON and YAML.
type outcome struct {
	Plan    install.Plan `json:"plan"`
	Applied bool         `json:"applied"`
	// What is to be done by hand, on other hosts.
	Entries   []string `json:"entries,omitempty"`
	AgentConf string   `json:"agent_conf,omitempty"`
}

// runJob shows what a job would do, asks, and does it.
func (a *app) runJob(ctx context.Context, job *install.Job, f jobFlags, out outcome, question string) error {
	if err := job.Skip(f.skip...); err != nil {
		return usagef("%v", err)
	}
	plan, err := job.Plan(ctx)
	if err != nil {
		return err
	}
	out.Plan = plan
	if a.output == "table" {
		if err := aligned(a.stdout, func(w io.Writer) { planTable(w, plan) }); err != nil {
			return err
		}
	}
	if plan.Pending() == 0 || f.dryRun {
		return a.endJob(out, plan.Pending() == 0)
	}
	if err := decidable(plan); err != nil {
		return errors.Join(a.printUnlessTable(out), err)
	}
	if !f.yes && !isTerminal(a.stdin) {
		return errors.Join(a.printUnlessTable(out), usagef("nothing was done: nobody can be asked here; read the plan, then say --yes"))
	}
	if err := a.sure(question, f.yes); err != nil {
		return err
	}
	err = job.Apply(ctx, func(r install.Row) {
		if r.Action != install.Keep {
			a.talk("%s: %s", past(r.Action), printable(r.What))
		}
	})
	if err != nil {
		return explained(err)
	}
	out.Applied = true
	return a.endJob(out, false)
}

// decidable refuses a plan that can't be applied to its end: conflicts are for a
// person. What is refused to the token is met at its step, after those before it.
func decidable(plan install.Plan) error {
	for _, r := range plan {
		if r.State == install.Conflict {
			return &hintError{err: fmt.Errorf("nothing was done: %s", r.Detail), hint: "name another, or leave the step out with --skip " + r.Step}
		}
	}
	return nil
}

// explained adds the next thing to try.
func explained(err error) error {
	if errors.Is(err, sealed.ErrDenied) {
		return &hintError{err: err, hint: "sealedctl install --print-policy shows what the token needs"}
	}
	return &hintError{err: err, hint: "mend it and run the same again"}
}

func (a *app) printUnlessTable(out outcome) error {
	if a.output == "table" {
		return nil
	}
	return a.print(out, nil)
}

func (a *app) endJob(out outcome, settled bool) error {
	if a.output != "table" {
		return a.print(out, nil)
	}
	if settled {
		a.talk("nothing to do")
	}
	for _, block := range []struct{ title, text string }{
		{"on the host of SPIRE server:", strings.Join(out.Entries, "\n")},
		{"in the configuration of SPIRE agent, on every host that runs agents:", out.AgentConf},
	} {
		if block.text != "" {
			_, _ = fmt.Fprintf(a.stdout, "\n%s\n\n%s\n", block.title, strings.TrimSpace(block.text))
		}
	}
	return nil
}

func planTable(w io.Writer, plan install.Plan) {
	row(w, "STEP", "STATE", "ACTION", "WHAT", "DETAIL")
	for _, r := range plan {
		row(w, r.Step, r.State, r.Action, r.What, r.Detail)
	}
}

func past(action install.Action) string {
	switch action {
	case install.Create:
		return "created"
	case install.Change:
		return "changed"
	case install.Remove:
		return "removed"
	}
	return string(action)
}

func newInstallCmd(a *app) *cobra.Command {
	var f targetFlags
	var job jobFlags
	var printPolicy bool
	cmd := &cobra.Command{
		Use: "install --plugin FILE --tenant NAME --trust-domain NAME --bundle-endpoint URL --bundle-ca FILE", Args: cobra.NoArgs,
		Short: "Put the engine into an existing Vault and SPIRE",
		Long: `Install shows a plan, asks, and makes what is missing: plug-in, mount, policies,
auth/jwt with a role for agents, configuration, and as far as you name them the
first policy, SPIRE's entries and the hosts' trust file. Run again, it mends what
was changed by hand, and has nothing to do otherwise. Copy the plug-in into Vault's
plugin_directory first; your copy here is only measured.

  sealedctl install --plugin vault-plugin-secrets-sealed --tenant acme --trust-domain corp.example \
    --bundle-endpoint https://spire.corp.example:8443/ --bundle-ca spire-ca.pem --dry-run`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if printPolicy {
				text, err := install.Privileges(a.mount, f.authMount)
				if err != nil {
					return err
				}
				_, err = io.WriteString(a.stdout, text)
				return err
			}
			return a.install(cmd.Context(), f, job)
		},
	}
	f.register(cmd)
	f.plugin.register(cmd)
	job.register(cmd)
	cmd.Flags().StringVar(&f.tenant, "tenant", "", "tenant of the mount; never changes")
	cmd.Flags().BoolVar(&printPolicy, "print-policy", false, "print the Vault policy that install, upgrade and uninstall need")
	return cmd
}

func (a *app) install(ctx context.Context, f targetFlags, jf jobFlags) error {
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	t, err := f.target(ctx, a, c)
	if err != nil {
		return err
	}
	job, err := install.Install(c, t)
	if err != nil {
		return err
	}
	var out outcome
	if t.SPIRE != nil {
		if t.SPIRE.Socket == "" {
			if out.Entries, err = install.EntryCommands(t); err != nil {
				return err
			}
		}
		if out.AgentConf, err = install.AgentConf(t); err != nil {
			return err
		}
	}
	return a.runJob(ctx, job, jf, out, "Apply this plan to "+a.addr+"?")
}

// A pluginFlags names a build of the engine.
type pluginFlags struct{ file, version, command string }

func (f *pluginFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.file, "plugin", "", "your copy of the plug-in's file; without it the version must be in the catalog")
	fl.StringVar(&f.version, "plugin-version", "", "its version (default: the file is asked, or the highest in the catalog)")
	fl.StringVar(&f.command, "plugin-command", "", "name of the file in Vault's plugin_directory (default: the base name of --plugin)")
}

// hashFile returns the SHA-256 of a file in hex.
func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("measuring: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("measuring %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
