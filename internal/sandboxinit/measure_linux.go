package sandboxinit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

// writable are the mount points that a local sandbox may write to.
var writable = []string{"/workspace", "/home/agent", "/tmp", "/run/sealed/run", "/dev", "/dev/shm", "/dev/pts", "/dev/mqueue", "/proc"}

// devices are single nodes that a sandbox binds from the host. Anything else
// that is mounted below /dev or /proc is measured like everything.
var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx"}

// measureSandbox fills in what the kernel says about this process and its
// namespaces. Everything read here is the kernel's word, not the launcher's;
// seccomp is read again after the filter is in.
func measureSandbox(m *sealed.Measurement) error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("reading own status: %w", err)
	}
	f := statusFields(status)
	m.CapEff, m.CapBnd = f["CapEff"], f["CapBnd"]
	m.NoNewPrivs = f["NoNewPrivs"] == "1"
	if m.Seccomp, err = strconv.Atoi(f["Seccomp"]); err != nil {
		return fmt.Errorf("reading own status: no Seccomp line: %w", sealed.ErrUnavailable)
	}
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return fmt.Errorf("reading uid map: %w", err)
	}
	m.UIDMap = strings.Join(strings.Fields(string(uidMap)), " ")
	m.PID, m.UID, m.Backend = os.Getpid(), os.Getuid(), sealed.BackendLocal
	ifaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	for _, i := range ifaces {
		m.Interfaces = append(m.Interfaces, i.Name)
	}
	return measureMounts(m)
}

func statusFields(b []byte) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			out[k] = strings.TrimSpace(v)
		}
	}
	return out
}

func measureMounts(m *sealed.Measurement) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("reading mounts: %w", err)
	}
	return parseMounts(b, m)
}

func parseMounts(b []byte, m *sealed.Measurement) error {
	m.RootReadOnly = true
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		// proc(5): id parent major:minor root mountpoint options …
		f := strings.Fields(sc.Text())
		if len(f) < 6 {
			return fmt.Errorf("reading mounts: malformed line: %w", sealed.ErrUnavailable)
		}
		point, opts := f[4], strings.Split(f[5], ",")
		if slices.Contains(opts, "ro") || slices.Contains(devices, point) {
			continue
		}
		m.Writable = append(m.Writable, point)
		if !slices.Contains(writable, point) {
			m.RootReadOnly = false
		}
	}
	sort.Strings(m.Writable)
	return sc.Err()
}

// An executable is an open, measured file. The agent is executed from this
// very descriptor, so what was measured is what runs.
type executable struct {
	file   *os.File
	digest string // plain SHA-256, hex
	script bool   // starts with #!: its interpreter has to open the descriptor again
}

// openExecutable finds name as execvp would with the given PATH, opens and
// measures it. A missing file is sealed.ErrNotFound.
func openExecutable(name, path string) (*executable, error) {
	f, err := findExecutable(name, path)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	head := make([]byte, 2)
	n, err := io.ReadFull(f, head)
	if err == nil || err == io.ErrUnexpectedEOF || err == io.EOF {
		h.Write(head[:n])
		_, err = io.CopyBuffer(h, f, make([]byte, 1<<20))
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("measuring %s: %w", name, err)
	}
	return &executable{file: f, digest: hex.EncodeToString(h.Sum(nil)), script: string(head[:n]) == "#!"}, nil
}

func findExecutable(name, path string) (*os.File, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, dir := range filepath.SplitList(path) {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	for _, c := range candidates {
		f, err := os.Open(c)
		if err != nil {
			continue
		}
		st, err := f.Stat()
		if err == nil && st.Mode().IsRegular() && unix.Access(c, unix.X_OK) == nil {
			return f, nil
		}
		_ = f.Close()
		if strings.Contains(name, "/") {
			return nil, fmt.Errorf("%s is not an executable file: %w", c, ErrNotRunnable)
		}
	}
	return nil, fmt.Errorf("finding %q in the sandbox: %w", name, sealed.ErrNotFound)
}
