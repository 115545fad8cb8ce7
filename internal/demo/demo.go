// Package demo plays one run of an attacked agent on a stack of its own, shows
// what happened, and checks that it happened.
//
// Everything is real but two things, which say so: the API that the agent
// calls is a double on this machine (upstream), and the agent is a script
// (agent/). The demo acts as three people with three Vault tokens: an
// administrator, an operator, and an approver.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/vaultclient"
)

// A Config says how to play.
type Config struct {
	Identity string   // devstack.IdentityEmbedded or IdentitySPIRE
	CacheDir string   // of built servers
	Self     []string // sealedctl's own path
	Keep     bool     // keep the directory for looking at
	Out      io.Writer
	Progress func(step string, done, total int64) // may be nil
}

// A check is one expectation.
type check struct {
	what string
	ok   bool
	note string
}

// A show is one performance.
type show struct {
	cfg      Config
	dir      string
	stack    *devstack.Stack
	status   devstack.Status
	api      *upstream
	admin    *vaultclient.Engine
	operator *vaultclient.Engine
	approver *vaultclient.Engine
	auditor  *vaultclient.Engine
	token    string // the operator's, for sealedctl run

	values  map[string]string // planted values by key
	checks  []check
	started time.Time
}

// ErrFailed means that an expectation did not hold.
var ErrFailed = errors.New("an expectation did not hold")

// Run plays the demo. It leaves nothing running, whatever happens, and returns
// ErrFailed when an expectation did not hold.
func Run(ctx context.Context, cfg Config) (err error) {
	s := &show{cfg: cfg, values: map[string]string{}, started: time.Now()}
	// A short path: Unix sockets below it have little room.
	if s.dir, err = os.MkdirTemp("/tmp", "sealed-demo-"); err != nil {
		return fmt.Errorf("making the demo's directory: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		err = errors.Join(err, s.clear())
	}()
	if err := s.setUp(ctx); err != nil {
		return err
	}
	play, err := s.play(ctx)
	if err != nil {
		return err
	}
	if err := s.review(ctx, play); err != nil {
		return err
	}
	return s.verdict()
}

// clear stops the stack and removes the directory.
func (s *show) clear() error {
	var err error
	if s.stack != nil {
		err = s.stack.Down(context.WithoutCancel(context.Background()))
	}
	if s.cfg.Keep {
		s.say("kept: %s", s.dir)
		return err
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

func (s *show) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.cfg.Out, format+"\n", args...)
}

func (s *show) expect(what string, ok bool, note string, args ...any) {
	s.checks = append(s.checks, check{what, ok, fmt.Sprintf(note, args...)})
}

// setUp starts the API double and the stack, and logs everybody in.
func (s *show) setUp(ctx context.Context) error {
	var err error
	if s.api, err = startUpstream(ctx); err != nil {
		return err
	}
	if err := os.Chmod(s.dir, 0o711); err != nil { // run uids pass through
		return fmt.Errorf("making the demo's directory: %w", err)
	}
	cfg := devstack.Config{
		Dir: filepath.Join(s.dir, "dev"), Identity: s.cfg.Identity, CacheDir: s.cfg.CacheDir, Progress: s.cfg.Progress,
		Relay:         map[string]string{"api.demo.test:443": s.api.addr, "admin.demo.test:443": s.api.addr},
		UpstreamRoots: s.api.ca, DieWithParent: true,
		Self: append(s.cfg.Self, "dev", "authority"),
	}
	if s.stack, err = devstack.Up(ctx, cfg); err != nil {
		return err
	}
	s.status = s.stack.Status(ctx)
	for user, e := range map[string]**vaultclient.Engine{"admin": &s.admin, "operator": &s.operator, "approver": &s.approver, "auditor": &s.auditor} {
		c, err := s.stack.Client(ctx, user)
		if err != nil {
			return err
		}
		*e = c.Engine(devstack.Mount)
	}
	login, err := s.stack.Login(ctx, "operator")
	if err != nil {
		return err
	}
	s.token = string(login.Token)
	if os.Geteuid() != 0 {
		if err := s.relax(ctx); err != nil {
			return err
		}
	}
	return s.fill(ctx)
}

func (s *show) verdict() error {
	s.say("\nWhat was expected:")
	failed := 0
	for _, c := range s.checks {
		mark := "ok  "
		if !c.ok {
			mark = "FAIL"
			failed++
		}
		s.say("  %s  %s%s", mark, c.what, note(c.note))
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d: %w", failed, len(s.checks), ErrFailed)
	}
	s.say("\nAll %d expectations held, in %s.", len(s.checks), time.Since(s.started).Round(100*time.Millisecond))
	return nil
}

func note(n string) string {
	if n == "" {
		return ""
	}
	return "  (" + n + ")"
}
