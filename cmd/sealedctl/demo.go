package main

import (
	"errors"
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
built once into the cache; bubblewrap, and the C compiler that SPIRE has to be
built with, are installed when this is root.

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
			cfg := demo.Config{
				Identity: identity, CacheDir: devstack.CacheDir(a.getenv), Self: []string{self}, Keep: keep, Out: a.stdout, Progress: a.demoProgress(),
			}
			err = demo.Run(cmd.Context(), cfg)
			if errors.Is(err, devstack.ErrNoCompiler) && os.Geteuid() == 0 { // it comes before anything else
				if err := a.getPackages(cmd, compiler); err != nil {
					return err
				}
				err = demo.Run(cmd.Context(), cfg)
			}
			return err
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

// packages are those of something, by the tool that installs them.
type packages struct {
	name          string
	apt, dnf, apk string
}

var (
	bubblewrap = packages{"bubblewrap", "bubblewrap", "bubblewrap", "bubblewrap"}
	compiler   = packages{"a C compiler", "gcc libc6-dev", "gcc", "gcc musl-dev"}
)

// needBubblewrap installs bubblewrap where it is missing.
func (a *app) needBubblewrap(cmd *cobra.Command) error {
	if _, err := exec.LookPath("bwrap"); err == nil {
		return nil
	}
	return a.getPackages(cmd, bubblewrap)
}

// getPackages installs what is missing when this is root on a distribution with apt,
// dnf or apk; otherwise it says what to install.
func (a *app) getPackages(cmd *cobra.Command, n packages) error {
	missing := &hintError{err: fmt.Errorf("%s is not installed", n.name), hint: fmt.Sprintf("apt install %s, or dnf install %s", n.apt, n.dnf)}
	if os.Geteuid() != 0 {
		return missing
	}
	for _, with := range []struct{ tool, run string }{
		{"apt-get", "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends " + n.apt},
		{"dnf", "dnf install -y -q " + n.dnf}, {"apk", "apk add -q " + n.apk},
	} {
		if _, err := exec.LookPath(with.tool); err != nil {
			continue
		}
		a.talk("  installing %s", n.name)
		if out, err := exec.CommandContext(cmd.Context(), "sh", "-c", with.run).CombinedOutput(); err != nil {
			return &hintError{err: fmt.Errorf("installing %s: %w: %s", n.name, err, clip(string(out))), hint: missing.hint}
		}
		return nil
	}
	return missing
}
