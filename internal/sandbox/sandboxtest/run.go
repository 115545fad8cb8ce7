package sandboxtest

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sealed"
)

// Run checks that the sandboxes of a bench keep every promise.
func Run(t *testing.T, b Bench) {
	t.Run("from inside", func(t *testing.T) { inside(t, b) })
	t.Run("uid map seen from the host", func(t *testing.T) { uidMap(t, b) })
	t.Run("setuid file is harmless", func(t *testing.T) { setuid(t, b) })
	t.Run("workspace belongs to the uid", func(t *testing.T) { ownership(t, b) })
	t.Run("daemons die with process 1", func(t *testing.T) { daemons(t, b) })
	t.Run("kill kills all", func(t *testing.T) { kill(t, b) })
	t.Run("exit status", func(t *testing.T) { exitStatus(t, b) })
	t.Run("read-only binds", func(t *testing.T) { readOnly(t, b) })
	t.Run("memory of init", func(t *testing.T) { unreadable(t, b) })
	t.Run("refused", func(t *testing.T) { refused(t, b) })
}

func report(t *testing.T, b Bench) Report {
	t.Helper()
	box := b.Start(t, "report")
	if code, err := box.Wait(); code != 0 || err != nil {
		t.Fatalf("exit %d, %v: %s", code, err, box.Stderr)
	}
	box.Stdout.Await(t, "}\n")
	var r Report
	must(t, json.Unmarshal([]byte(box.Stdout.String()), &r))
	return r
}

func inside(t *testing.T, b Bench) {
	r := report(t, b)
	uidField := strings.Repeat(fmt.Sprintf("%d\t", b.UID), 4)
	want := map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
		"Uid": strings.TrimSpace(uidField), "Gid": strings.TrimSpace(uidField),
	}
	for k, v := range want {
		if r.Status[k] != v {
			t.Errorf("status %s is %q, want %q", k, r.Status[k], v)
		}
	}
	check := func(what string, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	check("pid", r.PID, 1)
	check("session", r.Session, 1)
	check("processes", r.Processes, []string{"/proc/1"})
	check("descriptors", r.Descriptors, []int{0, 1, 2, sealed.RelayFD, sealed.BootFD, sealed.TrustFD, sealed.SPIFFEFD})
	check("environment", r.Environ, []string{"PWD=" + sandbox.WorkspaceDir})
	check("directory", r.Directory, sandbox.WorkspaceDir)
	check("host name", r.Hostname, sandbox.Hostname)
	check("interfaces", r.Interfaces, []string{"lo"})
	check("routes", r.Routes, "")
	check("home", r.Home, []string{"agent"})
	check("host's places", r.Present, []string(nil))
	writable := []string{sandbox.WorkspaceDir, sandbox.HomeDir, sandbox.TempDir, sandbox.RunDir, "/dev/shm"}
	check("places written", r.Written, writable)
	slices.Sort(writable)
	slices.Sort(r.Writable)
	check("writable mounts", r.Writable, writable)
	check("core limit", r.Core, uint64(1))
	check("open files limit", r.OpenFiles, b.Limits.WithDefaults().OpenFiles)
	for what, e := range map[string]string{"dialing": r.Dial, "/dev/tty": r.Terminal, "user namespace": r.NestedUser, "mount": r.Mount} {
		if e == "" {
			t.Errorf("%s works", what)
		}
	}
	allowed := []string{"bin", "dev", "etc", "home", "lib", "lib32", "lib64", "proc", "run", "sbin", "tmp", "usr", "workspace"}
	for _, name := range r.Root {
		if !slices.Contains(allowed, name) {
			t.Errorf("/%s is in the sandbox", name)
		}
	}
	allowed = []string{"alternatives", "ca-certificates", "group", "hosts", "ld.so.cache", "localtime", "mime.types", "nsswitch.conf", "passwd", "pki", "resolv.conf", "ssl"}
	for _, name := range r.Etc {
		if !slices.Contains(allowed, name) {
			t.Errorf("/etc/%s is in the sandbox", name)
		}
	}
}

func uidMap(t *testing.T, b Bench) {
	box := b.Start(t, "hold")
	box.Stdout.Await(t, "holding")
	for _, name := range []string{"uid_map", "gid_map"} {
		m, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", box.InitPID(), name))
		must(t, err)
		want := fmt.Sprintf("%d %d 1", b.UID, b.UID)
		if got := strings.Join(strings.Fields(string(m)), " "); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// setuid: the bit can be set, but has no effect inside (no_new_privs, nosuid),
// and belongs to nobody special outside (R02).
func setuid(t *testing.T, b Bench) {
	box := b.Shell(t, "cp /usr/bin/id /workspace/id && chmod 4755 /workspace/id; /workspace/id -u; grep /workspace /proc/self/mountinfo")
	path := filepath.Join(box.Workspace, "id")
	if modeOf(t, path)&fs.ModeSetuid == 0 {
		t.Fatal("this file system keeps no setuid bit: set TMPDIR to one that does")
	}
	st, err := os.Lstat(path)
	must(t, err)
	if owner := st.Sys().(*syscall.Stat_t).Uid; owner == 0 || int(owner) != b.UID {
		t.Errorf("planted setuid file belongs to uid %d", owner)
	}
	if !strings.HasPrefix(box.Stdout.String(), strconv.Itoa(b.UID)+"\n") || !strings.Contains(box.Stdout.String(), "nosuid") {
		t.Errorf("setuid took effect: %s", box.Stdout)
	}
}

func ownership(t *testing.T, b Bench) {
	box := b.Shell(t, "echo x > file; mkdir dir; mknod dev c 1 3; mknod fifo p; ls -ln")
	st, err := os.Lstat(filepath.Join(box.Workspace, "file"))
	must(t, err)
	if owner := st.Sys().(*syscall.Stat_t).Uid; int(owner) != b.UID {
		t.Errorf("file belongs to uid %d, want %d", owner, b.UID)
	}
	if _, err := os.Lstat(filepath.Join(box.Workspace, "dev")); err == nil {
		t.Error("a device was made")
	}
}

func namespaceOf(t *testing.T, box *Box) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", box.InitPID()))
	if err != nil { // a 0711 init hides it from its own uid
		return ""
	}
	return ns
}

// members are the processes below process 1, by parenthood, which anyone may
// read. A daemon's parent is process 1 once its own has ended.
func members(t *testing.T, init int) []int {
	t.Helper()
	var out []int
	dirs, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	for _, p := range dirs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) > 1 && f[1] == strconv.Itoa(init) && f[0] != "Z" {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			must(t, err)
			out = append(out, pid)
		}
	}
	return out
}

func alive(pids []int) []int {
	var out []int
	for _, pid := range pids {
		if dir := "/proc/" + strconv.Itoa(pid); !ended(dir) {
			out = append(out, pid)
		}
	}
	return out
}

// ended reports that a process is gone or a zombie.
func ended(dir string) bool {
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return true
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	return len(f) == 0 || f[0] == "Z" || f[0] == "X"
}

// daemons: double-forked processes in sessions of their own end when process 1
// does, before Wait returns (B33).
func daemons(t *testing.T, b Bench) {
	box := b.Start(t, "hold")
	box.Stdout.Await(t, "holding")
	left := members(t, box.InitPID())
	if len(left) < 2 {
		t.Fatalf("want two daemons below process 1, got %v", left)
	}
	ns := namespaceOf(t, box)
	must(t, box.Kill())
	_, err := box.Wait()
	must(t, err)
	if live := alive(append(left, box.InitPID())); len(live) > 0 {
		t.Errorf("survivors: %v", live)
	}
	if ns != "" {
		if s := Survivors(t, ns); len(s) > 0 {
			t.Errorf("survivors in %s: %v", ns, s)
		}
	}
}

func kill(t *testing.T, b Bench) {
	box := b.Start(t, "hold")
	box.Stdout.Await(t, "holding")
	began := time.Now()
	must(t, box.Kill())
	code, err := box.Wait()
	must(t, err)
	if code != 137 {
		t.Errorf("exit %d, want 137", code)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("dying took %v", d)
	}
	if err := box.Kill(); err != nil {
		t.Errorf("killing again: %v", err)
	}
	if again, _ := box.Wait(); again != code {
		t.Errorf("second wait says %d, first %d", again, code)
	}
}

func exitStatus(t *testing.T, b Bench) {
	for _, want := range []int{0, 3, 125} {
		box := b.Start(t, "shell", fmt.Sprintf("exit %d", want))
		if code, err := box.Wait(); code != want || err != nil {
			t.Errorf("exit %d, %v, want %d", code, err, want)
		}
	}
}

func readOnly(t *testing.T, b Bench) {
	dir := OpenDir(t)
	must(t, os.WriteFile(filepath.Join(dir, "tool"), []byte("tool\n"), 0o644))
	b.ReadOnly = []string{dir}
	box := b.Shell(t, fmt.Sprintf("cat %[1]s/tool; echo changed > %[1]s/tool; touch %[1]s/new", dir))
	if !strings.HasPrefix(box.Stdout.String(), "tool\n") {
		t.Errorf("not readable: %s%s", box.Stdout, box.Stderr)
	}
	got, err := os.ReadFile(filepath.Join(dir, "tool"))
	must(t, err)
	if string(got) != "tool\n" {
		t.Error("changed from inside")
	}
}

// refused: what no driver may start.
func refused(t *testing.T, b Bench) {
	for name, change := range map[string]func(*Bench){
		"host root":          func(b *Bench) { b.UID = 0 },
		"unknown isolation":  func(b *Bench) { b.Isolation = "none" },
		"isolation misnamed": func(b *Bench) { b.Isolation = otherIsolation(b.Isolation) },
		"bind over the root": func(b *Bench) { b.ReadOnly = []string{"/"} },
		"bind of /etc":       func(b *Bench) { b.ReadOnly = []string{"/etc/ssh"} },
		"bind of sockets":    func(b *Bench) { b.ReadOnly = []string{"/run/docker.sock"} },
		"bind with dots":     func(b *Bench) { b.ReadOnly = []string{"/opt/../etc"} },
		"missing bind":       func(b *Bench) { b.ReadOnly = []string{"/opt/absent-" + strconv.Itoa(os.Getpid())} },
		"missing init":       func(b *Bench) { b.Probe = "/opt/absent" },
	} {
		t.Run(name, func(t *testing.T) {
			changed := b
			change(&changed)
			box, err := changed.TryStart(t, "report")
			if err != nil {
				return
			}
			if code, err := box.Wait(); code == 0 || err != nil || box.Stdout.String() != "" {
				t.Errorf("started: exit %d, %v, %s", code, err, box.Stdout)
			}
		})
	}
}

func otherIsolation(i string) string {
	if i == sealed.IsolationOwnUID {
		return sealed.IsolationSameUID
	}
	return sealed.IsolationOwnUID
}
