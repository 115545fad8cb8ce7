package sandboxtest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

// PeepEnv makes a test binary that calls Peep look into the process it names.
const PeepEnv = "SEALED_TEST_PEEP"

// Peep is called first thing by the TestMain of a driver's tests. In the
// child that unreadable starts it looks into a process in every way that the
// kernel offers to the same uid, prints what worked, and ends.
func Peep() {
	pid, err := strconv.Atoi(os.Getenv(PeepEnv))
	if err != nil {
		return
	}
	for _, way := range peep(pid) {
		fmt.Println(way)
	}
	os.Exit(0)
}

// peep returns the ways into another process that worked (R01, C01, C02).
func peep(pid int) []string {
	var worked []string
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, name := range []string{"environ", "maps", "mem", "auxv", "stack", "syscall"} {
		f, err := os.Open(dir + name)
		if err != nil {
			continue
		}
		if _, err := f.Read(make([]byte, 1)); err == nil || name == "mem" || err == io.EOF {
			worked = append(worked, name)
		}
		_ = f.Close()
	}
	for _, name := range []string{"exe", "cwd", "root", "fd/3", "ns/user"} {
		if _, err := os.Readlink(dir + name); err == nil {
			worked = append(worked, name)
		}
	}
	buf := make([]byte, 16)
	local := []unix.Iovec{{Base: &buf[0], Len: 16}}
	// 0x400000 is where the linker puts a static Go program.
	if _, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 0x400000, Len: 16}}, 0); err == nil {
		worked = append(worked, "process_vm_readv")
	}
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		if _, err := unix.PidfdGetfd(fd, sealed.RelayFD, 0); err == nil {
			worked = append(worked, "pidfd_getfd")
		}
	}
	if unix.PtraceSeize(pid) == nil {
		worked = append(worked, "ptrace")
	}
	return worked
}

// LookInto starts a sandbox and returns the ways in which a process of its uid
// on the host gets at init.
func LookInto(t *testing.T, b Bench) []string {
	t.Helper()
	box := b.Start(t, "secret", "canary")
	box.Stdout.Await(t, "holding")
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = []string{PeepEnv + "=" + strconv.Itoa(box.InitPID())}
	if b.Isolation == sealed.IsolationOwnUID {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(b.UID), Gid: uint32(b.UID), Groups: []uint32{}}}
		cmd.Path = copyOfSelf(t)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("peeping: %v\n%s", err, out)
	}
	return strings.Fields(string(out))
}

// unreadable: a process of the sandbox's own uid on the host can't look into
// init. The control is an init that this uid may read: then it can, which
// shows that peep can see. (An operator can't make a copy of a 0711 file; a
// driver's tests bring the control for same_uid themselves.)
func unreadable(t *testing.T, b Bench) {
	if st, err := os.Stat(b.Probe); err != nil || st.Mode().Perm() != 0o711 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Fatalf("probe must be root's and 0711: %v, %v", st, err)
	}
	if worked := LookInto(t, b); len(worked) > 0 {
		t.Errorf("from outside, the same uid gets at init by %q", worked)
	}
	if os.Getuid() != 0 {
		return
	}
	t.Run("control: a readable init", func(t *testing.T) {
		open := b
		open.Probe = filepath.Join(OpenDir(t), "probe")
		data, err := os.ReadFile(b.Probe)
		must(t, err)
		must(t, os.WriteFile(open.Probe, data, 0o755))
		must(t, os.Chown(open.Probe, b.UID, b.UID))
		worked := LookInto(t, open)
		for _, want := range WaysIn {
			if !slices.Contains(worked, want) {
				t.Errorf("with a readable init %s should work, got %q", want, worked)
			}
		}
	})
}

// WaysIn are those that work against a readable init.
var WaysIn = []string{"environ", "mem", "process_vm_readv", "ptrace"}

func copyOfSelf(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	path := OpenDir(t) + "/self"
	must(t, os.WriteFile(path, data, 0o755))
	return path
}
