package attack

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// C14: while values are live, what runs on the operator's side holds names
// only. The same scan finds the value in the agent that was given it.
func TestC14MemoryOfSealedctl(t *testing.T) {
	t.Parallel()
	w := get(t)
	proxied, held := w.plantBoth(t)
	for name, as := range callers() {
		t.Run(name, func(t *testing.T) {
			p := w.Start(t, as, shell(held.profile, untilTold, "--no-workspace")...)
			p.Await(t, isUp)
			st := p.Status(t)
			for what, pid := range map[string]int{"sealedctl": p.PID(), "the supervisor": st.PID, "bubblewrap": parent(t, st.InitPID)} {
				hits, err := canary.ScanProcess(pid, proxied.c, held.c)
				harness.Must(t, err)
				if len(hits) > 0 {
					t.Errorf("%s holds a value: %v", what, hits)
				}
			}
			t.Run("control: the scan finds the value in the agent", func(t *testing.T) {
				var hits []canary.Hit
				for _, pid := range children(t, st.InitPID) {
					found, err := canary.ScanProcess(pid, held.c)
					harness.Must(t, err)
					hits = append(hits, found...)
				}
				if len(hits) == 0 {
					t.Error("not found")
				}
			})
			t.Run("control: the scan finds the value in init", func(t *testing.T) {
				hits, err := canary.ScanProcess(st.InitPID, proxied.c, held.c)
				harness.Must(t, err)
				if !slices.ContainsFunc(hits, func(h canary.Hit) bool { return h.Canary == "PROXIED" }) {
					t.Errorf("only %v", hits)
				}
			})
			w.tell(t, p)
			w.clean(t, p.Wait(t).Want(t, 0), proxied.c, held.c)
		})
	}
}

type planted struct {
	profile string
	c       *canary.Canary
}

// plantBoth makes one profile with a proxied and a handed-over key.
func (w *world) plantBoth(t *testing.T) (proxied, held planted) {
	t.Helper()
	c1, path1 := w.plant(t, "PROXIED")
	c2, path2 := w.plant(t, "HELD")
	name := w.Name("attack/both")
	agents := []string{string(agentName)}
	w.Profile(t, harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{
		"PROXIED": harness.Key(path1, agents, binding("api.test")), "HELD": harness.Key(path2, agents),
	}))
	return planted{name, c1}, planted{name, c2}
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	harness.Must(t, err)
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	n, err := strconv.Atoi(f[1])
	harness.Must(t, err)
	return n
}

// C03, C04, R01: another process of the user whose uid the sandbox shares
// can't look into init, which holds the values. It can look into an agent that
// was given one: that is what the grade same_uid stands for, and it is in the
// log.
func TestC03C04SameUserLooksIntoInit(t *testing.T) {
	t.Parallel()
	w := get(t)
	proxied, held := w.plantBoth(t)
	p := w.Start(t, harness.Caller{UID: harness.Unprivileged}, shell(held.profile, untilTold, "--no-workspace")...)
	p.Await(t, isUp)
	st := p.Status(t)
	got := w.outside(t, harness.Unprivileged, "peek", strconv.Itoa(st.InitPID))
	for _, way := range worked(got) {
		t.Errorf("the same user gets at init by %s", way)
	}
	t.Run("control: it gets at the agent", func(t *testing.T) {
		agents := children(t, st.InitPID)
		if len(agents) == 0 {
			t.Fatal("no agent")
		}
		got := worked(w.outside(t, harness.Unprivileged, "peek", strconv.Itoa(agents[0])))
		for _, want := range []string{"environ", "maps", "mem", "process_vm_readv"} {
			if !slices.Contains(got, want) {
				t.Errorf("%s should work, got %q", want, got)
			}
		}
	})
	w.tell(t, p)
	r := p.Wait(t).Want(t, 0)
	w.wantEntry(t, r.RunID(t), "run.claimed", `"isolation":"same_uid"`)
	w.clean(t, r, proxied.c, held.c)
}

// C01, C02: nor can any other user look at a sandbox with a uid of its own,
// where the agent was given a value.
func TestC01C02OtherUserLooksIntoSandbox(t *testing.T) {
	t.Parallel()
	w := get(t)
	_, held := w.plantBoth(t)
	p := w.Start(t, harness.Caller{}, shell(held.profile, untilTold, "--no-workspace")...)
	p.Await(t, isUp)
	st := p.Status(t)
	for _, pid := range append(children(t, st.InitPID), st.InitPID, st.PID, p.PID()) {
		for _, way := range worked(w.outside(t, harness.Unprivileged, "peek", strconv.Itoa(pid))) {
			t.Errorf("another user gets at process %d by %s", pid, way)
		}
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		harness.Must(t, err)
		if hits := canary.Scan("cmdline", b, held.c); len(hits) > 0 {
			t.Error(hits)
		}
	}
	w.tell(t, p)
	p.Wait(t).Want(t, 0)
}

// same_uid with a key of high risk: refused by the default policy.
func TestC04SameUserHighRisk(t *testing.T) {
	t.Parallel()
	w := get(t)
	c, path := w.plant(t, "KEY")
	spec := harness.Key(path, []string{string(agentName)}, binding("api.test"))
	spec.Risk = sealed.RiskHigh
	name := w.Name("attack/high")
	w.Profile(t, harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{"KEY": spec}))
	r := w.Ctl(t, harness.Caller{UID: harness.Unprivileged}, shell(name, "true", "--no-workspace")...).Want(t, sealed.ExitDenied)
	if !strings.Contains(r.Stderr, "same_uid_high_risk") || len(canary.Scan("stderr", []byte(r.Stderr), c)) > 0 {
		t.Errorf("stderr: %s", r.Stderr)
	}
	t.Run("control: with a uid of its own a person is asked", func(t *testing.T) {
		r := w.Ctl(t, harness.Caller{}, shell(name, "true", "--no-workspace")...).Want(t, 0)
		if !strings.Contains(r.Stderr, "waits for a person") {
			t.Errorf("stderr: %s", r.Stderr)
		}
	})
}

// C17, C18: variables in the launcher's environment that would lead a program
// elsewhere, or make it talk, change nothing for init and the agent.
func TestC17C18LauncherEnvironment(t *testing.T) {
	t.Parallel()
	w := get(t)
	profile, c := w.profile(t, binding("api.test"))
	dir := openDir(t)
	evil := map[string]string{
		"HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1", "VAULT_SKIP_VERIFY": "1",
		"VAULT_NAMESPACE": "evil", "VAULT_PROXY_ADDR": "http://127.0.0.1:1", "VAULT_AGENT_ADDR": "http://127.0.0.1:1", "VAULT_WRAP_TTL": "60s",
		"SPIFFE_ENDPOINT_SOCKET": "unix:///tmp/evil.sock", "SSL_CERT_FILE": "/nonexistent", "SSL_CERT_DIR": "/nonexistent",
		"GODEBUG": "http2debug=2,x509sha1=1", "GOTRACEBACK": "crash", "SSLKEYLOGFILE": filepath.Join(dir, "keys"), "NODE_OPTIONS": "--require=/tmp/evil.js",
		"PYTHONSTARTUP": "/tmp/evil.py", "LD_PRELOAD": "/tmp/evil.so", "BASH_ENV": "/tmp/evil.sh", "ENV": "/tmp/evil.sh", "GIT_SSH_COMMAND": "evil", "SEALED_API": "http://evil.test",
	}
	as := harness.Caller{}
	for name, v := range evil {
		as.Env = append(as.Env, name+"="+v)
	}
	tag := w.Name("c17-")
	script := "env; " + curl("-H \"Authorization: Bearer $KEY\" https://api.test/v1/"+tag+"/echo")
	r := w.Ctl(t, as, shell(profile, script, "--no-workspace")...).Want(t, 0)
	if !strings.HasSuffix(r.Stdout, "200 200\n") {
		t.Errorf("the run did not work: %s\n%s", r.Stdout, r.Stderr)
	}
	for name, v := range evil {
		if strings.Contains(r.Stdout, name+"="+v+"\n") {
			t.Errorf("%s reached the agent", name)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "keys")); err == nil {
		t.Error("TLS keys were written")
	}
	w.clean(t, r, c)
	t.Run("control: these variables mean something", func(t *testing.T) {
		cmd := exec.Command("/usr/bin/curl", "-sS", "-m", "5", "--cacert", w.Status.VaultCA, w.Status.VaultAddr+"/v1/sys/health")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("curl: %v: %s", err, out)
		}
		cmd = exec.Command(cmd.Path, cmd.Args[1:]...)
		cmd.Env = as.Env
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("curl took no notice: %s", out)
		}
	})
}

// startInit starts sealed-init in a sandbox by hand, with an environment, and
// nothing that it needs.
func (w *world) startInit(t *testing.T, env ...string) (output string, exit int) {
	t.Helper()
	args := []string{"--unshare-user", "--unshare-pid", "--unshare-net", "--as-pid-1", "--die-with-parent", "--clearenv",
		"--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--ro-bind", w.Status.InitPath, "/init"}
	for _, e := range env {
		name, v, _ := strings.Cut(e, "=")
		args = append(args, "--setenv", name, v)
	}
	cmd := exec.Command("bwrap", append(args, "--", "/init")...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = []string{}, "/", credential(790000)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// C18, R18: with any of these variables, put there by a launcher of his own,
// init refuses to start, before it has read anything.
func TestC18PlantedVariable(t *testing.T) {
	t.Parallel()
	w := get(t)
	for _, env := range []string{
		"GODEBUG=http2debug=2", "GOTRACEBACK=crash", "SSLKEYLOGFILE=/tmp/k", "SSL_CERT_FILE=/x", "SSL_CERT_DIR=/x", "LD_PRELOAD=/x.so", "LD_LIBRARY_PATH=/x",
		"HTTPS_PROXY=http://127.0.0.1:1", "SPIFFE_ENDPOINT_SOCKET=unix:///x", "VAULT_ADDR=https://evil.test", "NODE_OPTIONS=--x", "GOCOVERDIR=/tmp", "PATH=/x", "UNHEARD_OF=1",
	} {
		name, _, _ := strings.Cut(env, "=")
		t.Run(name, func(t *testing.T) {
			out, exit := w.startInit(t, env)
			if exit != sealed.ExitSealed || !strings.HasPrefix(out, "sealed: refusing environment "+name) || strings.Count(out, "\n") != 1 {
				t.Errorf("exit %d: %s", exit, out)
			}
		})
	}
	t.Run("control: without it init goes on to the trust file", func(t *testing.T) {
		out, exit := w.startInit(t)
		if exit != sealed.ExitSealed || !strings.Contains(out, "reading trust file") {
			t.Errorf("exit %d: %s", exit, out)
		}
	})
}

// B29, R02: a setuid program that the agent leaves in the workspace is none on
// the host, and root's no file of his.
func TestB29SetuidFile(t *testing.T) {
	t.Parallel()
	w := get(t)
	for name, as := range callers() {
		t.Run(name, func(t *testing.T) {
			r := w.Ctl(t, as, shell("", "cp /usr/bin/id id; chmod 6755 id; stat -c %a id; ./id -u; cp /usr/bin/id plain; chmod 755 plain")...).Want(t, 0)
			if !strings.HasPrefix(r.Stdout, "6755\n") {
				t.Fatalf("control: the bits were not set in the sandbox: %s", r.Stdout)
			}
			for _, dir := range []string{r.Dir, r.RunDir(t)} {
				harness.Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
					if err != nil {
						return err
					}
					st, err := d.Info()
					if err == nil && st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
						t.Errorf("%s is %v", path, st.Mode())
					}
					return err
				}))
			}
			if st, err := os.Stat(filepath.Join(r.Dir, "plain")); err != nil || st.Mode().Perm() != 0o755 {
				t.Errorf("control: the plain program did not come back: %v", err)
			}
		})
	}
}

// B05: the agent sends process 1 every signal that a process may send. Init
// goes on. A signal that pretends not to come from kill(2) may end it, and the
// sandbox with it, but without a word about what is in its memory.
func TestB05Signals(t *testing.T) {
	t.Parallel()
	w := get(t)
	profile, c := w.profile(t)
	attack := func(t *testing.T, script string, exits ...int) {
		t.Helper()
		r := w.Ctl(t, harness.Caller{}, shell(profile, script+"; sleep 0.2; echo still here", "--no-workspace", "--read-only", filepath.Dir(w.probe))...)
		w.clean(t, r, c)
		for _, word := range []string{"goroutine ", "rax", "SIG", "runtime"} {
			if strings.Contains(r.Stdout+r.Stderr, word) {
				t.Fatalf("init told about its inside:\n%.2000s", r.Stderr)
			}
		}
		if !slices.Contains(exits, r.Exit) || (r.Exit == 0) != strings.Contains(r.Stdout, "still here") {
			t.Errorf("exit %d\n%s\n%s", r.Exit, r.Stdout, r.Stderr)
		}
	}
	t.Run("kill", func(t *testing.T) { attack(t, "for i in $(seq 1 64); do kill -$i 1 2>/dev/null; done", 0) })
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGSEGV, syscall.SIGSTKFLT, syscall.SIGSYS, syscall.SIGPROF} {
		t.Run("sigqueue "+sig.String(), func(t *testing.T) {
			t.Parallel()
			attack(t, w.probe+" signal "+itoa(int(sig)), 0, sealed.ExitSealed)
		})
	}
	t.Run("control: a Go program tells", func(t *testing.T) {
		cmd := exec.Command(w.probe, "wait")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		harness.Must(t, cmd.Start())
		time.Sleep(200 * time.Millisecond)
		harness.Must(t, cmd.Process.Signal(syscall.SIGQUIT))
		_ = cmd.Wait()
		if !strings.Contains(out.String(), "goroutine ") {
			t.Errorf("got %q", out.String())
		}
	})
}
