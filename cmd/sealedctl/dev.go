package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sealed"
)

func newDevCmd(a *app) *cobra.Command {
	return group("dev", "Run a real Vault with the engine, and identity, on this machine",
		`Dev runs everything on the loopback addresses of one machine, to try Sealed and to
develop with it. It is not for production: the unseal key lies beside the data.

  sealedctl dev up
  eval "$(sealedctl dev env)"
  sealedctl dev login operator`,
		newDevUpCmd(a), newDevStatusCmd(a), newDevDownCmd(a), newDevLoginCmd(a), newDevEnvCmd(a), newDevBuildCmd(a), newDevAuthorityCmd())
}

// stackConfig is the development stack that the flags describe.
func (a *app) stackConfig() (devstack.Config, error) {
	dir, err := filepath.Abs(a.devDir)
	if err != nil {
		return devstack.Config{}, fmt.Errorf("finding the directory of the stack: %w", err)
	}
	return devstack.Config{Dir: dir, CacheDir: devstack.CacheDir(a.getenv), Progress: a.progress()}, nil
}

func (a *app) stack() (*devstack.Stack, error) {
	dir, err := filepath.Abs(a.devDir)
	if err != nil {
		return nil, fmt.Errorf("finding the directory of the stack: %w", err)
	}
	s, err := devstack.Load(dir)
	if errors.Is(err, sealed.ErrNotFound) {
		return nil, &hintError{err: err, hint: "sealedctl dev up"}
	}
	return s, err
}

// progress returns a reporter of long work: one line that changes on a
// terminal, a line for each new step elsewhere, nothing with --quiet.
func (a *app) progress() func(step string, done, total int64) {
	if a.quiet {
		return nil
	}
	var mu sync.Mutex
	last, begun := "", time.Now()
	return func(step string, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		short, _, _ := strings.Cut(step, ": ")
		if !a.terminal() {
			if short != last {
				_, _ = fmt.Fprintf(a.stderr, "%s\n", printable(short))
			}
			last = short
			return
		}
		count := ""
		if done > 0 {
			count = fmt.Sprintf(" (%d)", done)
		}
		if total > 0 {
			count = fmt.Sprintf(" (%d of %d)", done, total)
		}
		line := []rune(printable(fmt.Sprintf("%4.0fs %s%s", time.Since(begun).Seconds(), step, count)))
		if len(line) > 78 {
			line = line[:78]
		}
		_, _ = fmt.Fprintf(a.stderr, "\r\x1b[K%s", string(line))
	}
}

// endProgress leaves the line of progress.
func (a *app) endProgress() {
	if a.terminal() && !a.quiet {
		_, _ = fmt.Fprint(a.stderr, "\r\x1b[K")
	}
}

func newDevUpCmd(a *app) *cobra.Command {
	var identity, tenant, module string
	var launchers []int
	cmd := &cobra.Command{
		Use: "up", Short: "Start the stack, or what is missing of it", Args: cobra.NoArgs,
		Long: `Up starts a Vault with the engine in it, and identity: the embedded authority, or
SPIRE (as root). Servers that PATH does not have are built once.

  sealedctl dev up --identity spire`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.stackConfig()
			if err != nil {
				return err
			}
			cfg.Identity, cfg.Tenant, cfg.Launchers, cfg.Module = identity, sealed.Name(tenant), launchers, module
			s, err := devstack.Up(cmd.Context(), cfg)
			a.endProgress()
			if err != nil {
				return err
			}
			if err := a.showStack(s.Status(cmd.Context())); err != nil {
				return err
			}
			a.talk("next: eval \"$(sealedctl dev env)\" && sealedctl dev login operator")
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&identity, "identity", devstack.IdentityEmbedded, "embedded or spire")
	fl.StringVar(&tenant, "tenant", "acme", "tenant of the mount")
	fl.StringVar(&module, "module", "", "directory of Sealed's source (default: here or above)")
	fl.IntSliceVar(&launchers, "launcher", nil, "further uid that may start sandboxes (repeatable)")
	return cmd
}

func (a *app) showStack(s devstack.Status) error {
	return a.print(s, func(w io.Writer) {
		row(w, "state", s.State)
		row(w, "identity", s.Identity+", "+s.TrustDomain)
		row(w, "tenant", s.Tenant)
		row(w, "vault", s.VaultAddr+" ("+s.Vault+")")
		row(w, "directory", s.Dir)
		for _, p := range s.Processes {
			life := "dead"
			if p.Alive {
				life = "alive"
			}
			row(w, "process", fmt.Sprintf("%s %d %s", p.Name, p.PID, life))
		}
		for _, v := range s.Servers {
			row(w, "server", v.Name+" "+v.Version)
		}
		if s.OnePerson {
			row(w, "warning", "one person can widen what agents reach: a stack for one machine asks no second")
		}
	})
}

func newDevStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what the stack is doing", Args: cobra.NoArgs,
		Long: `Status shows what runs and where. A stack that is not up is a failure.

  sealedctl dev status -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.stack()
			if err != nil {
				return err
			}
			status := s.Status(cmd.Context())
			if err := a.showStack(status); err != nil {
				return err
			}
			if status.State != devstack.StateUp {
				return &hintError{err: fmt.Errorf("the stack is %s", status.State), hint: "sealedctl dev up"}
			}
			return nil
		},
	}
}

func newDevDownCmd(a *app) *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use: "down", Short: "Stop the stack", Args: cobra.NoArgs,
		Long: `Down stops what up has started. Data stays, and up goes on from it; --remove
deletes everything.

  sealedctl dev down --remove`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.stack()
			if err != nil {
				return err
			}
			if remove {
				return s.Remove(cmd.Context())
			}
			return s.Down(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "delete the directory of the stack too")
	return cmd
}

func newDevLoginCmd(a *app) *cobra.Command {
	var show bool
	cmd := &cobra.Command{
		Use: "login USER", Short: "Log in as a user of the stack", Args: cobra.ExactArgs(1),
		Long: `Login writes a token to ~/.vault-token, as vault login does. The users are admin,
operator, approver, approver2 and auditor; each is another person.

  sealedctl dev login operator
  VAULT_TOKEN="$(sealedctl dev login approver --print-token)" sealedctl approvals list`,
		ValidArgsFunction: cobra.FixedCompletions([]string{"admin", "operator", "approver", "approver2", "auditor"}, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.stack()
			if err != nil {
				return err
			}
			l, err := s.Login(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if show {
				_, err := fmt.Fprintln(a.stdout, string(l.Token))
				return err
			}
			if err := a.writeToken(string(l.Token)); err != nil {
				return err
			}
			a.talk("logged in as %s for %s", args[0], time.Duration(l.TTL)*time.Second)
			if a.getenv("VAULT_TOKEN") != "" {
				a.talk("warning: VAULT_TOKEN is set and comes first")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&show, "print-token", false, "print the token instead of writing it to ~/.vault-token")
	return cmd
}

// writeToken replaces ~/.vault-token as a whole, for its owner only.
func (a *app) writeToken(token string) error {
	home := a.getenv("HOME")
	f, err := os.CreateTemp(home, ".vault-token-*")
	if err != nil {
		return fmt.Errorf("writing token: %w", err)
	}
	_, err = f.WriteString(token)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(home, ".vault-token"))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing token: %w", err), os.Remove(f.Name()))
	}
	return nil
}

func newDevEnvCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "env", Short: "Print what a shell needs to talk to the stack", Args: cobra.NoArgs,
		Long: `Env prints export lines for a shell. There is no token among them: environments
are read by others. login writes one to a file.

  eval "$(sealedctl dev env)"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.stack()
			if err != nil {
				return err
			}
			st := s.Status(cmd.Context())
			vars := [][2]string{
				{"VAULT_ADDR", st.VaultAddr}, {"VAULT_CACERT", st.VaultCA}, {"SEALED_MOUNT", st.Mount},
				{"SEALED_TRUST_FILE", st.TrustFile}, {"SEALED_LIBEXEC", filepath.Dir(st.InitPath)}, {"SEALED_DEV_DIR", st.Dir},
			}
			if a.output != "table" {
				out := map[string]string{}
				for _, v := range vars {
					out[v[0]] = v[1]
				}
				return a.print(out, nil)
			}
			for _, v := range vars {
				a.write("export " + v[0] + "=" + shellQuote(v[1]) + "\n")
			}
			return nil
		},
	}
}

// shellQuote quotes for a POSIX shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func newDevBuildCmd(a *app) *cobra.Command {
	var servers bool
	var identity, module string
	cmd := &cobra.Command{
		Use: "build --servers", Short: "Build the servers of the stack into the cache", Args: cobra.NoArgs,
		Long: `Build makes the servers that up needs and PATH does not have, so that up is quick
later. It takes minutes the first time.

  sealedctl dev build --servers --identity spire`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !servers {
				return usagef("dev build wants --servers")
			}
			cfg, err := a.stackConfig()
			if err != nil {
				return err
			}
			cfg.Identity, cfg.Module = identity, module
			built, err := devstack.BuildServers(cmd.Context(), cfg)
			a.endProgress()
			if err != nil {
				return err
			}
			return a.print(built, func(w io.Writer) {
				for _, b := range built {
					row(w, b.Name, b.Version, b.Path)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&servers, "servers", false, "Vault, and SPIRE's server and agent")
	cmd.Flags().StringVar(&identity, "identity", devstack.IdentitySPIRE, "what up will be used with: embedded or spire")
	cmd.Flags().StringVar(&module, "module", "", "directory of Sealed's source (default: here or above)")
	return cmd
}

// newDevAuthorityCmd is a process of the stack. It is not for people.
func newDevAuthorityCmd() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use: "authority --config FILE", Hidden: true, Args: cobra.NoArgs,
		Short: "Serve the embedded authority (started by sealedctl dev up)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return devstack.RunAuthority(cmd.Context(), config)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration, written by up")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}
