package sandboxinit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An attempt is one system call with arguments that do no harm even where it
// is allowed: most fail in the kernel's own checks, with another error.
type attempt struct {
	name string
	call func() error
	want unix.Errno // with the filter; 0: allowed
	// control: without the filter the call must give something else. It is
	// unset where a host may refuse the call by itself (no privilege, sysctl,
	// not built in).
	control bool
}

func raw(nr, a, b, c, d, e uintptr) func() error {
	return func() error {
		r, _, errno := unix.Syscall6(nr, a, b, c, d, e, 0)
		if errno != 0 {
			return errno
		}
		if nr == unix.SYS_SOCKET {
			return unix.Close(int(r))
		}
		return nil
	}
}

func socket(family, typ, proto uintptr) func() error {
	return raw(unix.SYS_SOCKET, family, typ, proto, 0, 0)
}

func socketpair(family int) func() error {
	return func() error {
		p, err := unix.Socketpair(family, unix.SOCK_SEQPACKET, 0)
		if err == nil {
			_, _ = unix.Close(p[0]), unix.Close(p[1])
		}
		return err
	}
}

// fork starts a program with clone flags, the way Go and C libraries do.
func fork(flags uintptr) func() error {
	return func() error {
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
		err := cmd.Run()
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return errno
		}
		return err
	}
}

const minus1 = ^uintptr(0)

func attempts() []attempt {
	nowhere, _ := unix.BytePtrFromString("/nonexistent")
	path := uintptr(unsafe.Pointer(nowhere))
	self := uintptr(os.Getpid())
	const eperm = unix.EPERM
	return []attempt{
		// B03: looking into other processes.
		{"ptrace", raw(unix.SYS_PTRACE, unix.PTRACE_CONT, 0, 0, 0, 0), eperm, true},
		{"process_vm_readv", raw(unix.SYS_PROCESS_VM_READV, self, 0, 0, 0, 0), eperm, true},
		{"process_vm_writev", raw(unix.SYS_PROCESS_VM_WRITEV, self, 0, 0, 0, 0), eperm, true},
		{"pidfd_getfd", raw(unix.SYS_PIDFD_GETFD, minus1, 0, 0, 0, 0), eperm, true},
		{"kcmp", raw(unix.SYS_KCMP, self, self, 99, 0, 0), eperm, false},
		// B05: signals that forge where they come from.
		{"rt_sigqueueinfo", raw(unix.SYS_RT_SIGQUEUEINFO, minus1, 0, 0, 0, 0), eperm, true},
		{"rt_tgsigqueueinfo", raw(unix.SYS_RT_TGSIGQUEUEINFO, minus1, minus1, 0, 0, 0), eperm, true},
		{"pidfd_send_signal", raw(unix.SYS_PIDFD_SEND_SIGNAL, minus1, 0, 0, 0, 0), eperm, true},
		// B04: kernel surface.
		{"io_uring_setup", raw(unix.SYS_IO_URING_SETUP, 0, 0, 0, 0, 0), eperm, false},
		{"io_uring_enter", raw(unix.SYS_IO_URING_ENTER, minus1, 0, 0, 0, 0), eperm, false},
		{"bpf", raw(unix.SYS_BPF, 9999, 0, 0, 0, 0), eperm, false},
		{"perf_event_open", raw(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, minus1, 0), eperm, false},
		{"userfaultfd", raw(unix.SYS_USERFAULTFD, 0xffff, 0, 0, 0, 0), eperm, false},
		{"keyctl", raw(unix.SYS_KEYCTL, 9999, 0, 0, 0, 0), eperm, true},
		{"add_key", raw(unix.SYS_ADD_KEY, 0, 0, 0, 0, 0), eperm, true},
		{"request_key", raw(unix.SYS_REQUEST_KEY, 0, 0, 0, 0, 0), eperm, true},
		{"mount", raw(unix.SYS_MOUNT, path, path, path, 0, 0), eperm, true},
		{"umount2", raw(unix.SYS_UMOUNT2, path, 0, 0, 0, 0), eperm, true},
		{"pivot_root", raw(unix.SYS_PIVOT_ROOT, path, path, 0, 0, 0), eperm, false},
		{"open_tree", raw(unix.SYS_OPEN_TREE, minus1, path, 0, 0, 0), eperm, true},
		{"fsopen", raw(unix.SYS_FSOPEN, path, 0, 0, 0, 0), eperm, false},
		{"chroot", raw(unix.SYS_CHROOT, path, 0, 0, 0, 0), eperm, true},
		{"setns", raw(unix.SYS_SETNS, minus1, 0, 0, 0, 0), eperm, true},
		{"unshare nothing", raw(unix.SYS_UNSHARE, 0, 0, 0, 0, 0), eperm, true},
		{"unshare user", raw(unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0, 0, 0), eperm, false},
		{"init_module", raw(unix.SYS_INIT_MODULE, 0, 0, 0, 0, 0), eperm, false},
		{"open_by_handle_at", raw(unix.SYS_OPEN_BY_HANDLE_AT, minus1, 0, 0, 0, 0), eperm, false},
		// These flags contradict each other: the kernel refuses with EINVAL and
		// makes no child.
		{"clone user", raw(unix.SYS_CLONE, unix.CLONE_NEWUSER|unix.CLONE_FS, 0, 0, 0, 0), eperm, true},
		{"clone mount", raw(unix.SYS_CLONE, unix.CLONE_NEWNS|unix.CLONE_FS, 0, 0, 0, 0), eperm, true},
		{"clone pid", raw(unix.SYS_CLONE, unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_FS, 0, 0, 0, 0), eperm, true},
		{"clone3", raw(unix.SYS_CLONE3, 0, 0, 0, 0, 0), unix.ENOSYS, true},
		{"program in a user namespace", fork(syscall.CLONE_NEWUSER), eperm, true},
		{"AF_VSOCK", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0), eperm, false},
		{"AF_PACKET", socket(unix.AF_PACKET, unix.SOCK_RAW, 0), eperm, false},
		{"AF_ALG", socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), eperm, false},
		{"AF_KEY", socket(unix.AF_KEY, unix.SOCK_RAW, 2), eperm, false},
		{"AF_BLUETOOTH", socket(unix.AF_BLUETOOTH, unix.SOCK_RAW, 0), eperm, true},
		{"AF_TIPC", socket(unix.AF_TIPC, unix.SOCK_SEQPACKET, 0), eperm, true},
		{"family with high bits", socket(1<<32|unix.AF_ALG, unix.SOCK_SEQPACKET, 0), eperm, false},
		{"netlink generic", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC), eperm, true},
		{"netlink netfilter", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), eperm, false},
		{"socketpair AF_TIPC", socketpair(unix.AF_TIPC), eperm, true},
		{"socketpair AF_VSOCK", socketpair(unix.AF_VSOCK), eperm, true},
		// What agents need.
		{"AF_UNIX", socket(unix.AF_UNIX, unix.SOCK_STREAM, 0), 0, false},
		{"AF_INET", socket(unix.AF_INET, unix.SOCK_STREAM, 0), 0, false},
		{"AF_INET6", socket(unix.AF_INET6, unix.SOCK_STREAM, 0), 0, false},
		{"netlink route", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE), 0, false},
		{"socketpair AF_UNIX", socketpair(unix.AF_UNIX), 0, false},
		{"program", fork(0), 0, false},
	}
}

// A filtered child reports the errors of all attempts, made on a thread that
// was there before the filter, and the Seccomp line of every thread.
type filtered struct {
	Errno   map[string]int
	Threads []string
}

// childSeccomp installs the filter, unless an argument switches it off.
func childSeccomp(args []string) any {
	out := filtered{Errno: map[string]int{}}
	ready, release, done := make(chan bool), make(chan bool), make(chan bool)
	go func() {
		runtime.LockOSThread()
		ready <- true
		<-release
		for _, a := range attempts() {
			var errno unix.Errno
			if err := a.call(); err != nil && !errors.As(err, &errno) {
				fail("%s: %v", a.name, err)
			}
			out.Errno[a.name] = int(errno)
		}
		done <- true
	}()
	<-ready
	runtime.LockOSThread()
	if len(args) == 0 {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			fail("%v", err)
		}
		if err := InstallSeccomp(); err != nil {
			fail("%v", err)
		}
	}
	release <- true
	<-done
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		fail("%v", err)
	}
	for _, task := range tasks {
		if b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/status"); err == nil {
			out.Threads = append(out.Threads, statusFields(b)["Seccomp"])
		}
	}
	return out
}

func TestSeccomp(t *testing.T) {
	var on, off filtered
	runChild(t, &on, nil, "seccomp")
	runChild(t, &off, nil, "seccomp", "off")
	for _, a := range attempts() {
		if got := unix.Errno(on.Errno[a.name]); got != a.want {
			t.Errorf("%s: %v, want %v", a.name, got, a.want)
		}
		if got := unix.Errno(off.Errno[a.name]); a.control && got == a.want {
			t.Errorf("%s: %v without the filter too: the attempt shows nothing", a.name, got)
		}
	}
	if got := strings.Join(on.Threads, ""); len(got) < 2 || strings.Trim(got, "2") != "" {
		t.Errorf("Seccomp of the threads: %v", on.Threads)
	}
}

// childDiverged has a thread with a filter of its own, so that the kernel
// can't put one filter on all threads.
func childDiverged([]string) any {
	ready := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			ready <- err
			return
		}
		allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
		prog := unix.SockFprog{Len: 1, Filter: &allow}
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
			ready <- errno
			return
		}
		ready <- nil
		select {}
	}()
	if err := <-ready; err != nil {
		fail("%v", err)
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fail("%v", err)
	}
	return fmt.Sprint(InstallSeccomp())
}

// A filter that is not on every thread is no filter: seccomp(2) tells with a
// thread id as its result, not with an error number.
func TestSeccompOnEveryThreadOrNone(t *testing.T) {
	var got string
	runChild(t, &got, nil, "seccomp-diverged")
	if !strings.Contains(got, "installing seccomp filter") {
		t.Errorf("InstallSeccomp: %s", got)
	}
}
