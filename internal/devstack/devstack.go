// Package devstack runs a real Vault, with Sealed's engine in it, and a real
// identity on the loopback addresses of one machine, for sealedctl dev,
// sealedctl demo and the tests.
//
// # Idea
//
// Nothing is mocked and nothing is in Vault's -dev mode: one raft node with TLS
// and an audit file, set up by the steps that an administrator would take, with
// ordinary users who log in with passwords. Identity is either SPIRE with
// Sealed's attestor as a plug-in, or the embedded authority around the same
// attestor. Up makes the stack from nothing and is also what repairs it: it
// starts what is not running and repeats what is not done.
//
// # Guarantee
//
// Servers listen on 127.0.0.1 only. Their environment is made from scratch.
// Passwords, keys and tokens lie in <dir>/private (mode 0700) and nowhere else;
// none is in an argument, an environment or a log. Down ends the processes that
// the stack started and no other, even if their numbers were taken over.
//
// # What it does not guarantee
//
// It is not for production. The unseal key and the root token are stored beside
// the data that they protect: whoever reads the private directory, which is the
// user who started the stack and root, is Vault's root. A user without root
// privileges gets sandboxes of the grade same_uid at best.
//
// # Files
//
//	<dir>/state.json    what runs where; no secrets
//	<dir>/trust.json    whom sealed-init trusts (sealed.TrustFile)
//	<dir>/ca.pem        CA of the stack's listeners, limited to loopback
//	<dir>/bin/          sealed-init and sealed, mode 0711
//	<dir>/run/          sockets: spiffe/agent.sock, registry/registry.sock
//	<dir>/private/      everything else
package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// The kinds of identity.
const (
	IdentityEmbedded = "embedded" // the authority of one machine, in sealed.ReservedTrustDomain
	IdentitySPIRE    = "spire"    // SPIRE server and agent, in the trust domain sealed.test; needs root
)

// Mounts and names that every stack has.
const (
	Mount     = "sealed"       // of the engine
	AuthMount = "jwt-sealed"   // of auth/jwt, for agents
	AuthRole  = "sealed-agent" // its role
	Audience  = "vault://sealed"
	// PolicyKeyID names the key that signs the default policy bundle.
	PolicyKeyID = "dev-1"
)

const spireTrustDomain = "sealed.test"

// Config says what stack to run. Only Dir is required.
type Config struct {
	// Dir is the absolute path of the state directory. Every directory above
	// it must belong to root or the caller and be writable by its owner alone,
	// or be sticky: the attestor insists.
	Dir string
	// Identity is IdentityEmbedded (the default) or IdentitySPIRE.
	Identity string
	// CacheDir keeps built servers; empty means CacheDir(os.Getenv).
	CacheDir string
	// Module is the directory of this repository; empty means that it is
	// looked for from the working directory upwards, when it is needed.
	Module string
	// Programs is a directory that holds our programs ready-built, such as an
	// installed release; empty means that they are built from Module.
	Programs string
	// Tenant of the mount; empty means acme.
	Tenant sealed.Name
	// Launchers are further uids that may start sandboxes; the caller's may.
	Launchers []int
	// Relay goes into the trust file: host:port to an address of this machine
	// or a private network, which sandboxes otherwise never reach.
	Relay map[string]string
	// UpstreamRoots are PEM certificates that sandboxes trust for upstream TLS
	// besides the system's.
	UpstreamRoots []byte
	// Self is the command that runs RunAuthority on its last two arguments,
	// "--config FILE"; empty means this executable with "dev authority".
	Self []string
	// InMemory keeps Vault's storage in memory: nothing survives its end, and no
	// snapshot can be taken. For measurements without a disk.
	InMemory bool
	// DieWithParent ends the servers when the calling process does.
	DieWithParent bool
	// Log receives what happens; nil discards.
	Log *slog.Logger
	// Progress is told about every step and, with counts, about long ones; total 0
	// means unknown. It may be called from several goroutines. May be nil.
	Progress func(step string, done, total int64)
}

func (c *Config) progress(step string, done, total int64) {
	if c.Progress != nil {
		c.Progress(step, done, total)
	}
}

// withDefaults fills in what is empty and refuses what can't work.
func (c Config) withDefaults() (Config, error) {
	if c.Identity == "" {
		c.Identity = IdentityEmbedded
	}
	if c.Tenant == "" {
		c.Tenant = "acme"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if !slices.Contains([]string{IdentityEmbedded, IdentitySPIRE}, c.Identity) {
		return c, &sealed.FieldError{Field: "identity", Reason: "wants embedded or spire"}
	}
	if c.Identity == IdentitySPIRE && os.Geteuid() != 0 {
		return c, &sealed.FieldError{Field: "identity", Reason: "spire attests other users' processes and needs root; use embedded"}
	}
	if os.Geteuid() != 0 && len(c.Launchers) > 0 {
		return c, &sealed.FieldError{Field: "launchers", Reason: "only root can serve other users"}
	}
	for i, uid := range c.Launchers {
		if uid <= 0 || uid >= runUIDMin && uid <= runUIDMax || slices.Contains(c.Launchers[:i], uid) {
			return c, &sealed.FieldError{Field: "launchers", Reason: "wants distinct uids above 0 and outside those of runs"}
		}
	}
	if _, err := sealed.ParseName("tenant", string(c.Tenant)); err != nil {
		return c, err
	}
	if err := plainPath(c.Dir); err != nil {
		return c, err
	}
	if c.CacheDir == "" {
		c.CacheDir = CacheDir(os.Getenv)
	}
	if len(c.Self) == 0 {
		self, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("finding this executable: %w", err)
		}
		c.Self = []string{self, "dev", "authority"}
	}
	return c, nil
}

// CacheDir is where built servers are kept: $SEALED_CACHE, or else sealed in
// the user's cache directory.
func CacheDir(getenv func(string) string) string {
	if c := getenv("SEALED_CACHE"); c != "" {
		return c
	}
	base := getenv("XDG_CACHE_HOME")
	if base == "" {
		base = filepath.Join(getenv("HOME"), ".cache")
	}
	return filepath.Join(base, "sealed")
}

// plainPath refuses characters that mean something in SPIRE's configuration
// language, in which the path is quoted.
func plainPath(path string) error {
	for _, r := range path {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		case r == '/', r == '.', r == '_', r == '-':
		default:
			return &sealed.FieldError{Field: "dir", Reason: "wants letters, digits, and / . _ - only"}
		}
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return &sealed.FieldError{Field: "dir", Reason: "wants a clean absolute path"}
	}
	return nil
}

// A Stack is a running (or stopped) stack. Its methods are safe for concurrent
// use, in several processes too.
type Stack struct {
	l layout
	s state
}

// Load finds the stack in dir by its state file. It does not look whether it
// runs; Status does. Without a state file the error is sealed.ErrNotFound.
func Load(dir string) (*Stack, error) {
	l := layout{dir}
	s, err := readState(l)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, fmt.Errorf("loading stack: no state file in %s: %w", dir, sealed.ErrNotFound)
	}
	return &Stack{l: l, s: *s}, nil
}

// Up brings the stack in cfg.Dir up: from nothing, or what is missing of it.
// It returns when an agent can be run. On error it stops what it has started.
// Errors of cfg wrap sealed.ErrInvalid.
func Up(ctx context.Context, cfg Config) (*Stack, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("starting stack: %w", err)
	}
	l := layout{cfg.Dir}
	if err := l.make(); err != nil {
		return nil, err
	}
	lock, err := lockFile(ctx, l.private("lock"), func() { cfg.progress("waiting for another dev up or down of this stack", 0, 0) })
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	b, err := newBringUp(cfg, l)
	if err != nil {
		return nil, fmt.Errorf("starting stack: %w", err)
	}
	if err := b.run(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("starting stack: %w", err), b.undo(context.WithoutCancel(ctx)))
	}
	return &Stack{l: l, s: b.state}, nil
}

// Down stops the processes of the stack, the last started first, and keeps all
// files: Up continues from them.
func (s *Stack) Down(ctx context.Context) error {
	lock, err := lockFile(ctx, s.l.private("lock"), nil)
	if err != nil {
		return fmt.Errorf("stopping stack: %w", err)
	}
	defer lock.Close()
	now, err := readState(s.l)
	if err != nil || now == nil {
		return err
	}
	return stopAll(ctx, now, false)
}

// Kill ends one process of the stack, and its plug-ins, by SIGKILL: what a
// crash is like. Names are vault, authority, spire-server, spire-agent. Up
// repairs.
func (s *Stack) Kill(ctx context.Context, name string) error {
	now, err := readState(s.l)
	if err != nil || now == nil {
		return err
	}
	p, ok := now.process(name)
	if !ok {
		return fmt.Errorf("killing %s: no such process: %w", name, sealed.ErrNotFound)
	}
	return p.stop(ctx, true)
}

// Remove stops the stack and deletes its directory. A directory that holds no
// stack is not touched.
func (s *Stack) Remove(ctx context.Context) error {
	if err := s.Down(ctx); err != nil {
		return err
	}
	if st, err := readState(s.l); err != nil || st == nil {
		return err
	}
	if err := os.RemoveAll(s.l.dir); err != nil {
		return fmt.Errorf("removing stack: %w", err)
	}
	return nil
}

// stopAll ignores a state of another boot: none of its processes can live.
func stopAll(ctx context.Context, s *state, hard bool) error {
	boot, err := bootID()
	if err != nil || boot != s.BootID {
		return err
	}
	var errs []error
	for _, p := range slices.Backward(s.Processes) {
		errs = append(errs, p.stop(ctx, hard))
	}
	return errors.Join(errs...)
}

// startLimit bounds the start of one server.
const startLimit = 30 * time.Second
