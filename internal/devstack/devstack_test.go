package devstack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness/require"
)

// TestMain lets the test binary be the authority's process, as sealedctl is
// in the product.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "authority" && os.Args[2] == "--config" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := RunAuthority(ctx, os.Args[3]); err != nil {
			slog.Error("authority ended", "error", err)
			os.Exit(1)
		}
		return
	}
	status := m.Run()
	_ = os.RemoveAll(ready.dir)
	os.Exit(status)
}

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]string{
		"Vault v1.21.0 (818ca8b1), built 2025-10-21T19:21:22Z": "v1.21.0",
		"Vault v1.21.0, built 2025-11-23T09:56:04Z (cgo)":      "v1.21.0",
		"Vault v2.0.1+ent (x), built x":                        "v2.0.1",
		"Vault v1.21.0-rc1 (x)":                                "v1.21.0-rc1",
		"1.11.0-dev-unk\n":                                     "v1.11.0",
		"1.11.0-dev-818ca8b":                                   "v1.11.0",
		"1.12.3":                                               "v1.12.3",
		"vault: command not found":                             "",
		"Vault v1.21":                                          "",
		"":                                                     "",
	} {
		got, err := parseVersion(out)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("parseVersion(%q) = %q, %v; want %q", out, got, err, want)
		}
		if err != nil && !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("parseVersion(%q): %v is not ErrInvalid", out, err)
		}
	}
}

// A newer or equal server on PATH is used; an older one, or one that does not
// tell, is passed over.
func TestFindOnPath(t *testing.T) {
	for printed, taken := range map[string]bool{
		"Vault v1.21.0": true, "Vault v1.30.2": true, "Vault v1.20.9": false, "Vault v1.21.0-rc1": false, "nonsense": false,
	} {
		t.Run(printed, func(t *testing.T) {
			dir := t.TempDir()
			script := "#!/bin/sh\necho '" + printed + "'\n"
			if err := os.WriteFile(filepath.Join(dir, "vault"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir)
			v, err := Servers(IdentityEmbedded)[0].find(t.Context(), Config{Module: t.TempDir(), CacheDir: t.TempDir()})
			if taken != (err == nil) || taken && v.Path != filepath.Join(dir, "vault") {
				t.Errorf("find: %v, %v; want taken %t", v, err, taken)
			}
		})
	}
}

func TestCacheName(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "test", "stack", "vault")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	vault := Servers(IdentityEmbedded)[0]
	if _, err := vault.CacheName(root); err == nil {
		t.Error("a name without go.mod")
	}
	write("go.mod", "module x\n\nrequire github.com/hashicorp/vault v1.21.0\n")
	write("go.sum", "a")
	first, err := vault.CacheName(root)
	if err != nil || !strings.HasPrefix(first, "vault-1.21.0-") || len(first) != len("vault-1.21.0-")+12 {
		t.Fatalf("name %q, %v", first, err)
	}
	write("go.sum", "b")
	if second, err := vault.CacheName(root); err != nil || second == first {
		t.Errorf("another go.sum gives the same name: %q, %v", second, err)
	}
	write("go.mod", "module x\n")
	if _, err := vault.CacheName(root); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("without the requirement: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"relative dir":     {Dir: "state"},
		"unclean dir":      {Dir: "/tmp/../x"},
		"dir with quote":   {Dir: `/tmp/a"b`},
		"dir with dollar":  {Dir: "/tmp/${x}"},
		"unknown identity": {Dir: "/tmp/x", Identity: "none"},
		"bad tenant":       {Dir: "/tmp/x", Tenant: "A/B"},
		"launcher twice":   {Dir: "/tmp/x", Launchers: []int{1000, 1000}},
		"launcher of runs": {Dir: "/tmp/x", Launchers: []int{runUIDMin}},
	} {
		if _, err := c.withDefaults(); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	got, err := Config{Dir: "/tmp/x"}.withDefaults()
	if err != nil || got.Identity != IdentityEmbedded || got.Tenant != "acme" || len(got.Self) != 3 {
		t.Errorf("defaults: %+v, %v", got, err)
	}
}

func TestStateFile(t *testing.T) {
	l := layout{t.TempDir()}
	if s, err := readState(l); s != nil || err != nil {
		t.Fatalf("no file: %v, %v", s, err)
	}
	if _, err := Load(l.dir); !errors.Is(err, sealed.ErrNotFound) {
		t.Errorf("Load without a file: %v", err)
	}
	want := state{V: 1, BootID: "b", Identity: "embedded", Tenant: "acme", VaultAddr: "https://127.0.0.1:1"}
	want.setProcess(process{Name: "vault", PID: 2, Start: 3})
	want.setProcess(process{Name: "authority", PID: 4, Start: 5})
	want.setProcess(process{Name: "vault", PID: 6, Start: 7})
	if err := writeState(l, &want); err != nil {
		t.Fatal(err)
	}
	got, err := readState(l)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Error(diff)
	}
	if p, ok := got.process("vault"); !ok || p.PID != 6 || len(got.Processes) != 2 {
		t.Errorf("processes: %v", got.Processes)
	}
	for name, text := range map[string]string{
		"unknown field": `{"v":1,"extra":1}`, "other version": `{"v":2}`, "not JSON": `v: 1`, "trailing data": `{"v":1}{}`,
	} {
		if err := os.WriteFile(l.state(), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readState(l); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The directories have their modes whatever the umask, and someone else's
// directory is refused.
func TestLayout(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	l := layout{filepath.Join(t.TempDir(), "s")}
	if err := l.make(); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{
		l.dir: 0o711, l.at("bin"): 0o711, l.at("run", "spiffe"): 0o755, l.at("run", "registry"): 0o755, l.private(): 0o700,
	} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, want %v", path, st.Mode(), mode)
		}
	}
	if err := os.Remove(l.at("bin")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin", l.at("bin")); err != nil {
		t.Fatal(err)
	}
	if err := l.make(); err == nil {
		t.Error("a link in place of bin was accepted")
	}
	if err := (layout{"/tmp/" + strings.Repeat("x", 100)}).make(); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("a path too long for a socket: %v", err)
	}
}

// The CA speaks for loopback addresses only.
func TestCAIsLimited(t *testing.T) {
	l := layout{filepath.Join(t.TempDir(), "s")}
	if err := l.make(); err != nil {
		t.Fatal(err)
	}
	ca, err := openCA(l, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.issue(l, "x", time.Now()); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(l.private("x-cert.pem"), l.private("x-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "127.0.0.1"}); err != nil {
		t.Errorf("loopback: %v", err)
	}
	// The same CA, misused for a name of the Internet.
	leaf, err := certTemplate("x", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf.DNSNames = []string{"api.github.com"}
	der, err := x509.CreateCertificate(nil, leaf, ca.cert, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: "api.github.com"}); err == nil {
		t.Error("the CA speaks for api.github.com")
	}
	again, err := openCA(l, time.Now())
	if err != nil || !again.cert.Equal(ca.cert) {
		t.Errorf("opened again: %v", err)
	}
}

func sleeper(t *testing.T, script string) *started {
	t.Helper()
	p, err := start(command{name: "sleeper", argv: []string{"/bin/sh", "-c", script}, log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.stop(context.Background(), true) })
	return p
}

func TestStop(t *testing.T) {
	t.Run("the leader and its children", func(t *testing.T) {
		p := sleeper(t, "trap '' TERM; sleep 1000 & wait")
		err := poll(t.Context(), time.Second, func(context.Context) error {
			if m, err := p.session(); err != nil || len(m) != 2 {
				closeAll(m)
				return fmt.Errorf("%d members, %v", len(m), err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.stop(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if m, err := p.session(); err != nil || len(m) != 0 {
			t.Errorf("left: %v, %v", m, err)
		}
	})
	t.Run("a plug-in that outlived its server", func(t *testing.T) {
		p := sleeper(t, "sleep 1000 & exit 0")
		<-p.done
		m, err := p.session()
		if err != nil || len(m) != 1 {
			t.Fatalf("members: %v, %v", m, err)
		}
		closeAll(m)
		if err := p.stop(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if m, err := p.session(); err != nil || len(m) != 0 {
			t.Errorf("left: %v, %v", m, err)
		}
	})
	t.Run("not a process that took the number over", func(t *testing.T) {
		p := sleeper(t, "exec sleep 1000")
		other := p.process
		other.Start--
		if other.alive() {
			t.Error("another start time counts as alive")
		}
		if err := other.stop(t.Context(), true); err != nil || !p.alive() {
			t.Errorf("a stranger was hit: %v, alive %t", err, p.alive())
		}
		// Control: with the right start time the very same call ends it.
		if err := p.stop(t.Context(), true); err != nil || p.alive() {
			t.Errorf("the right one lives: %v", err)
		}
	})
	t.Run("not after a reboot", func(t *testing.T) {
		p := sleeper(t, "exec sleep 1000")
		err := stopAll(t.Context(), &state{BootID: "another", Processes: []process{p.process}}, true)
		if err != nil || !p.alive() {
			t.Errorf("a process of another boot was hit: %v", err)
		}
	})
}

func TestStartEnvironment(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "canary")
	log := filepath.Join(t.TempDir(), "log")
	p, err := start(command{name: "env", argv: []string{"/usr/bin/env"}, log: log})
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	out, err := os.ReadFile(log)
	if err != nil || strings.Contains(string(out), "canary") || !strings.Contains(string(out), "PATH=") {
		t.Errorf("environment: %q, %v", out, err)
	}
	if st, err := os.Stat(log); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("log: %v, %v", st.Mode(), err)
	}
}

// A server that ends during its start is reported with the end of its log.
func TestAwaitReportsEarlyEnd(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := start(command{name: "broken", argv: []string{"/bin/sh", "-c", "echo bad config; exit 1"}, log: log})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	err = p.await(t.Context(), log, time.Minute, func(context.Context) error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "bad config") || time.Since(begun) > 10*time.Second {
		t.Errorf("error after %v: %v", time.Since(begun), err)
	}
}

func TestDieWithParent(t *testing.T) {
	if os.Getenv("DEVSTACK_PARENT") != "" {
		p, err := start(command{name: "child", argv: []string{"/bin/sleep", "1000"}, log: os.DevNull, dieWithParent: true})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("child=%d=\n", p.PID)
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestDieWithParent$")
	cmd.Env = append(os.Environ(), "DEVSTACK_PARENT=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscanf(string(out[strings.Index(string(out), "child="):]), "child=%d=", &pid); err != nil {
		t.Fatal(err)
	}
	err = poll(t.Context(), 2*time.Second, func(context.Context) error {
		if f, err := procStat(pid); err == nil && f[0] != "Z" {
			return errors.New("alive")
		}
		return nil
	})
	if err != nil {
		t.Errorf("the child outlived its parent: %v", err)
	}
}

func TestParallel(t *testing.T) {
	want := errors.New("first")
	err := parallel(t.Context(),
		func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		func(context.Context) error { return want },
	)
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	if err := parallel(t.Context(), func(context.Context) error { return nil }); err != nil {
		t.Errorf("no error: %v", err)
	}
}

// need skips, or fails where the environment demands the real thing.
func need(t *testing.T, what, reason string) {
	t.Helper()
	require.Missing(t, what, reason)
}

// realConfig is the configuration of a stack below a short directory, for
// Unix sockets have short names. It skips when a server would have to be built.
func realConfig(t *testing.T, identity string) Config {
	t.Helper()
	if testing.Short() {
		t.Skip("short")
	}
	dir, err := os.MkdirTemp("", "ds")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // run uids pass through
		t.Fatal(err)
	}
	begun := time.Now()
	cfg := Config{
		Dir: filepath.Join(dir, "s"), Identity: identity, Self: []string{os.Args[0], "authority"}, DieWithParent: true,
		Progress: func(step string, _, _ int64) { t.Logf("%8v %s", time.Since(begun).Round(time.Millisecond), step) },
	}
	if cfg, err = cfg.withDefaults(); err != nil {
		t.Fatal(err)
	}
	if err := cfg.findModule(); err != nil {
		t.Fatal(err)
	}
	for _, s := range Servers(identity) {
		name, err := s.CacheName(cfg.Module)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(cfg.CacheDir, "bin", name)); err != nil {
			if _, err := exec.LookPath(s.Name); err != nil {
				need(t, map[string]string{"vault": "vault"}[s.Name]+map[string]string{"spire-server": "spire", "spire-agent": "spire"}[s.Name], name+" is not built")
			}
		}
	}
	return cfg
}

func TestUpDown(t *testing.T) {
	t.Parallel()
	for _, identity := range []string{IdentityEmbedded, IdentitySPIRE} {
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			if identity == IdentitySPIRE && os.Geteuid() != 0 {
				need(t, "spire", "wants root")
			}
			cfg := realConfig(t, identity)
			cfg.Programs = programs(t, cfg)
			begun := time.Now()
			s, err := Up(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Remove(context.Background()) })
			t.Logf("up after %v", time.Since(begun))
			testRunning(t, s)
			t.Run("files", func(t *testing.T) { testFiles(t, s) })
			t.Run("identity", func(t *testing.T) { testIdentity(t, s, isolationDNS()) })
			t.Run("no identity", func(t *testing.T) { testNoIdentity(t, s) })
			t.Run("users", func(t *testing.T) { testUsers(t, s) })
			t.Run("up again", func(t *testing.T) { testUpAgain(t, cfg, s) })
			t.Run("kill and repair", func(t *testing.T) { testRepair(t, cfg, s) })
			t.Run("down, load, up", func(t *testing.T) { testRestart(t, cfg, s) })
			t.Run("new build of the engine", func(t *testing.T) { testUpgrade(t, cfg, s) })
			if err := s.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(cfg.Dir); !os.IsNotExist(err) {
				t.Errorf("the directory is still there: %v", err)
			}
		})
	}
}

// isolationDNS is what a sandbox that this user starts is graded.
func isolationDNS() string {
	if os.Geteuid() == 0 {
		return "own-uid.isolation.sealed.internal"
	}
	return "same-uid.isolation.sealed.internal"
}

func testRunning(t *testing.T, s *Stack) {
	t.Helper()
	st := s.Status(t.Context())
	if st.State != StateUp {
		t.Errorf("status %+v", st)
	}
	root, err := s.Root()
	if err != nil {
		t.Fatal(err)
	}
	got, err := root.Read(t.Context(), Mount+"/config", nil)
	if err != nil || got["tenant"] != "acme" || got["trust_domain"] != st.TrustDomain {
		t.Errorf("engine config: %v, %v", got, err)
	}
	if policy, err := root.Read(t.Context(), Mount+"/policy", nil); err != nil || policy["sequence"] != "1" {
		t.Errorf("policy: %v, %v", policy, err)
	}
	data, err := os.ReadFile(st.TrustFile)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := sealed.ParseTrustFile(data)
	if err != nil || trust.AnswerKey != got["answer_key"] || trust.LogKey != got["log_key"] {
		t.Errorf("trust file: %v", err)
	}
}

// testFiles checks modes, and that no secret of the private directory is
// anywhere else: in the state file, the status, a log or an argument.
func testFiles(t *testing.T, s *Stack) {
	for path, mode := range map[string]os.FileMode{
		s.l.dir: 0o711, s.l.private(): 0o700, s.l.bin(binInit): 0o711, s.l.bin(binAgent): 0o711,
		s.l.trust(): 0o644, s.l.private("users.json"): 0o600, s.l.private("vault-keys.json"): 0o600,
		s.l.private("ca-key.pem"): 0o600, s.l.private("policy-key.pem"): 0o600,
	} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want %v", path, st, err, mode)
		}
	}
	secrets := []string{}
	for _, file := range []string{"users.json", "vault-keys.json"} {
		data, err := os.ReadFile(s.l.private(file))
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]string
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		for _, v := range m {
			secrets = append(secrets, v)
		}
	}
	sinks := map[string]string{"status": fmt.Sprintf("%+v", s.Status(t.Context())), "stack": fmt.Sprintf("%+v", s)}
	for _, path := range []string{s.l.state(), s.l.trust(), s.l.vaultAudit(), s.l.log("vault")} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sinks[path] = string(data)
	}
	now, err := readState(s.l)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range now.Processes {
		for _, what := range []string{"cmdline", "environ"} {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID, what))
			if err != nil {
				t.Fatal(err)
			}
			sinks[p.Name+" "+what] = string(data)
		}
	}
	if len(secrets) != 7 {
		t.Errorf("%d secrets, want 5 passwords, a share and a token", len(secrets))
	}
	for name, text := range sinks {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("a secret is in %s", name)
			}
		}
	}
	// Control: the same scan finds them where they belong.
	own, err := os.ReadFile(s.l.private("users.json"))
	if err != nil || !slices.ContainsFunc(secrets, func(v string) bool { return strings.Contains(string(own), v) }) {
		t.Errorf("the scan finds nothing: %v", err)
	}
}

func testUsers(t *testing.T, s *Stack) {
	entities := map[string]bool{}
	for _, u := range users() {
		l, err := s.Login(t.Context(), u.name)
		if err != nil {
			t.Fatal(err)
		}
		entities[l.EntityID] = true
		want := u.policies
		if u.group != "" {
			want = []string{groupPolicies()[u.group]}
		}
		c, err := s.Client(t.Context(), u.name)
		if err != nil {
			t.Fatal(err)
		}
		self, err := c.Read(t.Context(), "auth/token/lookup-self", nil)
		if err != nil {
			t.Fatal(err)
		}
		have := fmt.Sprint(self["policies"], self["identity_policies"])
		for _, p := range want {
			if !strings.Contains(have, p) {
				t.Errorf("%s lacks %s: %s", u.name, p, have)
			}
		}
		if _, err := c.Sys(t.Context(), http.MethodGet, "sys/mounts", nil); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("%s reads sys/mounts: %v", u.name, err)
		}
	}
	if len(entities) != len(users()) || entities[""] {
		t.Errorf("entities: %v", entities)
	}
	if _, err := s.Login(t.Context(), "nobody"); !errors.Is(err, sealed.ErrNotFound) {
		t.Errorf("unknown user: %v", err)
	}
}

// Up on a running stack changes nothing.
func testUpAgain(t *testing.T, cfg Config, s *Stack) {
	before, err := readState(s.l)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := Up(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Logf("up again after %v", time.Since(begun))
	after, err := readState(s.l)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the state changed: %s", diff)
	}
	other := cfg
	other.Tenant = "globex"
	if _, err := Up(t.Context(), other); !errors.Is(err, sealed.ErrConflict) {
		t.Errorf("another tenant: %v", err)
	}
}

func testRepair(t *testing.T, cfg Config, s *Stack) {
	now, err := readState(s.l)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range now.Processes {
		if err := s.Kill(t.Context(), p.Name); err != nil {
			t.Fatal(err)
		}
		if st := s.Status(t.Context()); st.State != StateDegraded {
			t.Errorf("without %s the state is %s", p.Name, st.State)
		}
		begun := time.Now()
		if _, err := Up(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s repaired after %v", p.Name, time.Since(begun))
		testRunning(t, s)
	}
	if err := s.Kill(t.Context(), "init"); !errors.Is(err, sealed.ErrNotFound) {
		t.Errorf("killing what is not ours: %v", err)
	}
}

func testRestart(t *testing.T, cfg Config, s *Stack) {
	loaded, err := Load(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := loaded.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(t.Context()); st.State != StateDown {
		t.Errorf("after Down: %+v", st)
	}
	if _, err := Up(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	testRunning(t, s)
	testIdentity(t, s, isolationDNS())
}

// testUpgrade changes the engine's binary under a running and under a stopped
// stack. Vault refuses a binary that is not the registered one, so this fails
// unless Up registers it anew.
func testUpgrade(t *testing.T, cfg Config, s *Stack) {
	for _, running := range []bool{true, false} {
		if !running {
			if err := s.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.OpenFile(filepath.Join(cfg.Programs, binPlugin), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("\n"); err != nil { // after the end of the ELF image
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Up(t.Context(), cfg); err != nil {
			t.Fatalf("running %t: %v", running, err)
		}
		testRunning(t, s)
	}
}
