// Package require decides what becomes of a test that needs what the machine
// does not have: it is skipped, with the reason, or it fails where the
// environment variable SEALED_REQUIRE, a list with commas, names what is
// missing. CI names everything, so nothing is skipped there unnoticed.
//
// The names are vault, spire, bwrap, claude, opa, root, userns, pty, docker and git.
package require

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Missing skips the test for want of what, or fails it where it is required.
func Missing(t testing.TB, what, reason string) {
	t.Helper()
	if Required(what) {
		t.Fatalf("%s is required: %s", what, reason)
	}
	t.Skipf("%s: %s", what, reason)
}

// Required reports whether the environment demands what.
func Required(what string) bool {
	return slices.Contains(strings.Split(os.Getenv("SEALED_REQUIRE"), ","), what)
}

// Bubblewrap wants the program of the local driver where that looks for it.
func Bubblewrap(t testing.TB) {
	t.Helper()
	for _, path := range []string{"/usr/bin/bwrap", "/bin/bwrap", "/usr/local/bin/bwrap"} {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
	Missing(t, "bwrap", "bubblewrap is not installed")
}

// Root wants to run as root; why says for what.
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root", why)
	}
}

// UserNamespaces wants a kernel that lets this user make user and pid
// namespaces.
func UserNamespaces(t testing.TB) {
	t.Helper()
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		Missing(t, "userns", "no user and pid namespace: "+err.Error())
	}
}
