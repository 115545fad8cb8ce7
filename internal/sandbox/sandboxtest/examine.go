package sandboxtest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sandbox"
)

// A Report is what process 1 finds in its own sandbox.
type Report struct {
	PID         int               `json:"pid"`
	UID         int               `json:"uid"`
	GID         int               `json:"gid"`
	Groups      []int             `json:"groups"`
	Session     int               `json:"session"`
	Directory   string            `json:"directory"`
	Hostname    string            `json:"hostname"`
	Descriptors []int             `json:"descriptors"`
	Environ     []string          `json:"environ"`
	Status      map[string]string `json:"status"` // of /proc/self/status
	UIDMap      string            `json:"uid_map"`
	Interfaces  []string          `json:"interfaces"`
	Routes      string            `json:"routes"` // of IPv4 and IPv6, without those of lo
	Dial        string            `json:"dial"`   // error of reaching a public address
	Root        []string          `json:"root"`   // names in /
	Etc         []string          `json:"etc"`
	Home        []string          `json:"home"` // names in /home
	Writable    []string          `json:"writable"`
	Written     []string          `json:"written"` // of the places tried
	Present     []string          `json:"present"` // of the host's sockets and secrets tried
	Terminal    string            `json:"terminal"`
	NestedUser  string            `json:"nested_user"` // error of another user namespace
	Mount       string            `json:"mount"`       // error of mount(2)
	Core        uint64            `json:"core"`
	OpenFiles   uint64            `json:"open_files"`
	Processes   []string          `json:"processes"`
}

// OpenDescriptors returns the numbers below 1,024 that are open. It must run
// before the Go runtime opens its own.
func OpenDescriptors() []int {
	var open []int
	for fd := range 1024 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			open = append(open, fd)
		}
	}
	return open
}

// hostPlaces are sockets and secrets that no sandbox may see.
var hostPlaces = []string{
	"/run/docker.sock", "/var/run/docker.sock", "/run/containerd", "/run/dbus", "/run/user", "/run/systemd",
	"/tmp/.X11-unix", "/tmp/ssh-agent", "/tmp/.sealed-planted", "/root", "/var", "/sys", "/boot", "/mnt", "/srv",
	"/etc/shadow", "/etc/ssh", "/etc/machine-id", "/etc/vault.d", "/proc/sys/fs/binfmt_misc/register",
	"/dev/vda", "/dev/sda", "/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/net/tun",
}

// writePlaces must refuse a new file, the writable directories apart.
var writePlaces = []string{
	"/", "/usr", "/usr/bin", "/etc", "/home", "/run", "/run/sealed", sandbox.CommandDir, "/dev", "/proc", "/lib",
	sandbox.WorkspaceDir, sandbox.HomeDir, sandbox.TempDir, sandbox.RunDir, "/dev/shm",
}

// Examine looks around. descriptors are those of OpenDescriptors.
func Examine(descriptors []int) Report {
	r := Report{
		PID: os.Getpid(), UID: os.Getuid(), GID: os.Getgid(), Descriptors: descriptors, Environ: os.Environ(),
		Status: status(), UIDMap: read("/proc/self/uid_map"), Routes: routes(),
		Root: names("/"), Etc: names("/etc"), Home: names("/home"), Writable: writableMounts(),
	}
	r.Groups, _ = os.Getgroups()
	r.Session, _ = unix.Getsid(0)
	r.Directory, _ = os.Getwd()
	r.Hostname, _ = os.Hostname()
	if ifs, err := net.Interfaces(); err == nil {
		for _, i := range ifs {
			r.Interfaces = append(r.Interfaces, i.Name)
		}
	}
	r.Dial = attempt(func() error {
		c, err := net.Dial("udp", "192.0.2.1:53")
		if err == nil {
			err = c.Close()
		}
		return err
	})
	for _, dir := range writePlaces {
		p := filepath.Join(dir, ".probe")
		if os.WriteFile(p, []byte("x"), 0o600) == nil {
			r.Written = append(r.Written, dir)
			_ = os.Remove(p)
		}
	}
	for _, p := range hostPlaces {
		if _, err := os.Lstat(p); err == nil {
			r.Present = append(r.Present, p)
		}
	}
	r.Terminal = attempt(func() error { _, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); return err })
	r.NestedUser = attempt(func() error {
		attr := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}}
		_, err := syscall.ForkExec("/usr/bin/true", []string{"true"}, attr)
		return err
	})
	r.Mount = attempt(func() error {
		// Outside of a sandbox, as root, this would hide the host's /tmp.
		if _, err := os.Stat(sandbox.InitPath); err != nil {
			return fmt.Errorf("not in a sandbox: %w", err)
		}
		return unix.Mount("none", sandbox.TempDir, "tmpfs", 0, "")
	})
	r.Core, r.OpenFiles = hardLimit(unix.RLIMIT_CORE), hardLimit(unix.RLIMIT_NOFILE)
	if dirs, err := filepath.Glob("/proc/[0-9]*"); err == nil {
		r.Processes = dirs
	}
	return r
}

func attempt(f func() error) string {
	if err := f(); err != nil {
		return err.Error()
	}
	return ""
}

func read(p string) string {
	b, _ := os.ReadFile(p)
	return strings.Join(strings.Fields(string(b)), " ")
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func status() map[string]string {
	m := make(map[string]string)
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			m[k] = strings.TrimSpace(v)
		}
	}
	return m
}

// routes returns all but the header and lo's own.
func routes() string {
	var out []string
	for _, p := range []string{"/proc/net/route", "/proc/net/ipv6_route"} {
		b, _ := os.ReadFile(p)
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 0 && f[0] != "Iface" && f[len(f)-1] != "lo" && f[0] != "lo" {
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "")
}

// writableMounts lists the mount points that are not read-only, devices and
// /proc apart.
func writableMounts() []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasPrefix(f[5], "rw") || f[4] == "/proc" {
			continue
		}
		if strings.HasPrefix(f[4], "/dev/") && f[4] != "/dev/shm" {
			continue
		}
		out = append(out, f[4])
	}
	return out
}

func hardLimit(resource int) uint64 {
	var lim unix.Rlimit
	if unix.Getrlimit(resource, &lim) != nil {
		return 0
	}
	return lim.Max
}
