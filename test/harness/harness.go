// Package harness runs the tests that need everything: a real Vault with the
// engine in it, a real SPIRE (or, without root, the embedded authority), real
// sandboxes, and the real command sealedctl, as it is built from this tree.
//
// One test binary has one stack. Main is the body of its TestMain; the first
// Get brings the stack up, and Main removes it. A test that needs another one,
// such as a stack whose sealed-init has a control switched off (Mutant), has
// it by Open. Tests that stop servers take turns on a few stacks by Borrow.
//
// Our programs are built from the tree, once: they are kept in the cache, as the
// servers are. Where SEALED_PROGRAMS names a directory with them ready-built,
// nothing is built.
//
// # Guarantee
//
// A test either meets the real thing or is skipped with the reason; where
// SEALED_REQUIRE names what is missing it fails (package require). Every
// process that was started through the harness is gone when the test is.
//
// # What it does not guarantee
//
// The upstream is a double (see Upstream). Tests of one binary share engine,
// log and upstream: names and paths must be a test's own (see Name).
package harness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/harness/require"
)

// Unprivileged is a uid that may start sandboxes on a stack that root has
// brought up. It has no entry in the host's password file.
const Unprivileged = 54321

// Options say what stack the tests want.
type Options struct {
	// Identity is devstack.IdentitySPIRE or IdentityEmbedded; empty is SPIRE
	// as root and embedded otherwise.
	Identity string
	// Launchers may start sandboxes besides the test's own uid. Nil is
	// Unprivileged as root, and nobody otherwise.
	Launchers []int
	// Hosts of the upstream besides those of Hosts.
	Hosts []string
	// Programs is a directory with our programs ready-built, sealedctl among
	// them, as Stack.Programs makes it. Empty: that of SEALED_PROGRAMS, or else
	// they are built.
	Programs string
	// Stacks is how many there are for Borrow at most; 0 is one.
	Stacks int
	// Cold leaves out the run that shows that the stack works; for an Open with
	// a sealed-init that can't run one.
	Cold bool
}

// A Stack is what Get returns.
type Stack struct {
	*devstack.Stack
	Sealedctl string          // path of the built command
	Module    string          // root of this repository
	Base      string          // directory of everything; others may pass, not list
	Status    devstack.Status // as it was after coming up
	Upstream  *Upstream

	mu      sync.Mutex
	tokens  map[string]vaultclient.Token
	clients map[string]*vaultclient.Client // by user
	agents  sync.Mutex                     // held while a definition is written
	log     *logCopy
	serial  atomic.Int64
}

// shared is the stack of this test binary. testing has no other way from
// TestMain to a test than package state.
var shared struct {
	options Options
	inMain  bool
	once    sync.Once
	warm    sync.Once
	stack   *Stack
	err     error

	lent chan *Stack // those for Borrow that nobody has; nil is one to be made
	made struct {
		sync.Mutex
		stacks []*Stack
	}
}

// Main runs the tests of m and exits. As a child of the stack, with the
// arguments "authority --config FILE", it is the embedded authority instead.
func Main(m *testing.M, o Options) {
	if len(os.Args) == 4 && os.Args[1] == "authority" && os.Args[2] == "--config" {
		os.Exit(authority(os.Args[3]))
	}
	shared.options, shared.inMain = o.withDefaults(), true
	shared.lent = make(chan *Stack, max(1, o.Stacks))
	for range cap(shared.lent) {
		shared.lent <- nil
	}
	status := m.Run()
	if shared.stack != nil {
		shared.made.stacks = append(shared.made.stacks, shared.stack)
	}
	for _, s := range shared.made.stacks {
		if err := s.remove(); err != nil {
			fmt.Fprintln(os.Stderr, "harness:", err)
			status = 1
		}
	}
	os.Exit(status)
}

func (o Options) withDefaults() Options {
	if o.Identity == "" {
		o.Identity = devstack.IdentityEmbedded
		if os.Geteuid() == 0 {
			o.Identity = devstack.IdentitySPIRE
		}
	}
	if o.Launchers == nil && os.Geteuid() == 0 {
		o.Launchers = []int{Unprivileged}
	}
	if o.Programs == "" {
		o.Programs = os.Getenv("SEALED_PROGRAMS")
	}
	return o
}

func authority(config string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := devstack.RunAuthority(ctx, config); err != nil {
		slog.Error("authority ended", "error", err)
		return 1
	}
	return 0
}

// Get returns the stack, up. It skips or fails the test where that can't be.
func Get(t testing.TB) *Stack {
	t.Helper()
	wantMain(t)
	shared.once.Do(func() { shared.stack, shared.err = up(shared.options) })
	if shared.err != nil {
		t.Fatalf("bringing the stack up: %v", shared.err)
	}
	shared.warm.Do(func() { shared.stack.warm(t) })
	return shared.stack
}

func wantMain(t testing.TB) {
	t.Helper()
	if !shared.inMain {
		t.Fatal("harness: TestMain does not call harness.Main")
	}
	if testing.Short() {
		t.Skip("short")
	}
	shared.options.needs(t)
}

// Borrow returns a stack that no other test has until this one has ended. It is
// one that a test has given back, unless there are fewer than Options.Stacks
// yet. Whoever stops a server on it starts it again: a stack comes back as it
// was, but for what is stored in it.
func Borrow(t testing.TB) *Stack {
	t.Helper()
	wantMain(t)
	s := <-shared.lent
	t.Cleanup(func() {
		if t.Failed() && s != nil {
			s.complaints(t)
			s = nil // nobody knows what is left of it
		}
		shared.lent <- s
	})
	if s != nil {
		return s
	}
	made, err := up(shared.options)
	if err != nil {
		t.Fatalf("bringing a stack up: %v", err)
	}
	s = made // to be given back
	shared.made.Lock()
	shared.made.stacks = append(shared.made.stacks, s)
	shared.made.Unlock()
	s.warm(t)
	return s
}

// complaints shows the warnings and errors that Vault and its plug-ins logged last.
func (s *Stack) complaints(t testing.TB) {
	b, err := os.ReadFile(filepath.Join(s.Status.Dir, "private", "log", "vault.log"))
	if err != nil {
		t.Logf("Vault's log: %v", err)
		return
	}
	var last []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "[WARN]") || strings.Contains(line, "[ERROR]") {
			last = append(last, line)
		}
	}
	t.Logf("Vault complained last of:\n%s", strings.Join(last[max(0, len(last)-40):], ""))
}

// Open brings up a stack of the test's own, which ends with the test.
func Open(t testing.TB, o Options) *Stack {
	t.Helper()
	o = o.withDefaults()
	o.needs(t)
	s, err := up(o)
	if err != nil {
		t.Fatalf("bringing a stack up: %v", err)
	}
	t.Cleanup(func() {
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	})
	if !o.Cold {
		s.warm(t)
	}
	return s
}

// needs looks for what is not built here: the servers and bubblewrap.
func (o Options) needs(t testing.TB) {
	t.Helper()
	if o.Identity == devstack.IdentitySPIRE {
		require.Root(t, "SPIRE attests other users' processes")
	}
	require.Bubblewrap(t)
	for _, s := range devstack.Servers(o.Identity) {
		if _, err := exec.LookPath(s.Name); err == nil {
			continue
		}
		module, err := findModule()
		if err != nil {
			t.Fatal(err)
		}
		name, err := s.CacheName(module)
		if err != nil {
			t.Fatal(err)
		}
		if !exists(filepath.Join(devstack.CacheDir(os.Getenv), "bin", name)) {
			what, _, _ := strings.Cut(s.Name, "-")
			require.Missing(t, what, name+" is not built (sealedctl dev build --servers)")
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// findModule returns the directory of go.mod, here or above.
func findModule() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if exists(filepath.Join(dir, "go.mod")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	return "", errors.Join(errors.New("finding the repository: no go.mod here or above"), err)
}

// up makes everything below one short directory: a Unix socket's name is
// short, and the uids of sandboxes must be able to pass.
func up(o Options) (*Stack, error) {
	module, err := findModule()
	if err != nil && o.Programs == "" {
		return nil, err
	}
	base, err := os.MkdirTemp("", "sl")
	if err != nil {
		return nil, err
	}
	s := &Stack{
		Base: base, Module: module, Sealedctl: filepath.Join(base, "sealedctl"),
		tokens: map[string]vaultclient.Token{}, clients: map[string]*vaultclient.Client{}, log: newLogCopy(),
	}
	if err := s.fill(o); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return s, nil
}

func (s *Stack) fill(o Options) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for _, dir := range []string{s.Base, filepath.Join(s.Base, "home"), filepath.Join(s.Base, "work")} {
		if err := errors.Join(os.MkdirAll(dir, 0o711), os.Chmod(dir, 0o711)); err != nil {
			return err
		}
	}
	var err error
	if s.Upstream, err = startUpstream(append(Hosts(), o.Hosts...)); err != nil {
		return err
	}
	built := make(chan error, 1)
	go func() {
		if o.Programs != "" {
			built <- link(filepath.Join(o.Programs, "sealedctl"), s.Sealedctl)
			return
		}
		built <- recipe{module: s.Module, pkg: "./cmd/sealedctl", variant: plain}.build(ctx, s.Sealedctl)
	}()
	stack, err := devstack.Up(ctx, devstack.Config{
		Dir: filepath.Join(s.Base, "s"), Identity: o.Identity, CacheDir: devstack.CacheDir(os.Getenv), Module: s.Module, Programs: o.Programs, Launchers: o.Launchers,
		Relay: s.Upstream.relay(), UpstreamRoots: s.Upstream.CA, Self: []string{os.Args[0], "authority"}, DieWithParent: true,
	})
	s.Stack = stack
	if err := errors.Join(err, <-built); err != nil {
		return err
	}
	s.Status = stack.Status(ctx)
	return s.addSource(ctx)
}

// warm makes one run after the stack has come up. SPIRE's agent learns of its
// entries a little later than it listens, and refuses until then.
func (s *Stack) warm(t testing.TB) {
	t.Helper()
	s.Agent(t, "custom")
	for range 100 {
		r := s.Ctl(t, Caller{}, "run", "--agent", "custom", "--mode", "identity", "--no-workspace", "--", "true")
		if r.Exit == 0 {
			return
		}
		if !strings.Contains(r.Stderr, "no identity issued") && !strings.Contains(r.Stderr, "dialing attestor registry") {
			t.Fatalf("the first run: exit %d: %s", r.Exit, r.Stderr)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("the stack gives no identity")
}

func (s *Stack) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if s.Stack != nil {
		errs = append(errs, s.Stack.Remove(ctx))
	}
	if s.Upstream != nil {
		s.Upstream.close()
	}
	return errors.Join(append(errs, os.RemoveAll(s.Base))...)
}
