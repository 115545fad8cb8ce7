// Package sandbox says what a sandbox is: what goes in (Spec), what comes out
// (Sandbox), and who makes one (Driver).
//
// The idea: a driver promises a fixed set of walls, all or none. A Spec has
// no switch that turns a wall off. A driver that cannot keep a promise returns
// an error and starts nothing.
//
// # Guarantee
//
// Process 1 of the sandbox is Spec.Init. Every other process in it is a
// descendant and dies with it. The sandbox has:
//
//   - namespaces of its own for users, processes, network, IPC, host name and,
//     where the kernel has them, control groups; no way to make another user
//     namespace;
//   - one uid, never root of the host, no capability, no_new_privs set;
//   - a network namespace with a loopback interface and no route;
//   - an allow-listed file system: see the paths below. Of these only
//     Workspace, HomeDir, TempDir, RunDir and /dev/shm are writable; all but
//     Workspace are in memory, limited in size and gone with the sandbox;
//   - an empty environment, no controlling terminal, no core dumps;
//   - standard input, output and error, the four descriptors that package
//     sealed names (RelayFD, BootFD, TrustFD, SPIFFEFD), and no others.
//
// Package sandboxtest checks these, for every driver.
//
// # What it does not guarantee
//
// It does not stand against a hole in the host's kernel, nor against root of
// the host. With isolation same_uid the operator's other processes may signal
// and stop the sandbox. Limits per user (processes) exist only with own_uid.
// CPU time and total memory are not limited here.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/sealed"
)

// Paths inside every sandbox.
const (
	WorkspaceDir = "/workspace"           // the copy of the operator's directory
	HomeDir      = "/home/agent"          // in memory
	TempDir      = "/tmp"                 // in memory
	RunDir       = "/run/sealed/run"      // in memory, for files that init makes
	InitPath     = "/run/sealed/init"     // sealed-init
	CommandDir   = "/run/sealed/bin"      // holds the sealed command
	CommandPath  = CommandDir + "/sealed" // the agent's command
	Hostname     = "sealed"
)

var (
	// ErrNoBubblewrap means that the bwrap program is not installed.
	ErrNoBubblewrap = errors.New("bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap)")
	// ErrUserNS means that the host does not let this user make user
	// namespaces.
	ErrUserNS = errors.New("user namespaces are not available (see user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)")
)

// A Spec describes one sandbox. Files stay the caller's: a driver neither
// closes nor keeps them, and the caller should close its copies once Start has
// returned, or ends of files will not be seen.
type Spec struct {
	Run       sealed.RunID
	UID, GID  int    // of every process in the sandbox, on the host; never 0
	Isolation string // sealed.IsolationOwnUID or sealed.IsolationSameUID

	Init      string   // host path of sealed-init; UID must be able to reach it
	Command   string   // host path of the sealed command; empty: none
	Workspace string   // host path of the copy, owned by UID
	ReadOnly  []string // host paths shown read-only under the same name

	Stdin, Stdout, Stderr *os.File // no terminals
	Relay                 *os.File // becomes sealed.RelayFD
	Boot                  *os.File // becomes sealed.BootFD
	Trust                 *os.File // becomes sealed.TrustFD
	SPIFFE                *os.File // becomes sealed.SPIFFEFD

	Limits Limits
}

// Limits bound what the sandbox may use. Zero fields take the defaults.
type Limits struct {
	OpenFiles uint64 // per process; default 16,384
	Processes uint64 // threads of the uid, with own_uid only; default 4,096
	Memory    int64  // bytes of each in-memory file system; default 1 GiB
}

// WithDefaults fills in zero fields.
func (l Limits) WithDefaults() Limits {
	if l.OpenFiles == 0 {
		l.OpenFiles = 16 << 10
	}
	if l.Processes == 0 {
		l.Processes = 4 << 10
	}
	if l.Memory == 0 {
		l.Memory = 1 << 30
	}
	return l
}

// A Driver makes sandboxes. It is safe for concurrent use.
type Driver interface {
	// Start returns when process 1 exists and is about to execute Init. ctx
	// bounds Start only; its end does not end a sandbox that has started. The
	// sandbox does not outlive the process that called Start.
	Start(ctx context.Context, spec Spec) (Sandbox, error)
}

// A Sandbox is a running sandbox. Its methods are safe for concurrent use.
type Sandbox interface {
	// InitPID is the host's number of process 1.
	InitPID() int
	// Wait returns when no process of the sandbox is left: the exit status of
	// process 1, or 128 plus the number of the signal that ended it. It may be
	// called again and gives the same answer.
	Wait() (exit int, err error)
	// Kill ends every process of the sandbox at once. It does not wait, and
	// is no error when the sandbox has ended already.
	Kill() error
}

// reserved are the directories of the sandbox that a read-only bind may not
// replace or reach into.
var reserved = []string{"/", "/bin", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var", "/workspace", "/root"}

// Validate refuses a Spec that no driver may start. Errors wrap
// sealed.ErrInvalid and name the field.
func (s Spec) Validate() error {
	switch {
	case s.UID <= 0 || s.GID <= 0:
		return invalid("uid", "a sandbox never runs as root of the host")
	case s.Isolation != sealed.IsolationOwnUID && s.Isolation != sealed.IsolationSameUID:
		return invalid("isolation", "wants own_uid or same_uid")
	case s.Isolation == sealed.IsolationOwnUID && s.UID == os.Getuid():
		return invalid("isolation", "own_uid wants another uid than the launcher's")
	case s.Isolation == sealed.IsolationSameUID && s.UID != os.Getuid():
		return invalid("isolation", "same_uid wants the launcher's uid")
	case s.Limits.Memory < 0:
		return invalid("limits.memory", "wants a positive number of bytes")
	}
	for field, f := range map[string]*os.File{
		"stdin": s.Stdin, "stdout": s.Stdout, "stderr": s.Stderr,
		"relay": s.Relay, "boot": s.Boot, "trust": s.Trust, "spiffe": s.SPIFFE,
	} {
		if f == nil {
			return invalid(field, "every descriptor is required")
		}
	}
	for field, p := range map[string]string{"init": s.Init, "workspace": s.Workspace} {
		if !cleanAbs(p) {
			return invalid(field, "wants a clean absolute path")
		}
	}
	if s.Command != "" && !cleanAbs(s.Command) {
		return invalid("command", "wants a clean absolute path")
	}
	return s.validateReadOnly()
}

func (s Spec) validateReadOnly() error {
	for _, p := range s.ReadOnly {
		if !cleanAbs(p) || slices.Contains(reserved, p) {
			return invalid("read_only", "wants clean absolute paths below the top-level directories")
		}
		for _, r := range []string{"/dev", "/proc", "/sys", "/run", "/etc", WorkspaceDir, HomeDir} {
			if strings.HasPrefix(p+"/", r+"/") {
				return invalid("read_only", "may not reach into a directory that the sandbox makes")
			}
		}
	}
	return nil
}

func cleanAbs(p string) bool {
	return filepath.IsAbs(p) && filepath.Clean(p) == p && !strings.ContainsRune(p, 0)
}

func invalid(field, reason string) error {
	return fmt.Errorf("starting sandbox: %w", &sealed.FieldError{Field: field, Reason: reason})
}
