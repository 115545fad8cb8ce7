package sandboxinit

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The filter is a deny list on top of namespaces and dropped capabilities: it
// removes ways to look into other processes and kernel surface that agents
// have no business with (threats B03, B04). It is not the sandbox.
//
// Denied calls fail with EPERM; clone3, whose flags a filter can't see, with
// ENOSYS so that C libraries fall back to clone.

// Offsets within struct seccomp_data (linux/seccomp.h).
const (
	offNr   = 0
	offArch = 4
	offArg0 = 16
	offArg2 = 32
)

// deniedCalls fail whatever their arguments.
var deniedCalls = []uint32{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	// Signals that forge where they come from: the Go runtime of init would take
	// one for a fault of its own and print stacks and registers (B05). Go and Rust
	// fall back from pidfd_send_signal to kill.
	unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO, unix.SYS_PIDFD_SEND_SIGNAL,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSMOUNT, unix.SYS_FSCONFIG, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_CHROOT,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_OPEN_BY_HANDLE_AT,
}

// allowedFamilies of socket(2): Unix, IPv4, IPv6. Netlink only for routes
// (protocol 0), which C libraries use to list interfaces.
var allowedFamilies = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}

// InstallSeccomp puts the filter on every thread. It needs no_new_privs,
// which bubblewrap has set.
func InstallSeccomp() error {
	prog, err := filter()
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	// A thread that can't take the filter is told by its id as the result,
	// with no error number; the filter is then on no thread (seccomp(2)).
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if errno != 0 {
		return fmt.Errorf("installing seccomp filter: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("installing seccomp filter: thread %d has a filter of its own", thread)
	}
	return nil
}

func filter() ([]unix.SockFilter, error) {
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if arch == 0 {
		return nil, fmt.Errorf("installing seccomp filter: no filter for %s", runtime.GOARCH)
	}
	const (
		ld  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jge = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		jst = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret = unix.BPF_RET | unix.BPF_K
	)
	eperm := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	allow := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	// Another architecture's system call numbers mean other calls: kill.
	p := []unix.SockFilter{
		{Code: ld, K: offArch}, {Code: jeq, K: arch, Jt: 1}, {Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: ld, K: offNr},
	}
	if runtime.GOARCH == "amd64" { // the x32 ABI shares the architecture value
		p = append(p, unix.SockFilter{Code: jge, K: 0x40000000, Jf: 1}, eperm)
	}
	for _, nr := range deniedCalls {
		p = append(p, unix.SockFilter{Code: jeq, K: nr, Jf: 1}, eperm)
	}
	p = append(p, unix.SockFilter{Code: jeq, K: unix.SYS_CLONE3, Jf: 1}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	// clone with any namespace flag.
	const ns = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	p = append(p, unix.SockFilter{Code: jeq, K: unix.SYS_CLONE, Jf: 4},
		unix.SockFilter{Code: ld, K: offArg0}, unix.SockFilter{Code: jst, K: ns, Jf: 1}, eperm, allow)
	return append(p, socketRules(ld, jeq, eperm, allow)...), nil
}

// socketRules allow listed families, netlink with protocol 0, and everything
// that is not socket(2). socketpair(2) may make Unix sockets only: the kernel
// creates the sockets, and loads their module, before it asks whether the
// family has pairs.
func socketRules(ld, jeq uint16, eperm, allow unix.SockFilter) []unix.SockFilter {
	p := []unix.SockFilter{
		{Code: jeq, K: unix.SYS_SOCKETPAIR, Jf: 4},
		{Code: ld, K: offArg0}, {Code: jeq, K: unix.AF_UNIX, Jf: 1}, allow, eperm,
	}
	body := []unix.SockFilter{{Code: ld, K: offArg0}}
	for _, f := range allowedFamilies {
		body = append(body, unix.SockFilter{Code: jeq, K: f, Jf: 1}, allow)
	}
	body = append(body,
		unix.SockFilter{Code: jeq, K: unix.AF_NETLINK, Jf: 3},
		unix.SockFilter{Code: ld, K: offArg2}, unix.SockFilter{Code: jeq, K: 0, Jf: 1}, allow,
		eperm)
	p = append(p, unix.SockFilter{Code: jeq, K: unix.SYS_SOCKET, Jf: uint8(len(body))})
	p = append(p, body...)
	return append(p, allow)
}
