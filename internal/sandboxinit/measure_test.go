package sandboxinit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

func TestStatusFields(t *testing.T) {
	for in, want := range map[string]map[string]string{
		"": {},
		"Name:\tsealed-init\nCapEff:\t0000000000000000\nSeccomp:\t2\n": {"Name": "sealed-init", "CapEff": "0000000000000000", "Seccomp": "2"},
		"Name:\ta:b\nno colon\nNoNewPrivs:\t1":                         {"Name": "a:b", "NoNewPrivs": "1"},
		"Groups:\t \n":                                                 {"Groups": ""},
	} {
		if diff := cmp.Diff(want, statusFields([]byte(in))); diff != "" {
			t.Errorf("%q:\n%s", in, diff)
		}
	}
}

// The mounts of a local sandbox, as the kernel shows them.
const sandboxMounts = `1 0 0:40 / / ro,nosuid,nodev,relatime - tmpfs tmpfs rw
2 1 254:0 /usr /usr ro,nosuid,nodev,relatime - ext4 /dev/vda rw
3 1 0:41 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
4 3 0:41 /irq /proc/irq ro,nosuid,nodev,noexec,relatime - proc proc rw
5 1 0:42 / /dev ro,nosuid,nodev,relatime - tmpfs tmpfs rw
6 5 0:5 /null /dev/null rw,nosuid,relatime - devtmpfs devtmpfs rw
7 5 0:5 /tty /dev/tty rw,nosuid,relatime - devtmpfs devtmpfs rw
8 5 0:43 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw
9 5 0:44 / /dev/shm rw,nosuid,nodev,relatime - tmpfs tmpfs rw
10 1 0:45 / /tmp rw,nosuid,nodev,relatime - tmpfs tmpfs rw
11 1 0:46 / /home/agent rw,nosuid,nodev,relatime - tmpfs tmpfs rw
12 1 0:47 / /run/sealed/run rw,nosuid,nodev,relatime - tmpfs tmpfs rw
13 1 254:0 /srv/x /workspace rw,nosuid,nodev,relatime shared:1 - ext4 /dev/vda rw
`

func TestParseMounts(t *testing.T) {
	usual := []string{"/dev/pts", "/dev/shm", "/home/agent", "/proc", "/run/sealed/run", "/tmp", "/workspace"}
	for name, tt := range map[string]struct {
		more string
		want []string // beyond the usual
	}{
		"as promised":       {"", nil},
		"writable root":     {"20 0 254:0 / / rw,relatime - ext4 /dev/vda rw\n", []string{"/"}},
		"host directory":    {"20 1 254:0 /root /root rw,relatime - ext4 /dev/vda rw\n", []string{"/root"}},
		"hidden below dev":  {"20 5 254:0 / /dev/host rw,relatime - ext4 /dev/vda rw\n", []string{"/dev/host"}},
		"hidden below proc": {"20 3 254:0 / /proc/host rw,relatime - ext4 /dev/vda rw\n", []string{"/proc/host"}},
		"a disk":            {"20 5 0:5 /vda /dev/vda rw,relatime - devtmpfs devtmpfs rw\n", []string{"/dev/vda"}},
		"below a node":      {"20 5 254:0 / /dev/null/x rw,relatime - ext4 /dev/vda rw\n", []string{"/dev/null/x"}},
		"below workspace":   {"20 13 254:0 / /workspace/x rw,relatime - ext4 /dev/vda rw\n", []string{"/workspace/x"}},
		"escaped name":      {"20 1 254:0 / /tmp\\040x rw,relatime - ext4 /dev/vda rw\n", []string{"/tmp\\040x"}},
		"ro of the system":  {"20 1 254:0 / /x rw,relatime - ext4 /dev/vda ro\n", []string{"/x"}},
		"no whole option":   {"20 1 254:0 / /x rw,relatime,errors=remount-ro - ext4 /dev/vda rw\n", []string{"/x"}},
	} {
		var m sealed.Measurement
		if err := parseMounts([]byte(sandboxMounts+tt.more), &m); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := map[string]bool{}
		for _, p := range m.Writable {
			got[p] = true
		}
		for _, p := range append(usual, tt.want...) {
			if !got[p] {
				t.Errorf("%s: %s is not measured as writable", name, p)
			}
		}
		if len(m.Writable) != len(usual)+len(tt.want) || m.RootReadOnly != (tt.want == nil) {
			t.Errorf("%s: root read-only: %v, writable: %q", name, m.RootReadOnly, m.Writable)
		}
	}
	for name, bad := range map[string]string{
		"short line":    sandboxMounts + "20 1 254:0 / /x\n",
		"empty line":    "\n" + sandboxMounts,
		"too long line": sandboxMounts + strings.Repeat("x", 2<<20) + "\n",
	} {
		if err := parseMounts([]byte(bad), &sealed.Measurement{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add([]byte(sandboxMounts))
	f.Add([]byte("1 0 0:40 / / rw - tmpfs tmpfs rw"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m sealed.Measurement
		if parseMounts(b, &m) != nil {
			return
		}
		for _, p := range m.Writable {
			ours := false
			for _, w := range writable {
				ours = ours || p == w
			}
			if !ours && m.RootReadOnly {
				t.Errorf("%q is writable, and the root is measured as read-only", p)
			}
		}
	})
}

func TestMeasureSandbox(t *testing.T) {
	var m sealed.Measurement
	if err := measureSandbox(&m); err != nil {
		t.Fatal(err)
	}
	if m.PID != os.Getpid() || m.UID != os.Getuid() || len(m.CapEff) != 16 || len(m.CapBnd) != 16 || m.UIDMap == "" || len(m.Interfaces) == 0 || m.Backend != sealed.BackendLocal {
		t.Errorf("measured %+v", m)
	}
}

func writeFile(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestOpenExecutable(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(second, "tool"), "\x7fELF", 0o755)
	writeFile(t, filepath.Join(second, "script"), "#!/bin/sh\n", 0o755)
	writeFile(t, filepath.Join(second, "empty"), "", 0o755)
	writeFile(t, filepath.Join(second, "one"), "#", 0o755)
	writeFile(t, filepath.Join(first, "tool"), "not executable", 0o644)
	if err := os.Mkdir(filepath.Join(first, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := first + ":" + second
	for name, tt := range map[string]struct {
		name    string
		content string
		script  bool
		err     error
		status  int
	}{
		"found behind one that is not executable": {name: "tool", content: "\x7fELF"},
		"absolute":          {name: second + "/tool", content: "\x7fELF"},
		"script":            {name: "script", content: "#!/bin/sh\n", script: true},
		"empty":             {name: "empty"},
		"one byte":          {name: "one", content: "#"},
		"not found":         {name: "nothing", err: sealed.ErrNotFound, status: sealed.ExitNotFound},
		"absent path":       {name: second + "/nothing", err: sealed.ErrNotFound, status: sealed.ExitNotFound},
		"not executable":    {name: first + "/tool", err: ErrNotRunnable, status: sealed.ExitNotRunnable},
		"directory":         {name: first + "/dir", err: ErrNotRunnable, status: sealed.ExitNotRunnable},
		"directory in PATH": {name: "dir", err: sealed.ErrNotFound, status: sealed.ExitNotFound},
	} {
		exe, err := openExecutable(tt.name, path)
		if tt.err != nil {
			if !errors.Is(err, tt.err) || exitStatus(err) != tt.status {
				t.Errorf("%s: %v, status %d", name, err, exitStatus(err))
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		sum := sha256.Sum256([]byte(tt.content))
		if exe.digest != hex.EncodeToString(sum[:]) || exe.script != tt.script {
			t.Errorf("%s: digest %s, script %v", name, exe.digest, exe.script)
		}
		_ = exe.file.Close()
	}
}
