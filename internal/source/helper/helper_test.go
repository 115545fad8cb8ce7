package helper

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

const canary = "canary-login-e2f4"

// TestMain is the helper when it is started as one, and an engine that never
// ends when TestHelperDiesWithEngine starts it so.
func TestMain(m *testing.M) {
	if os.Getenv(handshake().MagicCookieKey) == handshake().MagicCookieValue {
		Serve(func(cfg sealed.SourceConfig, root string, credential *secret.Value) (Source, error) {
			if cfg.Name == "refuses" {
				return nil, &sealed.FieldError{Field: "credential", Reason: "wants another one"}
			}
			return fake{root: root, credential: credential}, nil
		})
		return
	}
	if os.Getenv("SEALED_TEST_ENGINE") != "" {
		engine()
		return
	}
	os.Exit(m.Run())
}

// fake does what the reference says.
type fake struct {
	source.Static
	root       string
	credential *secret.Value
}

func (fake) Check(context.Context) error { return nil }

func (f fake) Mint(ctx context.Context, ref sealed.KeyRef, _ string) (source.Minted, error) {
	value := ""
	switch ref.Path {
	case "login":
		_ = f.credential.Reveal(func(b []byte) error { value = string(b) + " in " + f.root; return nil })
	case "environment":
		value = strings.Join(os.Environ(), "\x00")
	case "pid":
		value = strconv.Itoa(os.Getpid())
	case "big":
		value = strings.Repeat("x", maxMessage)
	case "crash":
		os.Exit(3)
	case "panic":
		panic(canary)
	case "hang":
		select {}
	case "slow":
		<-ctx.Done()
		return source.Minted{}, fmt.Errorf("calling the source: timed out: %w", sealed.ErrUnavailable)
	case "bad":
		return source.Minted{}, &sealed.FieldError{Field: "ref.path", Reason: "wants another one"}
	case "none":
		return source.Minted{}, fmt.Errorf("reading: %w: %w", sealed.ErrNotFound, sealed.ErrUnavailable)
	case "foreign":
		return source.Minted{}, errors.New(canary)
	}
	return source.Minted{Value: secret.New([]byte(value)), Version: sealed.SourceVersion(ref.Field)}, nil
}

func (fake) Newest(_ context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error) {
	if ref.Path == "none" {
		return "", fmt.Errorf("reading: %w: %w", sealed.ErrNotFound, sealed.ErrUnavailable)
	}
	return sealed.SourceVersion(ref.Field), nil
}

// self is the test's own program and its hash.
func self(t testing.TB) (program string, pin sealed.SourceHelper) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return program, sealed.SourceHelper{SHA256: hex.EncodeToString(h.Sum(nil)), Root: "/root-of-it"}
}

func open(t *testing.T, name sealed.Name) *Helped {
	t.Helper()
	program, pin := self(t)
	h, err := Open(sealed.SourceConfig{Name: name, Type: sealed.SourceSOPS}, pin, program, secret.New([]byte(canary)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func take(t *testing.T, h *Helped, path string) (got string, err error) {
	t.Helper()
	m, err := h.Mint(t.Context(), sealed.KeyRef{Path: path}, "")
	_ = m.Value.Reveal(func(b []byte) error { got = string(b); return nil })
	return got, err
}

// gone waits for a process to end.
func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d is alive", pid)
		}
	}
}

func pidOf(t *testing.T, h *Helped) int {
	t.Helper()
	text, err := take(t, h, "pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestCalls(t *testing.T) {
	t.Setenv("SEALED_TEST_CANARY", canary)
	h := open(t, "x")
	if err := h.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := take(t, h, "login"); got != canary+" in /root-of-it" {
		t.Errorf("%q, %v", got, err)
	}
	env, err := take(t, h, "environment")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(env, "\x00") {
		name, _, found := strings.Cut(line, "=")
		if found && !slices.Contains([]string{"GOTRACEBACK", handshake().MagicCookieKey}, name) && !strings.HasPrefix(name, "PLUGIN_") {
			t.Errorf("the helper's environment has %s", name)
		}
	}
	if strings.Contains(env, canary) {
		t.Error("the helper's environment holds the canary")
	}
	for path, want := range map[string]error{"big": sealed.ErrUnavailable, "": sealed.ErrUnavailable, "bad": sealed.ErrInvalid, "none": sealed.ErrNotFound, "foreign": sealed.ErrUnavailable} {
		if got, err := take(t, h, path); !errors.Is(err, want) || got != "" || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
	}
	for ref, want := range map[sealed.KeyRef]struct {
		version sealed.SourceVersion
		err     error
	}{
		{Path: "pid", Field: "v-7"}: {"v-7", nil}, {Path: "pid"}: {"", nil},
		{Path: "none"}: {"", sealed.ErrNotFound}, {Path: "pid", Field: "a b"}: {"", sealed.ErrUnavailable},
	} {
		if got, err := h.Newest(t.Context(), ref); got != want.version || !errors.Is(err, want.err) {
			t.Errorf("newest of %+v: %q, %v", ref, got, err)
		}
		m, err := h.Mint(t.Context(), ref, "")
		if m.Version != want.version || !errors.Is(err, want.err) || (err != nil) != (m.Value == nil) {
			t.Errorf("%+v: version %q, %v", ref, m.Version, err)
		}
	}
	if h.Revocable() || h.Revoke(t.Context(), "") != nil {
		t.Error("a static source was revoked")
	}
	if _, err := h.Renew(t.Context(), ""); !errors.Is(err, sealed.ErrUnavailable) {
		t.Error(err)
	}
	pid := pidOf(t, h)
	for _, file := range []string{"environ", "cmdline"} {
		if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file)); err == nil && bytes.Contains(raw, []byte(canary)) {
			t.Errorf("/proc shows the login in %s", file)
		}
	}
	h.Close()
	gone(t, pid)
	if other := pidOf(t, h); other == pid {
		t.Error("the source can't be used again")
	}
}

// TestPin: only the program that the configuration names runs.
func TestPin(t *testing.T) {
	program, pin := self(t)
	changed := filepath.Join(t.TempDir(), "program")
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(changed, append(raw, 0), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		program string
		ok      bool
	}{"pinned (negative control)": {program, true}, "one byte more": {changed, false}, "missing": {changed + "x", false}, "no program": {"/etc/hostname", false}} {
		h, err := Open(sealed.SourceConfig{Name: "x", Type: sealed.SourceSOPS}, pin, tt.program, secret.New([]byte(canary)))
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Check(t.Context()); tt.ok != (err == nil) || (err != nil && !errors.Is(err, sealed.ErrUnavailable)) {
			t.Errorf("%s: %v", name, err)
		}
		h.Close()
	}
	for _, sum := range []string{"", "00", strings.Repeat("z", 64)} {
		if _, err := Open(sealed.SourceConfig{Name: "x"}, sealed.SourceHelper{SHA256: sum}, program, secret.New(nil)); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("pin %q: %v", sum, err)
		}
	}
}

// TestPinnedBytesRun: what is written to the path after the check does not
// run, because the descriptor that was hashed is executed.
func TestPinnedBytesRun(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("no /proc")
	}
	program, _ := self(t)
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, raw, 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexit 9\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := command(path, file, t.TempDir())
	cmd.Env = nil // no handshake: the program explains itself
	cmd.Args = append(cmd.Args, "-test.list", "TestPinnedBytesRun")
	if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "TestPinnedBytesRun") {
		t.Errorf("another program ran: %v %s", err, out)
	}
	if err := exec.Command(path).Run(); err == nil {
		t.Error("negative control: the path names the pinned program")
	}
}

func TestRefusedLogin(t *testing.T) {
	h := open(t, "refuses")
	if err := h.Check(t.Context()); !errors.Is(err, sealed.ErrInvalid) || strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
}

func TestCrash(t *testing.T) {
	for _, path := range []string{"crash", "panic"} {
		h := open(t, "x")
		at := time.Unix(1_800_000_000, 0)
		h.now = func() time.Time { return at }
		for i, step := range []struct {
			after time.Duration
			path  string
			ok    bool
		}{
			{0, "pid", true}, {0, path, false}, {time.Second, "pid", true}, // started again
			{time.Second, path, false}, {time.Second, "pid", false}, {time.Minute, "pid", true},
		} {
			at = at.Add(step.after)
			before := h.current
			if _, err := take(t, h, step.path); (err == nil) != step.ok || (err != nil && (!errors.Is(err, sealed.ErrUnavailable) || strings.Contains(err.Error(), "canary"))) {
				t.Errorf("%s, step %d: %v", path, i, err)
			}
			if step.path == path {
				for end := time.Now().Add(5 * time.Second); !before.exited() && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				}
			}
		}
	}
}

func TestHangAndIdle(t *testing.T) {
	h := open(t, "x")
	first := pidOf(t, h)
	begun := time.Now()
	if _, err := take(t, h, "slow"); !errors.Is(err, sealed.ErrUnavailable) || !strings.Contains(err.Error(), "timed out") {
		t.Error(err)
	}
	if pidOf(t, h) != first {
		t.Error("a slow upstream cost the process")
	}
	if _, err := take(t, h, "hang"); !errors.Is(err, sealed.ErrUnavailable) || time.Since(begun) > 4*source.Timeout {
		t.Error(err, time.Since(begun))
	}
	gone(t, first)
	h.idle = 10 * time.Millisecond
	second := pidOf(t, h)
	gone(t, second)
}

// engine opens a helper, tells its pid, and waits to be killed.
func engine() {
	h, err := Open(sealed.SourceConfig{Name: "x", Type: sealed.SourceSOPS}, sealed.SourceHelper{SHA256: os.Getenv("SEALED_TEST_PIN")}, os.Getenv("SEALED_TEST_ENGINE"), secret.New([]byte(canary)))
	if err != nil {
		os.Exit(1)
	}
	m, err := h.Mint(context.Background(), sealed.KeyRef{Path: "pid"}, "")
	if err != nil {
		os.Exit(1)
	}
	_ = m.Value.Reveal(func(b []byte) error { fmt.Println(string(b)); return nil })
	select {}
}

func TestHelperDiesWithEngine(t *testing.T) {
	program, pin := self(t)
	cmd := exec.Command(program)
	cmd.Env = []string{"SEALED_TEST_ENGINE=" + program, "SEALED_TEST_PIN=" + pin.SHA256, "TMPDIR=" + t.TempDir()}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 32)
	n, _ := out.Read(line)
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil || syscall.Kill(pid, 0) != nil {
		t.Fatalf("no helper: %q, %v", line[:n], err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	gone(t, pid)
}
