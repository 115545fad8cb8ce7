package local_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sandbox/local"
	"sealed.dev/sealed/internal/sandbox/sandboxtest"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness/require"
)

// The second half of the tests runs as an ordinary user, in this binary
// started anew.
const (
	operatorEnv = "SEALED_TEST_OPERATOR_PROBE"
	operatorUID = 61001
	runUID      = 799001
)

func TestMain(m *testing.M) {
	sandboxtest.Peep()
	os.Exit(m.Run())
}

func needBwrap(t *testing.T) {
	t.Helper()
	require.Bubblewrap(t)
}

func needRoot(t *testing.T) {
	t.Helper()
	require.Root(t, "for a uid of its own")
}

func TestConformanceOwnUID(t *testing.T) {
	needBwrap(t)
	needRoot(t)
	probe := sandboxtest.BuildProbe(t, sandboxtest.OpenDir(t))
	sandboxtest.Run(t, sandboxtest.Bench{Driver: local.Driver{}, Probe: probe, UID: runUID, Isolation: sealed.IsolationOwnUID})
}

// TestConformanceSameUID is the half that an operator without root gets.
func TestConformanceSameUID(t *testing.T) {
	needBwrap(t)
	if probe := os.Getenv(operatorEnv); probe != "" {
		sandboxtest.Run(t, operatorBench(probe))
		return
	}
	needRoot(t)
	asOperator(t, "TestConformanceSameUID", sandboxtest.BuildProbe(t, sandboxtest.OpenDir(t)))
}

// TestReadableInitSameUID is the negative control of R01: an init that the
// operator owns is open to all of the operator's processes.
func TestReadableInitSameUID(t *testing.T) {
	needBwrap(t)
	if probe := os.Getenv(operatorEnv); probe != "" {
		worked := sandboxtest.LookInto(t, operatorBench(probe))
		for _, want := range sandboxtest.WaysIn {
			if !slices.Contains(worked, want) {
				t.Errorf("with a readable init %s should work, got %q", want, worked)
			}
		}
		return
	}
	needRoot(t)
	probe := sandboxtest.BuildProbe(t, sandboxtest.OpenDir(t))
	if err := errors.Join(os.Chmod(probe, 0o755), os.Chown(probe, operatorUID, operatorUID)); err != nil {
		t.Fatal(err)
	}
	asOperator(t, "TestReadableInitSameUID", probe)
}

func operatorBench(probe string) sandboxtest.Bench {
	return sandboxtest.Bench{Driver: local.Driver{}, Probe: probe, UID: os.Getuid(), Isolation: sealed.IsolationSameUID}
}

// asOperator runs one test of this binary again as an ordinary user.
func asOperator(t *testing.T, test, probe string) {
	t.Helper()
	dir := sandboxtest.OpenDir(t)
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(dir, "self")
	tmp := filepath.Join(dir, "tmp")
	if err := errors.Join(os.WriteFile(self, data, 0o755), os.Mkdir(tmp, 0o755), os.Chown(tmp, operatorUID, operatorUID)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.v", "-test.timeout=2m", "-test.run=^"+test+"$")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TMPDIR=" + tmp, operatorEnv + "=" + probe}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: operatorUID, Gid: operatorUID, Groups: []uint32{}}}
	out, err := cmd.CombinedOutput()
	t.Log(string(out))
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Errorf("the operator's half failed: %v", err)
	}
}

func TestNoBubblewrap(t *testing.T) {
	b := sandboxtest.Bench{Driver: local.Driver{Bwrap: "/absent/bwrap"}, Probe: "/absent/probe", UID: 799001, Isolation: sealed.IsolationOwnUID}
	if os.Getuid() != 0 {
		b.UID, b.Isolation = os.Getuid(), sealed.IsolationSameUID
	}
	if _, err := b.TryStart(t, "report"); !errors.Is(err, sandbox.ErrNoBubblewrap) || !strings.Contains(err.Error(), "install bubblewrap") {
		t.Errorf("got %v", err)
	}
}

// TestNoUserNamespaces: a bwrap that can't make them is told apart. The
// stand-in says what the real one says on such a host.
func TestNoUserNamespaces(t *testing.T) {
	needRoot(t)
	fake := filepath.Join(sandboxtest.OpenDir(t), "bwrap")
	script := "#!/bin/sh\necho 'bwrap: No permissions to create new namespace, likely because the kernel does not allow non-privileged user namespaces.' >&2\nexit 1\n"
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	b := sandboxtest.Bench{Driver: local.Driver{Bwrap: fake}, Probe: "/usr/bin/true", UID: runUID, Isolation: sealed.IsolationOwnUID}
	if _, err := b.TryStart(t, "report"); !errors.Is(err, sandbox.ErrUserNS) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkStart(b *testing.B) {
	require.Root(b, "for a uid of its own")
	probe := sandboxtest.BuildProbe(b, sandboxtest.OpenDir(b))
	bench := sandboxtest.Bench{Driver: local.Driver{}, Probe: probe, UID: runUID, Isolation: sealed.IsolationOwnUID}
	for b.Loop() {
		box := bench.Start(b, "shell", "exit 0")
		if code, err := box.Wait(); code != 0 || err != nil {
			b.Fatal(strconv.Itoa(code), err)
		}
	}
}
