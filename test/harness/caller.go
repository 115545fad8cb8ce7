package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/supervise"
	"sealed.dev/sealed/test/harness/require"
)

// A Caller says who runs sealedctl, and how. The zero Caller is the operator,
// under the test's own uid, in a new empty directory.
type Caller struct {
	User    string        // of the stack; empty: operator; "-": nobody, no token
	UID     int           // 0: the test's own
	Stdin   string        // empty: nothing to read
	Env     []string      // NAME=value, in addition to the environment of the stack
	Via     []string      // command that executes its last arguments, such as env; empty: none
	Dir     string        // working directory, and so the workspace; empty: a new one
	Timeout time.Duration // 0: two minutes
	Stdout  io.Writer     // where standard output goes; nil: into the Result
}

// Limits are far above what any call takes, on a busy machine too.
const (
	defaultTimeout = 2 * time.Minute
	awaitTimeout   = time.Minute
)

// A Result is what a command left.
type Result struct {
	Stdout, Stderr string
	Exit           int // -1: killed by a signal
	Elapsed        time.Duration
	Dir            string // the working directory
	StateDir       string // of sealedctl
}

var runRE = regexp.MustCompile(`\brun ([0-9A-HJKMNP-TV-Z]{26})\b`)

// RunID returns the run that sealedctl names on its standard error.
func (r Result) RunID(t testing.TB) sealed.RunID {
	t.Helper()
	m := runRE.FindStringSubmatch(r.Stderr)
	if m == nil {
		t.Fatalf("no run in: exit %d\n%s\n%s", r.Exit, r.Stdout, r.Stderr)
	}
	return sealed.RunID(m[1])
}

// RunDir returns the run's directory.
func (r Result) RunDir(t testing.TB) string {
	t.Helper()
	return supervise.RunDir(r.StateDir, string(r.RunID(t)))
}

// Want fails the test unless the status is exit.
func (r Result) Want(t testing.TB, exit int) Result {
	t.Helper()
	if r.Exit != exit {
		t.Fatalf("exit %d, want %d\nstdout: %s\nstderr: %s", r.Exit, exit, r.Stdout, r.Stderr)
	}
	return r
}

// Ctl runs sealedctl and waits for its end.
func (s *Stack) Ctl(t testing.TB, as Caller, args ...string) Result {
	t.Helper()
	return s.Start(t, as, args...).Wait(t)
}

// A Process is a sealedctl that runs.
type Process struct {
	cmd            *exec.Cmd
	stdout, stderr *output
	tty            *os.File // nil unless it has a terminal
	begun          time.Time
	limit          time.Duration
	done           chan struct{}
	res            Result
	dir, stateDir  string
}

// Start starts sealedctl in the background. It is killed at the end of the
// test if it lives then.
func (s *Stack) Start(t testing.TB, as Caller, args ...string) *Process {
	t.Helper()
	p := s.command(t, as, args)
	p.cmd.Stdin = strings.NewReader(as.Stdin)
	if as.Stdin == "" {
		p.cmd.Stdin = nil
	}
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	if as.Stdout != nil {
		p.cmd.Stdout = as.Stdout
	}
	p.start(t)
	return p
}

// StartTTY starts sealedctl on a new terminal, which also is its controlling
// one. What appears there is Stdout. Caller.Stdin is typed at once.
func (s *Stack) StartTTY(t testing.TB, as Caller, rows, cols int, args ...string) *Process {
	t.Helper()
	p := s.command(t, as, args)
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	p.tty = master
	p.Resize(t, rows, cols)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr.Setsid, p.cmd.SysProcAttr.Setctty = true, true
	go func() { _, _ = io.Copy(p.stdout, master) }()
	p.start(t)
	t.Cleanup(func() { _ = master.Close() })
	if as.Stdin != "" {
		p.Type(t, as.Stdin)
	}
	return p
}

func (s *Stack) command(t testing.TB, as Caller, args []string) *Process {
	t.Helper()
	if as.UID != 0 && as.UID != os.Geteuid() && os.Geteuid() != 0 {
		require.Missing(t, "root", fmt.Sprintf("uid %d: only root can become it", as.UID))
	}
	home := s.home(t, as.UID)
	p := &Process{stdout: newOutput(), stderr: newOutput(), limit: as.Timeout, done: make(chan struct{}), dir: as.Dir,
		stateDir: filepath.Join(home, "state", "sealed")}
	if p.limit == 0 {
		p.limit = defaultTimeout
	}
	if p.dir == "" {
		p.dir = s.Dir(t, as.UID)
	}
	argv := append(append(slices.Clone(as.Via), s.Sealedctl), args...)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Dir = p.dir
	p.cmd.Env = append(s.environ(t, as, home), as.Env...)
	p.cmd.WaitDelay = 5 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if as.UID != 0 && as.UID != os.Geteuid() {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(as.UID), Gid: uint32(as.UID), Groups: []uint32{}}
	}
	return p
}

// environ is the environment from scratch: the token travels in it, as Vault's
// own command has it.
func (s *Stack) environ(t testing.TB, as Caller, home string) []string {
	t.Helper()
	env := []string{
		"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + home, "XDG_STATE_HOME=" + filepath.Join(home, "state"), "LANG=C.UTF-8",
		"VAULT_ADDR=" + s.Status.VaultAddr, "VAULT_CACERT=" + s.Status.VaultCA, "SEALED_MOUNT=" + s.Status.Mount,
		"SEALED_TRUST_FILE=" + s.Status.TrustFile, "SEALED_LIBEXEC=" + filepath.Dir(s.Status.InitPath), "SEALED_DEV_DIR=" + s.Status.Dir,
	}
	if as.User == "-" {
		return env
	}
	if as.User == "" {
		as.User = "operator"
	}
	return append(env, "VAULT_TOKEN="+string(s.Token(t, as.User)))
}

// home makes the home of a uid. Uids of sandboxes pass through it.
func (s *Stack) home(t testing.TB, uid int) string {
	t.Helper()
	home := filepath.Join(s.Base, "home", fmt.Sprint(uid))
	for _, dir := range []string{home, filepath.Join(home, "state")} {
		s.mkdir(t, dir, uid, 0o711)
	}
	return home
}

// Dir makes an empty directory that belongs to uid (0: the test's own) and
// lasts as long as the test.
func (s *Stack) Dir(t testing.TB, uid int) string {
	t.Helper()
	dir := filepath.Join(s.Base, "work", fmt.Sprint(s.serial.Add(1)))
	s.mkdir(t, dir, uid, 0o755)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (s *Stack) mkdir(t testing.TB, dir string, uid int, mode os.FileMode) {
	t.Helper()
	err := os.Mkdir(dir, mode)
	if errors.Is(err, os.ErrExist) {
		return
	}
	if err == nil {
		err = os.Chmod(dir, mode)
	}
	if err == nil && uid != 0 && os.Geteuid() == 0 {
		err = os.Chown(dir, uid, uid)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (p *Process) start(t testing.TB) {
	t.Helper()
	p.begun = time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		p.res = Result{Exit: p.cmd.ProcessState.ExitCode(), Elapsed: time.Since(p.begun)}
		close(p.done)
	}()
	t.Cleanup(p.Kill)
}

// PID is that of sealedctl. Its child, the supervisor, owns the sandbox.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stdout is what was written so far; on a terminal, everything that appeared.
func (p *Process) Stdout() string { return p.stdout.String() }

// Stderr is what was written so far; empty on a terminal.
func (p *Process) Stderr() string { return p.stderr.String() }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and fails the test if it does not come in time.
func (p *Process) Wait(t testing.TB) Result {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(p.limit - time.Since(p.begun)):
		p.Kill()
		t.Fatalf("sealedctl %q still runs after %v\nstdout: %s\nstderr: %s", p.cmd.Args[1:], p.limit, p.Stdout(), p.Stderr())
	}
	r := p.res
	r.Stdout, r.Stderr, r.Dir, r.StateDir = p.Stdout(), p.Stderr(), p.dir, p.stateDir
	if p.tty != nil {
		r.Stderr = r.Stdout
	}
	return r
}

// Await waits until text has appeared on either stream.
func (p *Process) Await(t testing.TB, text string) {
	t.Helper()
	limit := time.NewTimer(awaitTimeout)
	defer limit.Stop()
	for {
		out, err := p.stdout.changed(), p.stderr.changed()
		if strings.Contains(p.Stdout(), text) || strings.Contains(p.Stderr(), text) {
			return
		}
		select {
		case <-out:
		case <-err:
		case <-p.done:
			if !strings.Contains(p.Stdout(), text) && !strings.Contains(p.Stderr(), text) {
				t.Fatalf("sealedctl %q ended with %d before it wrote %q\nstdout: %s\nstderr: %s", p.cmd.Args[1:], p.res.Exit, text, p.Stdout(), p.Stderr())
			}
			return
		case <-limit.C:
			t.Fatalf("sealedctl %q did not write %q\nstdout: %s\nstderr: %s", p.cmd.Args[1:], text, p.Stdout(), p.Stderr())
		}
	}
}

// RunID waits until sealedctl has named its run.
func (p *Process) RunID(t testing.TB) sealed.RunID {
	t.Helper()
	p.Await(t, "sealed: run ")
	return Result{Stderr: p.Stderr() + p.Stdout()}.RunID(t)
}

// RunDir returns the directory of the run, once sealedctl has named it.
func (p *Process) RunDir(t testing.TB) string {
	t.Helper()
	return supervise.RunDir(p.stateDir, string(p.RunID(t)))
}

// Status reads the status file of the run.
func (p *Process) Status(t testing.TB) supervise.Status {
	t.Helper()
	st, err := supervise.ReadStatus(p.RunDir(t))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// Signal sends a signal to sealedctl alone.
func (p *Process) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("signaling: %v", err)
	}
}

// Kill ends sealedctl by SIGKILL, if it lives, and waits until it was reaped.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Type writes to the terminal.
func (p *Process) Type(t testing.TB, text string) {
	t.Helper()
	if _, err := p.tty.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// Resize changes the size of the terminal.
func (p *Process) Resize(t testing.TB, rows, cols int) {
	t.Helper()
	if err := pty.Setsize(p.tty, &pty.Winsize{Rows: uint16(rows), Cols: uint16(cols)}); err != nil {
		t.Fatal(err)
	}
}

// An output collects what a process writes, and tells of each change.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	wake chan struct{}
}

func newOutput() *output { return &output{wake: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.wake)
	o.wake = make(chan struct{})
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// changed is closed at the next write.
func (o *output) changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.wake
}
