// Package sandboxtest is the conformance suite of sandbox drivers.
//
// The idea: a small static program, probe, stands in for sealed-init. It looks
// around in its sandbox, reports what it found, and the suite compares that
// with the promises of package sandbox, from inside and from outside.
//
// What passes here keeps the promises for the kernel and the driver it ran on.
// It does not show that the kernel has no holes.
package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sealed"
)

// BuildProbe builds the probe into dir, mode 0711, and returns its path.
func BuildProbe(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "probe")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "sealed.dev/sealed/internal/sandbox/sandboxtest/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building probe: %v\n%s", err, out)
	}
	if err := os.Chmod(path, 0o711); err != nil {
		t.Fatal(err)
	}
	return path
}

// OpenDir makes a directory that every uid can reach, unlike t.TempDir.
func OpenDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sealed-sandboxtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A Bench runs the probe in sandboxes of one driver.
type Bench struct {
	Driver    sandbox.Driver
	Probe     string // path
	UID       int
	Isolation string
	ReadOnly  []string
	Limits    sandbox.Limits
}

// A Box is a sandbox under test.
type Box struct {
	sandbox.Sandbox
	Workspace string
	Stdout    *Output
	Stderr    *Output
	Relay     *os.File // the host's end
}

// Output collects what a sandbox writes.
type Output struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	notify chan struct{}
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.notify <- struct{}{}:
	default:
	}
	return o.buf.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Await waits until the output contains text.
func (o *Output) Await(t testing.TB, text string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !strings.Contains(o.String(), text) {
		select {
		case <-o.notify:
		case <-deadline:
			t.Fatalf("no %q in %q", text, o.String())
		}
	}
}

// Start starts a sandbox that does what argv tells the probe.
func (b Bench) Start(t testing.TB, argv ...string) *Box {
	t.Helper()
	box, err := b.TryStart(t, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

// TryStart is Start for tests of failure.
func (b Bench) TryStart(t testing.TB, argv ...string) (*Box, error) {
	t.Helper()
	ws := filepath.Join(OpenDir(t), "workspace")
	must(t, os.Mkdir(ws, 0o700))
	if b.Isolation == sealed.IsolationOwnUID {
		must(t, os.Chown(ws, b.UID, b.UID))
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "relay"), os.NewFile(uintptr(pair[1]), "relay")
	t.Cleanup(func() { _ = ours.Close() })
	bootR, bootW, err := os.Pipe()
	must(t, err)
	outR, outW, err := os.Pipe()
	must(t, err)
	errR, errW, err := os.Pipe()
	must(t, err)
	null, err := os.Open(os.DevNull)
	must(t, err)
	handed := []*os.File{theirs, bootR, outW, errW, null}
	box := &Box{Workspace: ws, Relay: ours, Stdout: &Output{notify: make(chan struct{}, 1)}, Stderr: &Output{notify: make(chan struct{}, 1)}}
	box.Sandbox, err = b.Driver.Start(context.Background(), sandbox.Spec{
		Run: "01JZZZZZZZZZZZZZZZZZZZZZZZ", UID: b.UID, GID: b.UID, Isolation: b.Isolation,
		Init: b.Probe, Workspace: ws, ReadOnly: b.ReadOnly, Limits: b.Limits,
		Stdin: null, Stdout: outW, Stderr: errW, Relay: theirs, Boot: bootR, Trust: null, SPIFFE: null,
	})
	for _, f := range handed {
		_ = f.Close()
	}
	if err != nil {
		_ = errors.Join(bootW.Close(), outR.Close(), errR.Close())
		return nil, err
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = box.Kill()
		_, _ = box.Wait()
		wg.Wait()
	})
	wg.Go(func() { _, _ = io.Copy(box.Stdout, outR) })
	wg.Go(func() { _, _ = io.Copy(box.Stderr, errR) })
	if err := json.NewEncoder(bootW).Encode(sealed.Boot{Argv: argv}); err != nil && !errors.Is(err, unix.EPIPE) {
		t.Fatal(err) // EPIPE: ended already, which some tests want
	}
	must(t, bootW.Close())
	return box, nil
}

// Shell runs a script in a fresh sandbox and returns it, ended.
func (b Bench) Shell(t testing.TB, script string) *Box {
	t.Helper()
	box := b.Start(t, "shell", script+"; echo DONE")
	box.Stdout.Await(t, "DONE")
	if _, err := box.Wait(); err != nil {
		t.Fatal(err)
	}
	return box
}

// Survivors returns the processes, zombies apart, in a pid namespace, which is
// named as readlink(2) of /proc/<pid>/ns/pid does. It sees only processes that
// the caller may look into.
func Survivors(t testing.TB, pidNamespace string) []string {
	t.Helper()
	var out []string
	dirs, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	for _, d := range dirs {
		if ns, err := os.Readlink(d + "/ns/pid"); err == nil && ns == pidNamespace && !ended(d) {
			out = append(out, d)
		}
	}
	return out
}

// mode of a file on the host, as Lstat sees it.
func modeOf(t testing.TB, path string) fs.FileMode {
	t.Helper()
	st, err := os.Lstat(path)
	must(t, err)
	return st.Mode()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
