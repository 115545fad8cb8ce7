package sandboxinit

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

// refused could each change what init trusts, loads or prints (C17, C18).
var refused = []string{
	"GODEBUG", "GOTRACEBACK", "GOMAXPROCS", "GOGC", "GORACE", "GOCOVERDIR",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE",
	"LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "NODE_OPTIONS", "PYTHONSTARTUP", "BASH_ENV", "GIT_SSH_COMMAND",
	"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY",
	"VAULT_ADDR", "VAULT_CACERT", "VAULT_SKIP_VERIFY", "VAULT_TOKEN", "SPIFFE_ENDPOINT_SOCKET",
	"PATH", "HOME", "TMPDIR", "LANG", "SEALED_RUN", "pwd", "PWD ", "",
}

const environCanary = "cnry_environment_value"

// childRefuse returns what Harden says about each of the refused names.
func childRefuse([]string) any {
	out := map[string]string{}
	for _, name := range refused {
		err := Harden([]string{"PWD=/", name + "=" + environCanary})
		if errors.Is(err, sealed.ErrInvalid) {
			out[name] = err.Error()
		}
	}
	return out
}

func TestForeignEnvironmentIsRefused(t *testing.T) {
	var got map[string]string
	runChild(t, &got, nil, "refuse")
	for _, name := range refused {
		if got[name] == "" || !strings.Contains(got[name], name) || strings.Contains(got[name], environCanary) {
			t.Errorf("%q: Harden: %q", name, got[name])
		}
	}
	for _, environ := range [][]string{nil, {"PWD=/workspace"}} {
		if bad := foreignEnviron(environ); bad != nil {
			t.Errorf("%q: refused %q", environ, bad)
		}
	}
}

// What a process looks like from inside, before or after Harden.
type hardened struct {
	Err      string
	Open     map[int]string // descriptor → its link
	CloExec  map[int]bool
	Own      bool // the executable belongs to this uid
	Dumpable int
	Later    int // dumpable, after what follows the claim
	Core     unix.Rlimit
}

// childHarden reports on itself. Any argument switches the control off.
func childHarden(args []string) any {
	var h hardened
	if len(args) == 0 {
		if err := Harden([]string{"PWD=/"}); err != nil {
			h.Err = err.Error()
		}
	}
	h.Open, h.CloExec = map[int]string{}, map[int]bool{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		fail("%v", err)
	}
	for _, e := range entries {
		fd, _ := strconv.Atoi(e.Name())
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil { // that of ReadDir itself
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil {
			fail("%v", err)
		}
		h.Open[fd], h.CloExec[fd] = link, flags&unix.FD_CLOEXEC != 0
	}
	h.Dumpable, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &h.Core)
	h.Own = ownExecutable()
	if len(args) == 0 {
		if err := undumpable(); err != nil {
			fail("%v", err)
		}
	}
	h.Later, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	return h
}

// foreign starts a child with init's four descriptors and three more: a file,
// a directory, and a file below /proc, which is the host's.
func foreign(t *testing.T, args ...string) (h hardened, files []string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"relay", "boot", "trust", "spiffe", "secret"} {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, p)
	}
	files = append(files, dir, "/proc/"+strconv.Itoa(os.Getpid())+"/status")
	runChild(t, &h, func(cmd *exec.Cmd) {
		for _, p := range files {
			f, err := os.Open(p)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
	}, append([]string{"harden"}, args...)...)
	return h, files
}

func TestHarden(t *testing.T) {
	h, files := foreign(t)
	if h.Err != "" {
		t.Fatal(h.Err)
	}
	for i, p := range files {
		fd := i + 3
		if fd <= sealed.SPIFFEFD {
			if h.Open[fd] != p || !h.CloExec[fd] {
				t.Errorf("inherited descriptor %d is %q, close on exec: %v", fd, h.Open[fd], h.CloExec[fd])
			}
			continue
		}
		if h.Open[fd] == p {
			t.Errorf("foreign descriptor %d is still open: %s", fd, p)
		}
	}
	for fd, link := range h.Open {
		if fd > sealed.SPIFFEFD && !strings.HasPrefix(link, "anon_inode:[event") {
			t.Errorf("descriptor %d is open: %s", fd, link)
		}
	}
	if want := map[bool]int{true: 1, false: 0}[h.Own]; h.Dumpable != want || h.Later != 0 {
		t.Errorf("dumpable: %d, want %d; after the claim %d", h.Dumpable, want, h.Later)
	}
	if h.Core != (unix.Rlimit{Cur: 1, Max: 1}) {
		t.Errorf("limit of core dumps: %+v", h.Core)
	}
	t.Run("control off", func(t *testing.T) {
		h, files := foreign(t, "off")
		for i, p := range files {
			if h.Open[i+3] != p {
				t.Errorf("descriptor %d is %q, want %q", i+3, h.Open[i+3], p)
			}
		}
		if h.Dumpable != 1 || h.Later != 1 {
			t.Errorf("dumpable: %d, %d", h.Dumpable, h.Later)
		}
	})
}

// childSignals returns the mask of ignored signals that a program inherits
// which is executed after Harden.
func childSignals([]string) any {
	if err := Harden(nil); err != nil {
		fail("%v", err)
	}
	out, err := os.CreateTemp("", "")
	if err != nil {
		fail("%v", err)
	}
	defer func() { _ = os.Remove(out.Name()) }()
	pid, err := syscall.ForkExec("/bin/grep", []string{"grep", "SigIgn", "/proc/self/status"}, &syscall.ProcAttr{Files: []uintptr{0, out.Fd(), 2}})
	if err != nil {
		fail("%v", err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || ws.ExitStatus() != 0 {
		fail("%v %v", ws, err)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		fail("%v", err)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(b), "SigIgn:"))
}

// Init must survive signals, but an ignored signal stays ignored across
// execve(2): Ctrl-C in the agent's terminal, SIGTERM and SIGPIPE must work.
func TestAgentInheritsNoIgnoredSignal(t *testing.T) {
	var mask string
	runChild(t, &mask, nil, "signals")
	bits, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		t.Fatalf("SigIgn %q: %v", mask, err)
	}
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGUSR1, unix.SIGUSR2} {
		if bits&(1<<(int(s)-1)) != 0 {
			t.Errorf("the agent would ignore %v", s)
		}
	}
	for _, s := range []int{32, 34} { // those without a handler of the runtime's; what the agent inherits, init has
		if bits&(1<<(s-1)) == 0 {
			t.Errorf("signal %d could end init", s)
		}
	}
}
