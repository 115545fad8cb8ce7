package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A box is a running sandbox. pidfd names process 1 for good: the number may
// be given to another process, the descriptor never is.
type box struct {
	cmd  *exec.Cmd
	pid  int
	done chan struct{} // closed when exit and err are set

	mu    sync.Mutex // guards pidfd
	pidfd int        // -1 once closed

	exit int
	err  error
}

// adopt learns who process 1 is and lets it execute init.
func (b *box) adopt(ctx context.Context, l *launch) error {
	b.pidfd = -1
	pid, err := readInfo(ctx, l.info)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("opening process 1: %w", err)
	}
	b.pid, b.pidfd = pid, fd
	// The number came from bubblewrap. It is ours if its parent is the
	// monitor, whose own number can't be reused before we have waited for it.
	if parent, err := parentOf(pid); err != nil || parent != b.cmd.Process.Pid {
		return errors.Join(errors.New("opening process 1: it is not bubblewrap's child"), err)
	}
	if _, err := l.block.Write([]byte{0}); err != nil {
		return fmt.Errorf("releasing process 1: %w", err)
	}
	return nil
}

// parentOf reads field 4 of /proc/<pid>/stat; the second field, which a
// process chooses, ends at the last parenthesis.
func parentOf(pid int) (int, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0, errors.New("malformed stat")
	}
	return strconv.Atoi(string(fields[1]))
}

// abandon ends a launch that failed half-way.
func (b *box) abandon() error {
	err := b.Kill()
	b.reap()
	return err
}

// reap waits for the monitor and then for process 1, which is there a moment
// longer when the monitor was killed. The end of process 1 is the end of all:
// the kernel kills and waits for the whole process namespace first.
func (b *box) reap() {
	err := b.cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.As(err, &exit):
		b.exit = exitStatus(b.cmd.ProcessState)
	default:
		b.exit, b.err = 125, fmt.Errorf("waiting for sandbox: %w", err)
	}
	b.mu.Lock()
	fd := b.pidfd
	b.mu.Unlock()
	if fd >= 0 {
		if err := awaitExit(fd); err != nil {
			b.err = errors.Join(b.err, fmt.Errorf("waiting for process 1: %w", err))
		}
	}
	b.mu.Lock()
	if b.pidfd >= 0 {
		_ = unix.Close(b.pidfd)
		b.pidfd = -1
	}
	b.mu.Unlock()
	close(b.done)
}

// awaitExit returns when the process of a pidfd has ended. The monitor is
// gone, so process 1 is being killed already; it is killed again in case.
func awaitExit(fd int) error {
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func exitStatus(st *os.ProcessState) int {
	ws, ok := st.Sys().(interface {
		Signaled() bool
	})
	if ok && ws.Signaled() {
		return 128 + int(unix.SIGKILL)
	}
	return st.ExitCode()
}

// InitPID implements sandbox.Sandbox.
func (b *box) InitPID() int { return b.pid }

// Wait implements sandbox.Sandbox.
func (b *box) Wait() (int, error) {
	<-b.done
	return b.exit, b.err
}

// monitorGrace is how long the monitor may take to reap process 1 and end by
// itself. It is one of the operator's processes with same_uid, and may have
// been stopped.
const monitorGrace = time.Second

// Kill implements sandbox.Sandbox.
func (b *box) Kill() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pidfd < 0 {
		return b.killMonitor()
	}
	if err := unix.PidfdSendSignal(b.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return errors.Join(fmt.Errorf("killing process 1: %w", err), b.killMonitor())
	}
	time.AfterFunc(monitorGrace, func() { _ = b.killMonitor() })
	return nil
}

func (b *box) killMonitor() error {
	if err := b.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing bubblewrap: %w", err)
	}
	return nil
}
