package spireattestor_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	spireattestor "sealed.dev/sealed/spire-attestor"
	"sealed.dev/sealed/spire-attestor/registry"
	"sealed.dev/sealed/test/harness/require"
)

// userDirEnv tells the child process of TestUserInit where it works.
const userDirEnv = "SEALED_ATTESTOR_TEST_USER_DIR"

// TestUserInit runs TestUserInitAsUser as an unprivileged user.
func TestUserInit(t *testing.T) {
	needBwrap(t)
	dir := rootDir(t)
	built, err := buildInit()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	install(t, built, filepath.Join(dir, "init"), 0o711)
	install(t, self, filepath.Join(dir, "test"), 0o755)
	writeTrust(t, filepath.Join(dir, "trust.json"))
	for _, name := range []string{"", "init", "trust.json"} {
		if err := os.Chown(filepath.Join(dir, name), otherUID, otherUID); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(filepath.Join(dir, "test"), "-test.run=^TestUserInitAsUser$", "-test.v", "-test.timeout=60s")
	cmd.Dir = dir
	cmd.Env = []string{userDirEnv + "=" + dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherUID, Gid: otherUID}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestUserInitAsUser") {
		t.Errorf("as user: %v\n%s", err, out)
	}
}

func TestUserInitAsUser(t *testing.T) {
	dir := os.Getenv(userDirEnv)
	if dir == "" || os.Geteuid() == 0 {
		t.Skip("runs as a child of TestUserInit")
	}
	w := &world{t: t, dir: dir, clock: &clock{now: time.Now()}, log: &lines{}}
	_, w.digest = install(t, filepath.Join(dir, "init"), filepath.Join(dir, "copy"), 0o600)
	w.init, w.trust = filepath.Join(dir, "init"), filepath.Join(dir, "trust.json")
	w.registry, w.workload = filepath.Join(dir, "registry.sock"), filepath.Join(dir, "workload.sock")
	w.cfg = spireattestor.Config{
		TrustFile: w.trust, InitSHA256: []string{w.digest}, AllowUserInit: true,
		Launchers: map[uint32]spireattestor.Launcher{otherUID: {Tenant: "acme", Agents: []sealed.Name{"test"}}},
		Clock:     w.clock.Now, Log: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	var err error
	if w.attestor, err = spireattestor.New(w.cfg); err != nil {
		t.Fatal(err)
	}
	l, err := spireattestor.ListenRegistry(w.registry)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, func(ctx context.Context) error { return w.attestor.Serve(ctx, l) })
	w.entry = []string{"tenant:acme", "agent:test", "init_sha256:" + w.digest, "isolation:same_uid", "init_owner:user"}
	w.serveAuthority(w.attestor, w.workload)

	sb := w.start(sandboxSpec{uid: otherUID})
	if r := w.register(sb); r.Isolation != "same_uid" {
		t.Errorf("isolation = %q, want same_uid", r.Isolation)
	}
	if got := sb.say("fetch"); got != fetched {
		t.Errorf("fetch = %q, want %q\n%s", got, fetched, w.log)
	}
	if got := sb.say("spawn"); got != "ok" {
		t.Fatalf("spawn = %q", got)
	}
	wantDenied(t, w, sb.say("fetch"), spireattestor.ReasonNotAlone)

	t.Run("refused without the option", func(t *testing.T) {
		cfg := w.cfg
		cfg.AllowUserInit = false
		if err := w.attestor.Reconfigure(cfg); err != nil {
			t.Fatal(err)
		}
		w.attestor.SetSettle(200 * time.Millisecond)
		_, err := registry.Register(t.Context(), w.registry, registry.Descriptor{Agent: "test", PID: w.start(sandboxSpec{uid: otherUID}).pid})
		if !errors.Is(err, sealed.ErrDenied) || !strings.Contains(err.Error(), string(spireattestor.ReasonExe)) {
			t.Errorf("Register = %v, want denied with %s", err, spireattestor.ReasonExe)
		}
	})
}

func TestUserInitRefusedForRoot(t *testing.T) {
	require.Root(t, "the refusal is root's")
	_, err := spireattestor.ParseConfig(goodConfig + "allow_user_init = true\n")
	var field *sealed.FieldError
	if !errors.As(err, &field) || field.Field != "allow_user_init" {
		t.Errorf("ParseConfig = %v, want a refusal of allow_user_init", err)
	}
}
