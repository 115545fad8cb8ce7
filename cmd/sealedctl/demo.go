package main

import (
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/demo"
	"sealed.dev/sealed/internal/devstack"
)

func newDemoCmd(a *app) *cobra.Command {
	var spire, keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Play one run of an attacked agent, and check what happened",
		Long: `Demo starts a Vault, an identity authority and a policy of its own on
loopback, runs a scripted agent that behaves as if it had been taken over, and
shows what it could do. It leaves nothing running. Status 0 means that every
expectation held.

What it needs besides Go and git it gets by itself: Vault is taken from PATH or
built once into the cache; bubblewrap is installed when this is root.

  sealedctl demo
  sealedctl demo --spire`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.needBubblewrap(cmd); err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this executable: %w", err)
			}
			identity := devstack.IdentityEmbedded
			if spire {
				identity = devstack.IdentitySPIRE
			}
			return demo.Run(cmd.Context(), demo.Config{
				Identity: identity, CacheDir: devstack.CacheDir(a.getenv), Self: []string{self}, Keep: keep, Out: a.stdout, Progress: a.demoProgress(),
			})
		},
	}
	cmd.Flags().BoolVar(&spire, "spire", false, "use real SPIRE instead of the embedded authority (needs root)")
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the demo's directory")
	return cmd
}

// demoProgress shows each step once, and long ones every few seconds.
func (a *app) demoProgress() func(step string, done, total int64) {
	start := time.Now()
	last, shown := "", time.Time{}
	return func(step string, _, _ int64) {
		if step == last || (!a.terminal() && time.Since(shown) < 200*time.Millisecond) {
			return
		}
		last, shown = step, time.Now()
		a.talk("  %5.1fs  %s", time.Since(start).Seconds(), step)
	}
}

// needBubblewrap installs bubblewrap when this is root on a distribution with
// apt, dnf or apk; otherwise it says what to install.
func (a *app) needBubblewrap(cmd *cobra.Command) error {
	if _, err := exec.LookPath("bwrap"); err == nil {
		return nil
	}
	hint := "install the package bubblewrap (apt install bubblewrap, dnf install bubblewrap)"
	if os.Geteuid() != 0 {
		return &hintError{err: fmt.Errorf("bubblewrap is not installed"), hint: hint}
	}
	for _, install := range [][]string{
		{"sh", "-c", "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends bubblewrap"},
		{"dnf", "install", "-y", "-q", "bubblewrap"}, {"apk", "add", "-q", "bubblewrap"},
	} {
		tool := install[0]
		if tool == "sh" {
			tool = "apt-get"
		}
		if _, err := exec.LookPath(tool); err != nil {
			continue
		}
		a.talk("  installing bubblewrap")
		c := exec.CommandContext(cmd.Context(), install[0], install[1:]...)
		if out, err := c.CombinedOutput(); err != nil {
			return &hintError{err: fmt.Errorf("installing bubblewrap: %w: %s", err, clip(string(out))), hint: hint}
		}
		return nil
	}
	return &hintError{err: fmt.Errorf("bubblewrap is not installed"), hint: hint}
}
