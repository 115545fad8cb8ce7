package supervise

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sandbox/local"
	"sealed.dev/sealed/internal/sandbox/sandboxtest"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness/require"
)

const (
	operatorEnv = "SEALED_TEST_OPERATOR" // dir with probe and trust file: run as an ordinary user
	ownerEnv    = "SEALED_TEST_OWNER"    // the same: be the owner of a run, to be killed
	bwrapEnv    = "SEALED_TEST_BWRAP"
	uidEnv      = "SEALED_TEST_UID"
	operatorUID = 61002
)

// testUIDs are for the tests; an owner that gets killed has a uid of its own.
var testUIDs = UIDRange{798000, 798099}

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerEnv); dir != "" {
		beOwner(dir)
	}
	if args := os.Getenv(meetingEnv); args != "" {
		beGuest(args)
	}
	status := m.Run()
	_ = os.RemoveAll(probe.dir)
	os.Exit(status)
}

// probe is built once; every stage has a copy.
var probe struct {
	once sync.Once
	dir  string // empty: it could not be built
}

func copyProbe(t *testing.T, to string) {
	t.Helper()
	probe.once.Do(func() {
		dir, err := os.MkdirTemp("", "sealed-supervise-")
		must(t, err)
		sandboxtest.BuildProbe(t, dir)
		probe.dir = dir
	})
	data, err := os.ReadFile(filepath.Join(probe.dir, "probe"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(to, "probe"), data, 0o711))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// stage is a directory with what every run needs, open to every uid.
type stage struct {
	dir       string
	workspace string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	require.Bubblewrap(t)
	shared := os.Getenv(operatorEnv)
	s := &stage{dir: sandboxtest.OpenDir(t)}
	if shared == "" {
		require.Root(t, "the operator's half is started by it")
		copyProbe(t, s.dir)
		s.writeTrust(t)
	} else {
		for _, name := range []string{"probe", "trust.json"} {
			must(t, os.Symlink(filepath.Join(shared, name), filepath.Join(s.dir, "link-"+name)))
		}
	}
	s.workspace = filepath.Join(s.dir, "workspace")
	must(t, os.Mkdir(s.workspace, 0o755))
	must(t, os.WriteFile(s.workspace+"/file", []byte("original"), 0o644))
	return s
}

// path of a shared file, past the link: neither may be one.
func (s *stage) path(name string) string {
	if target, err := os.Readlink(filepath.Join(s.dir, "link-"+name)); err == nil {
		return target
	}
	return filepath.Join(s.dir, name)
}

func (s *stage) writeTrust(t *testing.T) {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(nil)
	must(t, err)
	socket := filepath.Join(s.dir, "spiffe.sock")
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	b, err := json.Marshal(sealed.TrustFile{
		V: 1, Tenant: "acme", TrustDomain: "test.example", VaultAddr: "https://127.0.0.1:8200", VaultCA: "pem", VaultMount: "sealed",
		AuthMount: "jwt", AuthRole: "r", Audience: "a", AnswerKey: base64.StdEncoding.EncodeToString(pub), SPIFFESocket: socket, UpstreamRoots: "pem",
		LogKey: "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
	})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(s.dir, "trust.json"), b, 0o644))
}

// registrar is an attestor that accepts everything, or nothing.
type registrar struct {
	mu                     sync.Mutex
	pid                    int
	registered, claimed    bool
	closed                 bool
	refuse                 error
	isolation, agentString string
}

func (r *registrar) Register(_ context.Context, agent sealed.Name, isolation string, pid int) (Registration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.registered, r.pid, r.isolation, r.agentString = true, pid, isolation, string(agent)
	return r, r.refuse
}

func (r *registrar) Claimed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimed = true
	return nil
}

func (r *registrar) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

// output collects and announces what was written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
	c   chan struct{}
}

func newOutput() *output { return &output{c: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.c <- struct{}{}:
	default:
	}
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) await(t testing.TB, text string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !strings.Contains(o.String(), text) {
		select {
		case <-o.c:
		case <-deadline:
			t.Fatalf("no %q in %q", text, o.String())
		}
	}
}

var counter struct {
	sync.Mutex
	n int
}

func (s *stage) config(argv ...string) Config {
	counter.Lock()
	counter.n++
	run := fmt.Sprintf("01JZZZZZZZZZZZZZZZZZZ%05d", counter.n)
	counter.Unlock()
	isolation := sealed.IsolationOwnUID
	if os.Getuid() != 0 {
		isolation = sealed.IsolationSameUID
	}
	return Config{
		Run: sealed.RunID(run), Agent: "test", Boot: sealed.Boot{Run: sealed.RunID(run), Mode: sealed.ModeJIT, Argv: argv},
		Sandbox: sealed.SandboxSpec{Backend: sealed.BackendLocal, Isolation: isolation, Network: sealed.NetworkNone, WallTime: sealed.Duration(time.Minute)},
		UIDs:    testUIDs, Driver: local.Driver{}, StateDir: filepath.Join(s.dir, "state"), TrustFile: s.path("trust.json"), Init: s.path("probe"),
		Workspace: s.workspace, Registrar: &registrar{}, Detached: true, Grace: 200 * time.Millisecond,
		Signals: make(chan os.Signal, 2), Stdout: newOutput(), Stderr: newOutput(),
	}
}

func (s *stage) file(name string) string {
	b, err := os.ReadFile(filepath.Join(s.workspace, name))
	if err != nil {
		return "absent"
	}
	return string(b)
}

func TestFinished(t *testing.T) {
	s := newStage(t)
	cfg := s.config("run", "echo out; echo err >&2; echo changed > file; echo new > new; mkdir .git; echo evil > .git/config; echo secret > flagged; echo flagged > /run/sealed/run/quarantine; exit 7")
	started := false
	cfg.OnStart = func() { started = true }
	cfg.OnEnd = func(string) { t.Error("OnEnd for a finished run") }
	res, err := Run(t.Context(), cfg)
	must(t, err)
	if res.Exit != 7 || !res.Finished || res.Reason != ReasonFinished || !started {
		t.Errorf("%+v", res)
	}
	for name, want := range map[string]string{"file": "changed\n", "new": "new\n", ".git/config": "absent", "flagged": "absent"} {
		if got := s.file(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if len(res.Workspace.Quarantined) != 2 {
		t.Errorf("%+v", res.Workspace)
	}
	for name, want := range map[string]string{"stdout.log": "out\n", "stderr.log": "err\n", "record.dsse.json": `{"record":true}`, "quarantine/.git/config": "evil\n"} {
		b, err := os.ReadFile(filepath.Join(res.Dir, name))
		if err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", name, b, err)
		}
		if st, err := os.Stat(filepath.Join(res.Dir, name)); err == nil && st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}
	if got := cfg.Stdout.(*output).String(); got != "out\n" {
		t.Errorf("shown: %q", got)
	}
	if _, err := os.Stat(filepath.Join(res.Dir, "workspace")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the copy is still there")
	}
	if _, err := os.Stat(filepath.Join(res.Dir, "quarantine/flagged")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a file with a credential was kept")
	}
	st, err := ReadStatus(res.Dir)
	must(t, err)
	if st.State != StateEnded || st.Exit != 7 || !st.Finished || st.Ended == nil || st.InitPID == 0 || st.UID == 0 {
		t.Errorf("%+v", st)
	}
	reg := cfg.Registrar.(*registrar)
	if !reg.claimed || !reg.closed || reg.pid != st.InitPID || reg.agentString != "test" {
		t.Errorf("%+v", reg)
	}
	if _, err := Run(t.Context(), cfg); err == nil {
		t.Error("the same run ran twice")
	}
}

func TestDied(t *testing.T) {
	for _, tc := range []struct {
		name, argv, mode string
		exit             int
		message          string
		held             bool
	}{
		{"jit", "shell", sealed.ModeJIT, sealed.ExitSealed, "", false},
		{"without keys", "shell", sealed.ModeSandboxed, sealed.ExitSealed, "", true},
		{"gave up", "give-up", sealed.ModeJIT, 3, "denied by policy", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStage(t)
			cfg := s.config(tc.argv, "echo changed > file")
			cfg.Boot.Mode = tc.mode
			ended := ""
			cfg.OnEnd = func(reason string) { ended = reason }
			res, err := Run(t.Context(), cfg)
			must(t, err)
			if res.Exit != tc.exit || res.Finished || ended != ReasonDied || res.Message != tc.message || (res.Held != "") != tc.held {
				t.Errorf("%+v, ended %q", res, ended)
			}
			if s.file("file") != "original" {
				t.Error("an unscanned workspace went back")
			}
			if _, err := os.Stat(filepath.Join(res.Dir, "workspace")); errors.Is(err, fs.ErrNotExist) == tc.held {
				t.Errorf("the copy: %v", err)
			}
			if reg := cfg.Registrar.(*registrar); reg.registered != (tc.mode == sealed.ModeJIT) {
				t.Error("registered for a run without identity, or not for one with")
			}
		})
	}
}

// TestKilled: every way in which a run is ended from outside. The probe holds
// on with daemons of its own (B33).
func TestKilled(t *testing.T) {
	for _, tc := range []struct {
		name, argv, reason string
		arrange            func(*Config, context.CancelFunc) (do func())
	}{
		{"stop request", "hold", ReasonStopped, func(c *Config, _ context.CancelFunc) func() {
			sig := make(chan os.Signal, 2)
			c.Signals = sig
			return func() { sig <- syscall.SIGTERM }
		}},
		{"two stop requests", "hold", ReasonStopped, func(c *Config, _ context.CancelFunc) func() {
			sig := make(chan os.Signal, 2)
			c.Signals, c.Grace = sig, time.Hour
			return func() { sig <- syscall.SIGINT; sig <- syscall.SIGINT }
		}},
		{"canceled", "hold", ReasonCanceled, func(_ *Config, cancel context.CancelFunc) func() { return cancel }},
		{"parent gone", "hold", ReasonParent, func(c *Config, _ context.CancelFunc) func() {
			r, w := io.Pipe()
			c.Parent, c.Detached = r, false
			return func() { _ = w.Close() }
		}},
		{"wall time", "hold", ReasonWallTime, func(c *Config, _ context.CancelFunc) func() {
			c.Sandbox.WallTime = sealed.Duration(1500 * time.Millisecond)
			return func() {}
		}},
		{"relay lost", "drop-relay", ReasonRelayLost, func(*Config, context.CancelFunc) func() { return func() {} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStage(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cfg := s.config(tc.argv)
			do := tc.arrange(&cfg, cancel)
			type outcome struct {
				res Result
				err error
			}
			done := make(chan outcome, 1)
			go func() {
				res, err := Run(ctx, cfg)
				done <- outcome{res, err}
			}()
			cfg.Stdout.(*output).await(t, "holding")
			began := time.Now()
			do()
			o := <-done
			must(t, o.err)
			if o.res.Reason != tc.reason || o.res.Finished || o.res.Exit != sealed.ExitSealed {
				t.Errorf("%+v", o.res)
			}
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
			if st, err := ReadStatus(o.res.Dir); err != nil || os.Getuid() == 0 && len(processesOf(t, st.UID)) > 0 {
				t.Errorf("survivors of uid %d, %v", st.UID, err)
			}
		})
	}
}

func TestStopInTime(t *testing.T) {
	s := newStage(t)
	cfg := s.config("echo")
	sig := make(chan os.Signal, 1)
	cfg.Signals, cfg.Grace = sig, time.Minute
	go func() {
		cfg.Stdout.(*output).await(t, "ready")
		sig <- syscall.SIGTERM
	}()
	res, err := Run(t.Context(), cfg)
	must(t, err)
	if res.Exit != 128+15 || !res.Finished {
		t.Errorf("%+v", res)
	}
}

// TestStopAtOnce: a request to stop that comes before init can hear it is kept
// until it can, and init ends the run in an orderly way.
func TestStopAtOnce(t *testing.T) {
	s := newStage(t)
	cfg := s.config("echo")
	sig := make(chan os.Signal, 1)
	cfg.Signals, cfg.Grace = sig, time.Minute
	sig <- syscall.SIGTERM
	began := time.Now()
	res, err := Run(t.Context(), cfg)
	must(t, err)
	if took := time.Since(began); res.Exit != 128+15 || !res.Finished || took > 30*time.Second {
		t.Errorf("%+v after %v", res, took)
	}
}

func TestInteractive(t *testing.T) {
	s := newStage(t)
	cfg := s.config("echo")
	cfg.Boot.Interactive = true
	in, typed := io.Pipe()
	sizes, sig := make(chan Size), make(chan os.Signal, 1)
	cfg.Stdin, cfg.Resize, cfg.Signals, cfg.Grace = in, sizes, sig, time.Minute
	out := cfg.Stdout.(*output)
	go func() {
		out.await(t, "ready")
		_, _ = typed.Write([]byte("hello\n"))
		out.await(t, "got hello")
		sizes <- Size{40, 120}
		close(sizes)
		out.await(t, "control resize 40 120")
		sig <- syscall.SIGTERM
	}()
	res, err := Run(t.Context(), cfg)
	must(t, err)
	if !res.Finished {
		t.Errorf("%+v", res)
	}
}

func TestNotStarted(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *stage, *Config){
		"attestor refuses": func(_ *testing.T, _ *stage, c *Config) { c.Registrar = &registrar{refuse: sealed.ErrDenied} },
		"no registrar":     func(_ *testing.T, _ *stage, c *Config) { c.Registrar = nil },
		"other isolation":  func(_ *testing.T, _ *stage, c *Config) { c.Sandbox.Isolation = "container" },
		"no trust file":    func(_ *testing.T, _ *stage, c *Config) { c.TrustFile = "/absent" },
		"trust file is a link": func(t *testing.T, s *stage, c *Config) {
			must(t, os.Symlink(c.TrustFile, s.dir+"/link"))
			c.TrustFile = s.dir + "/link"
		},
		"malformed trust file": func(t *testing.T, s *stage, c *Config) {
			c.TrustFile = s.dir + "/bad.json"
			must(t, os.WriteFile(c.TrustFile, []byte("{}"), 0o644))
		},
		"bare":             func(_ *testing.T, _ *stage, c *Config) { c.Boot.Mode = sealed.ModeBare },
		"no wall time":     func(_ *testing.T, _ *stage, c *Config) { c.Sandbox.WallTime = 0 },
		"no bubblewrap":    func(_ *testing.T, _ *stage, c *Config) { c.Driver = local.Driver{Bwrap: "/absent"} },
		"absent workspace": func(_ *testing.T, s *stage, c *Config) { c.Workspace = s.dir + "/absent" },
		"boot too large":   func(_ *testing.T, _ *stage, c *Config) { c.Boot.Input = make([]byte, sealed.MaxBoot) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			cfg := s.config("hold")
			cfg.OnStart = func() { t.Error("started") }
			change(t, s, &cfg)
			res, err := Run(t.Context(), cfg)
			if err == nil || res.Exit != sealed.ExitSealed || res.Finished {
				t.Fatalf("%+v, %v", res, err)
			}
			if res.Dir == "" {
				return
			}
			if _, err := os.Stat(filepath.Join(res.Dir, "workspace")); !errors.Is(err, fs.ErrNotExist) {
				t.Error("the copy is still there")
			}
			if st, err := ReadStatus(res.Dir); err != nil || st.State != StateFailed {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

func TestUnreachableState(t *testing.T) {
	s := newStage(t)
	require.Root(t, "only with a uid of its own")
	cfg := s.config("hold")
	must(t, os.Mkdir(s.dir+"/closed", 0o700))
	cfg.StateDir = s.dir + "/closed/state"
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "can't reach below") {
		t.Errorf("got %v", err)
	}
	cfg = s.config("hold")
	cfg.UIDs = UIDRange{}
	if _, err := Run(t.Context(), cfg); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("root without a range of uids: %v", err)
	}
}

// TestNotInstalled: a program of ours that is not there is named, with what to
// do, whatever else is wrong with the path, and nothing is made for the run.
func TestNotInstalled(t *testing.T) {
	s := newStage(t)
	must(t, os.Mkdir(s.dir+"/folder", 0o755))
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
		is     error
	}{
		"no sealed-init":          {func(c *Config) { c.Init = s.dir + "/libexec/sealed-init" }, "sealed-init is missing: " + s.dir + "/libexec/sealed-init; build it with ", sealed.ErrNotFound},
		"no sealed command":       {func(c *Config) { c.Command = s.dir + "/sealed" }, "sealed is missing: ", sealed.ErrNotFound},
		"sealed-init is a folder": {func(c *Config) { c.Init = s.dir + "/folder" }, "is not a regular file", sealed.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := s.config("hold")
			cfg.StateDir = s.dir + "/absent-state"
			tc.change(&cfg)
			res, err := Run(t.Context(), cfg)
			if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "reach below") || res.Dir != "" {
				t.Errorf("%+v, %v", res, err)
			}
			if _, err := os.Stat(cfg.StateDir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something was made: %v", err)
			}
		})
	}
}

func TestUIDsAreExclusive(t *testing.T) {
	dir, r := t.TempDir(), UIDRange{797000, 797003}
	seen := map[int]bool{}
	var leases []*uidLease
	for range 4 {
		l, err := r.acquire(dir)
		must(t, err)
		if seen[l.uid] || l.uid < r.Min || l.uid > r.Max {
			t.Errorf("uid %d twice or outside", l.uid)
		}
		seen[l.uid] = true
		leases = append(leases, l)
	}
	if _, err := r.acquire(dir); !errors.Is(err, errNoUID) {
		t.Errorf("got %v", err)
	}
	must(t, leases[1].lock.Close())
	l, err := r.acquire(dir)
	must(t, err)
	if l.uid != leases[1].uid {
		t.Errorf("got uid %d, free is %d", l.uid, leases[1].uid)
	}
	if used, err := uidInUse("/proc", os.Getuid()); err != nil || !used {
		t.Errorf("our own uid is in use: %v, %v", used, err)
	}
	for _, bad := range []UIDRange{{}, {0, 5}, {2000, 1999}, {1 << 31, 1 << 31}} {
		if _, err := bad.acquire(dir); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// processesOf returns the live processes with a real uid.
func processesOf(t *testing.T, uid int) []int {
	t.Helper()
	var out []int
	dirs, err := filepath.Glob("/proc/[0-9]*/status")
	must(t, err)
	for _, p := range dirs {
		b, err := os.ReadFile(p)
		if err != nil || strings.Contains(string(b), "State:\tZ") || !strings.Contains(string(b), "Uid:\t"+strconv.Itoa(uid)+"\t") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		must(t, err)
		out = append(out, pid)
	}
	return out
}

// beOwner is the process that TestOwnerKilled kills.
func beOwner(dir string) {
	s := &stage{dir: dir, workspace: dir + "/workspace"}
	cfg := s.config("hold")
	uid, _ := strconv.Atoi(os.Getenv(uidEnv))
	cfg.UIDs, cfg.Stdout, cfg.Driver = UIDRange{uid, uid}, os.Stdout, local.Driver{Bwrap: os.Getenv(bwrapEnv)}
	_, err := Run(context.Background(), cfg)
	fmt.Println("ended:", err)
	os.Exit(1)
}

// killOwner starts an owner, kills it with SIGKILL once its sandbox runs
// daemons, and returns which processes of the sandbox live a second later.
func killOwner(t *testing.T, s *stage, bwrap string, uid int) []int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{ownerEnv + "=" + s.dir, bwrapEnv + "=" + bwrap, uidEnv + "=" + strconv.Itoa(uid), "PATH=/usr/bin:/bin"}
	out := newOutput()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second // a survivor holds the pipe
	must(t, cmd.Start())
	out.await(t, "holding")
	if n := len(processesOf(t, uid)); n < 3 {
		t.Fatalf("want monitor, init and daemons, got %d", n)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	var left []int
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left = processesOf(t, uid); len(left) == 0 {
			return nil
		}
	}
	return left
}

func TestOwnerKilled(t *testing.T) {
	s := newStage(t)
	require.Root(t, "survivors are found by their uid, which needs one of its own")
	if left := killOwner(t, s, "/usr/bin/bwrap", 798100); len(left) > 0 {
		t.Errorf("survivors: %v", left)
	}
	t.Run("control: not tied to the owner", func(t *testing.T) {
		s := newStage(t)
		script := "#!/bin/bash\nargs=(); for a in \"$@\"; do [ \"$a\" = --die-with-parent ] || args+=(\"$a\"); done\nexec /usr/bin/bwrap \"${args[@]}\"\n"
		must(t, os.WriteFile(s.dir+"/bwrap", []byte(script), 0o755))
		left := killOwner(t, s, s.dir+"/bwrap", 798101)
		if len(left) == 0 {
			t.Error("without the tie the sandbox should have survived")
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
}

// TestAsOperator runs the tests again as an ordinary user, same_uid.
func TestAsOperator(t *testing.T) {
	if os.Getenv(operatorEnv) != "" {
		return
	}
	s := newStage(t)
	data, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	tmp := s.dir + "/tmp"
	must(t, errors.Join(os.WriteFile(s.dir+"/self", data, 0o755), os.Mkdir(tmp, 0o755), os.Chown(tmp, operatorUID, operatorUID)))
	cmd := exec.Command(s.dir+"/self", "-test.v", "-test.timeout=2m", "-test.run=^Test(Finished|Died|Killed|StopInTime|Interactive|NotStarted)$")
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TMPDIR=" + tmp, operatorEnv + "=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: operatorUID, Gid: operatorUID, Groups: []uint32{}}}
	out, err := cmd.CombinedOutput()
	for _, name := range []string{"Finished", "Died", "Killed", "StopInTime", "Interactive", "NotStarted"} {
		if !strings.Contains(string(out), "--- PASS: Test"+name) {
			t.Errorf("%s failed as an ordinary user", name)
		}
	}
	if err != nil || t.Failed() {
		t.Errorf("%v\n%s", err, out)
	}
}
