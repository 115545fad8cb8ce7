package sandboxinit

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

// allowedEnviron are the only names init starts with. PWD is set by
// bubblewrap itself. Anything else (GODEBUG, SSL_CERT_FILE, LD_PRELOAD …)
// could change what init trusts or prints, so init refuses to start.
var allowedEnviron = map[string]bool{"PWD": true}

// Harden makes the process safe to hold secrets. It runs before anything is
// read and returns the names in the environment that it refuses, if any.
func Harden(environ []string) error {
	debug.SetTraceback("none")
	// As process 1 of its namespace init is immune to signals it does not
	// handle, but the Go runtime handles all: SIGQUIT would print stacks, and
	// for SIGSEGV, SIGTRAP and their kind registers, too, whatever the traceback
	// level. All of them are caught and dropped (B05), not ignored: an ignored
	// signal stays ignored across execve(2), and the agent could not be
	// interrupted. A fault of init's own is no such signal and still ends it.
	signal.Notify(make(chan os.Signal, 1))
	if err := ignoreUnhandled(); err != nil {
		return err
	}
	if !ownExecutable() {
		if err := undumpable(); err != nil {
			return err
		}
	}
	// A hard limit of 1: a core pattern that is a pipe ignores 0.
	lim := unix.Rlimit{Cur: 1, Max: 1}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return fmt.Errorf("limiting core dumps: %w", err)
	}
	if bad := foreignEnviron(environ); len(bad) > 0 {
		return fmt.Errorf("refusing environment %s: %w", strings.Join(bad, ", "), sealed.ErrInvalid)
	}
	return closeForeign()
}

// ignoreUnhandled ignores the two signals for which the Go runtime installs no
// handler, those of the C library's threads. For process 1 the kernel drops a
// signal with the default action only while no thread blocks it; one that comes
// while a thread is being made would end init.
func ignoreUnhandled() error {
	for _, sig := range []uintptr{32, 34} {
		// struct sigaction of the kernel: handler SIG_IGN, no flags, restorer, mask.
		act := [4]uintptr{1}
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0); e != 0 {
			return fmt.Errorf("ignoring signal %d: %w", sig, e)
		}
	}
	return nil
}

// divertStderr moves standard error to another descriptor, which it returns
// for init's own lines and the agent's redacted ones, and leaves nothing at
// descriptor 2: what the Go runtime prints there when the process faults
// (registers, stacks) passes no redactor.
func divertStderr() (*os.File, error) {
	fd, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 16)
	if err != nil {
		return os.Stderr, fmt.Errorf("moving standard error: %w", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Dup3(null, 2, 0), unix.Close(null))
	}
	if err != nil {
		return os.Stderr, fmt.Errorf("moving standard error: %w", err)
	}
	return os.NewFile(uintptr(fd), "stderr"), nil
}

func undumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making process undumpable: %w", err)
	}
	return nil
}

// ownExecutable reports whether init may read its own executable. A root-owned
// one of mode 0711 it may not, and then the kernel has made the process
// undumpable at execve(2) already. It may on a machine without root (isolation
// same_uid), where the attestor runs as init's own uid and can't see the
// descriptors of an undumpable process. There init becomes undumpable after the
// claim; before it, it holds no value, and the operator's uid can trace it
// either way. The owner's number would not tell: a uid that the namespace does
// not map looks like uid 65534's own.
func ownExecutable() bool {
	return unix.Faccessat(unix.AT_FDCWD, "/proc/self/exe", unix.R_OK, 0) == nil
}

func foreignEnviron(environ []string) []string {
	var bad []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if !allowedEnviron[name] {
			bad = append(bad, name)
		}
	}
	sort.Strings(bad)
	return bad
}

// closeForeign marks every descriptor above the inherited ones close-on-exec
// and closes those that the Go runtime did not open itself. What the runtime
// owns (its poller) is recognisable by its link.
func closeForeign() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("listing descriptors: %w", err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 {
			continue
		}
		unix.CloseOnExec(fd)
		if fd <= sealed.SPIFFEFD {
			continue
		}
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(link, "anon_inode:[event") {
			continue // gone (that of ReadDir), or the poller's
		}
		if err := unix.Close(fd); err != nil && err != unix.EBADF {
			return fmt.Errorf("closing foreign descriptor %d: %w", fd, err)
		}
	}
	return nil
}
