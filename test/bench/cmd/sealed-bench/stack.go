package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/supervise"
	"sealed.dev/sealed/internal/vaultclient"
)

// The names that real runs use.
const (
	agentName   = sealed.Name("custom")
	profileName = sealed.ProfileName("team/bench")
	workflow    = sealed.Name("bench")
	keyName     = sealed.KeyName("BENCH_TOKEN")
)

// A stack is everything that is measured, in one directory.
type stack struct {
	*devstack.Stack
	dir      string // 0711: a run's uid passes through
	ctl      string // sealedctl
	status   devstack.Status
	operator *vaultclient.Engine
	root     *vaultclient.Client
	token    string  // the operator's
	synced   bool    // Vault syncs every write to disk
	tenant   *tenant // once it was asked for
}

// openStack builds sealedctl and brings everything up.
func openStack(ctx context.Context, inMemory bool, stderr io.Writer) (*stack, error) {
	dir, err := os.MkdirTemp("", "sealed-bench-")
	if err != nil {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	s := &stack{dir: dir, ctl: filepath.Join(dir, "sealedctl"), synced: !inMemory}
	if err := s.open(ctx, inMemory, stderr); err != nil {
		return nil, errors.Join(err, s.close(context.WithoutCancel(ctx)))
	}
	return s, nil
}

func (s *stack) open(ctx context.Context, inMemory bool, stderr io.Writer) error {
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return fmt.Errorf("making directory: %w", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", s.ctl, "sealed.dev/sealed/cmd/sealedctl")
	build.Stdout, build.Stderr = stderr, stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building sealedctl: %w", err)
	}
	last := ""
	var err error
	s.Stack, err = devstack.Up(ctx, devstack.Config{
		Dir: filepath.Join(s.dir, "s"), CacheDir: os.Getenv("SEALED_CACHE"), Self: []string{s.ctl, "dev", "authority"}, DieWithParent: true, InMemory: inMemory,
		Progress: func(step string, _, _ int64) {
			if short, _, _ := strings.Cut(step, ": "); short != last {
				last = short
				_, _ = fmt.Fprintf(stderr, "sealed-bench: %s\n", short)
			}
		},
	})
	if err != nil {
		return err
	}
	s.status = s.Status(ctx)
	if s.root, err = s.Root(); err != nil {
		return err
	}
	login, err := s.Login(ctx, "operator")
	if err != nil {
		return err
	}
	s.token = string(login.Token)
	c, err := s.root.WithToken(s.token)
	if err != nil {
		return err
	}
	s.operator = c.Engine(devstack.Mount)
	return s.fill(ctx)
}

// fill plays the administrator.
func (s *stack) fill(ctx context.Context) error {
	c, err := s.Client(ctx, "admin")
	if err != nil {
		return err
	}
	admin := c.Engine(devstack.Mount)
	if _, err := admin.PutSecret(ctx, "bench/token", []byte("bench-value-0123456789abcdef")); err != nil {
		return err
	}
	if _, err := admin.WriteAgent(ctx, sealed.AgentDefinition{Name: agentName, AnyBinary: true}); err != nil {
		return err
	}
	_, err = admin.WriteProfile(ctx, profile("sealed-operators"))
	return err
}

// profile has one key of low risk, which is delivered through the proxy.
func profile(group string) sealed.Profile {
	return sealed.Profile{
		Name: profileName, Level: sealed.LevelWorkflow, Owner: "bench", AllowedWorkflows: []string{string(workflow)},
		Requesters: sealed.Requesters{Groups: []string{group}},
		Keys: map[sealed.KeyName]sealed.KeySpec{keyName: {
			Source: "builtin", Ref: sealed.KeyRef{Path: "bench/token"}, Agents: []string{string(agentName)}, Risk: sealed.RiskLow, Delivery: sealed.DeliveryProxy,
			TTL: sealed.Duration(5 * time.Minute), MaxTTL: sealed.Duration(time.Hour),
			Bindings: []sealed.Binding{{Host: "api.bench.test", Methods: []string{"GET"}, Paths: []string{"/v1/**"}}},
		}},
	}
}

// close stops everything and removes every file.
func (s *stack) close(ctx context.Context) error {
	var err error
	if s.Stack != nil {
		err = s.Remove(ctx)
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

func (s *stack) stateDir() string { return filepath.Join(s.dir, "state", "sealed") }

// command is `sealedctl run` of the agent, with the options, before "--".
func (s *stack) command(ctx context.Context, options []string, argv ...string) *exec.Cmd {
	args := append([]string{"run", "--agent", string(agentName), "--no-workspace"}, options...)
	cmd := exec.CommandContext(ctx, s.ctl, append(append(args, "--"), argv...)...)
	cmd.Env = []string{
		"PATH=/usr/bin:/bin", "HOME=" + s.dir, "XDG_STATE_HOME=" + filepath.Join(s.dir, "state"),
		"VAULT_ADDR=" + s.status.VaultAddr, "VAULT_CACERT=" + s.status.VaultCA, "VAULT_TOKEN=" + s.token,
		"SEALED_MOUNT=" + s.status.Mount, "SEALED_TRUST_FILE=" + s.status.TrustFile, "SEALED_LIBEXEC=" + filepath.Dir(s.status.InitPath),
	}
	cmd.Dir = "/"
	return cmd
}

// withKey are the options of a run that gets the key.
func withKey() []string {
	return []string{"--profile", string(profileName), "--workflow", string(workflow)}
}

// runID finds the run in what sealedctl says.
func runID(said []byte) (sealed.RunID, error) {
	for word := range bytes.FieldsSeq(said) {
		if id, err := sealed.ParseRunID(string(bytes.TrimRight(word, ","))); err == nil {
			return id, nil
		}
	}
	return "", fmt.Errorf("sealedctl names no run: %s", said)
}

// runDir is where a run's files are.
func (s *stack) runDir(id sealed.RunID) string { return supervise.RunDir(s.stateDir(), string(id)) }
