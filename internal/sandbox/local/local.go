// Package local makes sandboxes on this host with bubblewrap.
//
// bwrap runs as the uid of the sandbox, not as root and not set-uid: what it
// builds, it builds with the rights of an ordinary user in a user namespace of
// that user's own. It becomes two processes: a monitor outside, child of the
// caller, and process 1 inside, which executes sealed-init in place.
//
// # Guarantee
//
// That of package sandbox. The sandbox dies with the caller, even with one
// that is killed: the kernel kills the monitor when its parent dies
// (PR_SET_PDEATHSIG), process 1 when the monitor dies, and everything else in
// the process namespace with process 1.
//
// # What it does not guarantee
//
// /usr and a few files of /etc are the host's, so the sandbox sees which
// software the host has. Every directory on the way to Init, Command,
// Workspace and ReadOnly must be open to the uid of the sandbox (execute
// permission); Start fails otherwise. sealed-init must be owned by root and
// have mode 0711 to be safe from the operator's other processes (R01); the
// attestor checks that, not this package.
//
// The line of /proc/self/uid_map that a process reads inside is relative to an
// intermediate user namespace of bubblewrap's: "700000 0 1", where the middle
// number is not uid 0 of the host. Read from the host, the same file says
// "700000 700000 1".
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sealed"
)

// startTimeout bounds the time until bubblewrap has made process 1.
const startTimeout = 10 * time.Second

// A Driver starts sandboxes with bubblewrap. The zero value looks for bwrap in
// the directories of the system, never in PATH.
type Driver struct {
	Bwrap string // path of bwrap; empty: /usr/bin/bwrap, /bin/bwrap, /usr/local/bin/bwrap
}

var _ sandbox.Driver = Driver{}

// Start implements sandbox.Driver. It sets the close-on-exec flag on every
// descriptor of the calling process. It returns an error that wraps
// sandbox.ErrNoBubblewrap, sandbox.ErrUserNS or sealed.ErrInvalid where one of
// these is the cause.
func (d Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	spec.Limits = spec.Limits.WithDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	bwrap, err := d.find()
	if err != nil {
		return nil, fmt.Errorf("starting sandbox: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// A descriptor that the caller inherited from its own parent would be
	// passed on into the sandbox. Go's own all have this flag already.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("starting sandbox: marking inherited descriptors: %w", err)
	}
	l, err := newLaunch(bwrap, spec)
	if err != nil {
		return nil, fmt.Errorf("starting sandbox: %w", err)
	}
	defer l.close()
	s, err := l.start(ctx)
	if err != nil {
		if reason := probe(ctx, bwrap, spec); reason != nil {
			err = reason
		}
		return nil, fmt.Errorf("starting sandbox: %w", err)
	}
	return s, nil
}

func (d Driver) find() (string, error) {
	if d.Bwrap != "" {
		if _, err := os.Stat(d.Bwrap); err != nil {
			return "", fmt.Errorf("%w: %w", sandbox.ErrNoBubblewrap, err)
		}
		return d.Bwrap, nil
	}
	for _, p := range []string{"/usr/bin/bwrap", "/bin/bwrap", "/usr/local/bin/bwrap"} {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", sandbox.ErrNoBubblewrap
}

// A launch is one start under way. It owns the descriptors that only
// bubblewrap needs.
type launch struct {
	spec  sandbox.Spec
	cmd   *exec.Cmd
	info  *os.File   // we read bubblewrap's report here
	block *os.File   // closing it lets process 1 go on
	ours  []*os.File // handed to bubblewrap; closed here once it has them
}

func newLaunch(bwrap string, spec sandbox.Spec) (*launch, error) {
	l := &launch{spec: spec}
	// The first four land on descriptors 3 to 6: ExtraFiles starts at 3.
	files := []*os.File{spec.Relay, spec.Boot, spec.Trust, spec.SPIFFE}
	add := func(f *os.File) string {
		l.ours = append(l.ours, f)
		files = append(files, f)
		return strconv.Itoa(2 + len(files))
	}
	infoR, infoW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	l.info = infoR
	info := add(infoW)
	blockR, blockW, err := os.Pipe()
	if err != nil {
		l.close()
		return nil, err
	}
	l.block = blockW
	block := add(blockR)
	args := append(namespaces(), "--die-with-parent", "--info-fd", info, "--block-fd", block)
	for _, f := range generated(spec) {
		r, err := dataPipe(f.content)
		if err != nil {
			l.close()
			return nil, err
		}
		args = append(args, "--perms", "0444", "--ro-bind-data", add(r), f.path)
	}
	args = append(args, fileSystem(spec)...)
	args = append(args, "--", sandbox.InitPath)
	lim, err := limits(spec)
	if err != nil {
		l.close()
		return nil, err
	}
	cmd := exec.Command(limiter, append(append(lim, bwrap), args...)...)
	cmd.Env = []string{} // bubblewrap itself needs none
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = spec.Stdin, spec.Stdout, spec.Stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if spec.Isolation == sealed.IsolationOwnUID {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(spec.UID), Gid: uint32(spec.GID), Groups: []uint32{}}
	}
	l.cmd = cmd
	return l, nil
}

// start runs bubblewrap until process 1 exists and is known, and lets it
// execute init.
func (l *launch) start(ctx context.Context) (*box, error) {
	b := &box{cmd: l.cmd, done: make(chan struct{})}
	if err := b.fork(); err != nil {
		return nil, err
	}
	for _, f := range l.ours {
		_ = f.Close()
	}
	l.ours = nil
	if err := b.adopt(ctx, l); err != nil {
		return nil, errors.Join(err, b.abandon())
	}
	go b.reap()
	return b, nil
}

func (l *launch) close() {
	for _, f := range append(l.ours, l.info, l.block) {
		if f != nil {
			_ = f.Close()
		}
	}
}

// readInfo returns the host pid of process 1.
func readInfo(ctx context.Context, r *os.File) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var info struct {
		Child int `json:"child-pid"`
	}
	if err := json.NewDecoder(io.LimitReader(r, 4<<10)).Decode(&info); err != nil {
		return 0, fmt.Errorf("reading bubblewrap's report: %w", err)
	}
	if info.Child <= 1 {
		return 0, errors.New("reading bubblewrap's report: no child")
	}
	return info.Child, nil
}

// limiter is the program of util-linux that sets limits and then executes
// another in its place. The kernel lets a process lower its own limits only;
// for those of another user it wants CAP_SYS_RESOURCE, which a launcher in a
// container lacks.
const limiter = "/usr/bin/prlimit"

// limits returns limiter's arguments. A core limit of one byte, unlike zero,
// also stops a core_pattern that is a pipe: see core(5).
func limits(spec sandbox.Spec) ([]string, error) {
	wanted := []struct {
		option   string
		resource int
		value    uint64
	}{
		{"--core", unix.RLIMIT_CORE, 1},
		{"--nofile", unix.RLIMIT_NOFILE, spec.Limits.OpenFiles},
		{"--nproc", unix.RLIMIT_NPROC, spec.Limits.Processes},
	}
	if spec.Isolation == sealed.IsolationSameUID {
		wanted = wanted[:2] // the operator's other processes count too
	}
	var args []string
	for _, w := range wanted {
		var have unix.Rlimit
		if err := unix.Getrlimit(w.resource, &have); err != nil {
			return nil, fmt.Errorf("reading limits: %w", err)
		}
		n := strconv.FormatUint(min(w.value, have.Max), 10)
		args = append(args, w.option+"="+n+":"+n)
	}
	return append(args, "--"), nil
}

// fork starts bubblewrap from a thread that lives as long as the sandbox: a
// parent-death signal is sent when the parent thread ends, not the process.
func (b *box) fork() error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := b.cmd.Start()
		started <- err
		if err == nil {
			<-b.done
		}
	}()
	return <-started
}
