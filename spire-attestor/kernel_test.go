package spireattestor_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/devstack/authority"
	"sealed.dev/sealed/internal/sealed"
	spireattestor "sealed.dev/sealed/spire-attestor"
	"sealed.dev/sealed/spire-attestor/registry"
	"sealed.dev/sealed/test/harness/require"
)

const (
	agentID   = "spiffe://embedded.sealed.invalid/sealed/tenant/acme/agent/test"
	runUIDMin = 700000
	runUIDMax = 700999
	otherUID  = 4711 // a launcher of its own sandboxes
)

// need skips the test, or fails it when SEALED_REQUIRE lists what is missing.
func need(t *testing.T, what string, missing error) {
	t.Helper()
	if missing == nil {
		return
	}
	require.Missing(t, what, missing.Error())
}

func needBwrap(t *testing.T) {
	t.Helper()
	require.Bubblewrap(t)
	require.Root(t, "root starts sandboxes with uids of their own")
}

// buildDir holds the test init; TestMain makes and removes it.
var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "sealed-attestor-init-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(buildDir)
	os.Exit(code)
}

var buildInit = sync.OnceValues(func() (string, error) {
	out := filepath.Join(buildDir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, "./testdata/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building test init: %w: %s", err, text)
	}
	return out, nil
})

// A world is one host: root's directory with init and trust file, an attestor
// with its registry, and an authority around it.
type world struct {
	t        *testing.T
	dir      string
	init     string // path of the installed init
	digest   string
	trust    string
	clock    *clock
	attestor *spireattestor.Attestor
	registry string
	workload string
	log      *lines
	cfg      spireattestor.Config
	entry    []string // selectors of the one entry
}

func newWorld(t *testing.T) *world {
	t.Helper()
	needBwrap(t)
	w := &world{t: t, dir: rootDir(t), clock: &clock{now: time.Now()}, log: &lines{}}
	built, err := buildInit()
	if err != nil {
		t.Fatal(err)
	}
	w.init, w.digest = install(t, built, filepath.Join(w.dir, "init"), 0o711)
	w.trust = writeTrust(t, filepath.Join(w.dir, "trust.json"))
	w.registry = filepath.Join(w.dir, "registry.sock")
	w.workload = filepath.Join(w.dir, "workload.sock")
	w.cfg = spireattestor.Config{
		TrustFile: w.trust, InitSHA256: []string{w.digest},
		RunUIDs: spireattestor.UIDRange{Min: runUIDMin, Max: runUIDMax},
		Launchers: map[uint32]spireattestor.Launcher{
			0:        {Tenant: "acme", Agents: []sealed.Name{"test"}},
			otherUID: {Tenant: "acme", Agents: []sealed.Name{"test"}},
		},
		Clock: w.clock.Now,
		Log:   slog.New(slog.NewTextHandler(w.log, nil)),
	}
	if w.attestor, err = spireattestor.New(w.cfg); err != nil {
		t.Fatal(err)
	}
	l, err := spireattestor.ListenRegistry(w.registry)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, func(ctx context.Context) error { return w.attestor.Serve(ctx, l) })
	w.entry = []string{"tenant:acme", "agent:test", "init_sha256:" + w.digest, "isolation:own_uid", "init_owner:root"}
	w.serveAuthority(w.attestor, w.workload)
	return w
}

// serveAuthority starts an embedded authority around at, with one entry.
func (w *world) serveAuthority(at authority.Attestor, socket string) {
	w.t.Helper()
	a, err := authority.New(authority.Config{
		Attestor: at,
		Entries: []authority.Entry{{
			ID:        spiffeid.RequireFromString(agentID),
			Selectors: w.entry,
		}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o777); err != nil {
		w.t.Fatal(err)
	}
	serve(w.t, func(ctx context.Context) error { return a.Serve(ctx, l) })
}

// serve runs f until the end of the test.
func serve(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
}

// rootDir is a directory that only root may change; it must be reachable by
// the sandbox's uid, which t.TempDir need not be.
func rootDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/lib", "sealed-attestor-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func install(t *testing.T, from, to string, mode os.FileMode) (path, digest string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, mode); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return to, hex.EncodeToString(sum[:])
}

func writeTrust(t *testing.T, path string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// A sandbox is a running test init under bubblewrap.
type sandbox struct {
	t   *testing.T
	pid int // host's number of the init
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// sandboxSpec varies what the launcher does; the zero value of a field is the
// honest choice.
type sandboxSpec struct {
	uid      uint32
	init     string
	trust    string
	workload string
	wrap     []string // command in front of init inside the sandbox
	args     []string // more bubblewrap arguments
}

func (w *world) start(s sandboxSpec) *sandbox {
	w.t.Helper()
	if s.uid == 0 {
		s.uid = runUIDMin + 1
	}
	if s.init == "" {
		s.init = w.init
	}
	if s.trust == "" {
		s.trust = w.trust
	}
	if s.workload == "" {
		s.workload = w.workload
	}
	infoR, infoW, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	defer infoR.Close()
	socket := openPath(w.t, s.workload)
	trust, err := os.Open(s.trust)
	if err != nil {
		w.t.Fatal(err)
	}
	args := []string{
		"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--as-pid-1", "--die-with-parent",
		"--cap-drop", "ALL", "--ro-bind", s.init, "/init", "--proc", "/proc", "--tmpfs", "/tmp", "--info-fd", "3",
	}
	args = append(append(append(args, s.args...), "--"), append(s.wrap, "/init")...)
	cmd := exec.Command("bwrap", args...)
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.ExtraFiles = []*os.File{infoW, socket, trust}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.uid, Gid: s.uid, NoSetGroups: os.Geteuid() != 0}}
	sb := &sandbox{t: w.t, cmd: cmd}
	if sb.in, err = cmd.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	sb.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(sb.kill)
	_ = errors.Join(infoW.Close(), socket.Close(), trust.Close())
	var info struct {
		ChildPID int `json:"child-pid"`
	}
	if err := json.NewDecoder(infoR).Decode(&info); err != nil {
		w.t.Fatalf("reading bubblewrap's info: %v", err)
	}
	sb.pid = info.ChildPID
	return sb
}

func openPath(t *testing.T, path string) *os.File {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), path)
}

// say sends one command to init and returns its answer.
func (s *sandbox) say(command string) string {
	s.t.Helper()
	if _, err := io.WriteString(s.in, command+"\n"); err != nil {
		s.t.Fatalf("telling init %q: %v", command, err)
	}
	line, err := s.out.ReadString('\n')
	if err != nil {
		s.t.Fatalf("hearing init after %q: %v", command, err)
	}
	return strings.TrimSpace(line)
}

func (s *sandbox) kill() {
	_ = syscall.Kill(s.pid, syscall.SIGKILL)
	_ = s.in.Close()
	_ = s.cmd.Wait()
}

func (w *world) register(s *sandbox) *registry.Registration {
	w.t.Helper()
	r, err := w.tryRegister(s.pid)
	if err != nil {
		w.t.Fatalf("registering: %v\n%s", err, w.log)
	}
	return r
}

func (w *world) tryRegister(pid int) (*registry.Registration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := registry.Register(ctx, w.registry, registry.Descriptor{Agent: "test", PID: pid})
	if err == nil {
		w.t.Cleanup(func() { _ = r.Close() })
	}
	return r, err
}

// asUID runs f on a thread of its own with another effective uid, which is
// what SO_PEERCRED reports for sockets that f connects.
func asUID(t *testing.T, uid int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		const keep = ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			t.Errorf("changing uid: %v", errno)
			return
		}
		f()
		// The thread must not end: a sandbox that it started would die with it
		// (--die-with-parent is about the thread).
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep); errno != 0 {
			t.Errorf("changing uid back: %v", errno)
			return
		}
		runtime.UnlockOSThread()
	}()
	<-done
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) Advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

// lines is a log that tests read.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }

func (l *lines) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }
