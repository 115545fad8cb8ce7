package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/test/harness/require"
)

// userTests are run again: a plain run, both deliveries, the end by each kind
// of kill, the terminal, the workspace.
const userTests = "^Test(StackBelongsToUser|NoWorkspace|ProxyDelivery|EnvDelivery|Revocation|CtlKilled|InitKilled|Terminal|Workspace)$"

// asUser has no sandboxes but those of TestAsUser: an authority without root
// can't look into another sandbox of its user, and refuses while there is one.
const asUser = harness.Unprivileged + 1

// TestAsUser runs a part of these tests again where everything belongs to a
// user without privileges: Vault, the authority, sealed-init, the trust file,
// the sandboxes. Without root, that is what all of them do anyway.
func TestAsUser(t *testing.T) {
	require.Root(t, "it starts tests under another uid; the others are the same without root")
	t.Parallel()
	s := harness.Get(t)
	programs := s.Programs(t)
	base := s.Dir(t, asUser)
	bin := s.Dir(t, 0)
	harness.Link(t, vaultOf(t, s), filepath.Join(bin, "vault"))
	harness.Link(t, "/proc/self/exe", filepath.Join(bin, "e2e.test"))
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "e2e.test"), "-test.v", "-test.timeout=5m", "-test.parallel=1", "-test.run="+userTests)
	cmd.Dir = base
	cmd.Env = []string{
		"SEALED_PROGRAMS=" + programs, // this user reads neither the repository nor Go's caches
		"SEALED_REQUIRE=bwrap,vault,userns", "HOME=" + base, "TMPDIR=" + base, "PATH=" + bin + ":/usr/local/bin:/usr/bin:/bin",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: asUser, Gid: asUser, Groups: []uint32{}}}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "--- SKIP") {
		t.Fatalf("as uid %d: %v\n%s", asUser, err, out)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(userTests, "^Test("), ")$"), "|") {
		if !strings.Contains(string(out), "\n--- PASS: Test"+name+" ") {
			t.Errorf("%s did not run as uid %d\n%s", name, asUser, out)
		}
	}
	if strings.Contains(string(out), "/root (") {
		t.Errorf("something ran as root:\n%s", out)
	}
}

// vaultOf is the Vault server of a stack.
func vaultOf(t *testing.T, s *harness.Stack) string {
	t.Helper()
	for _, v := range s.Status.Servers {
		if v.Name == "vault" {
			return v.Path
		}
	}
	t.Fatalf("no Vault among %v", s.Status.Servers)
	return ""
}

// TestStackBelongsToUser is the control of TestAsUser, and means something
// under it: what the stack is made of belongs to whoever runs the tests.
func TestStackBelongsToUser(t *testing.T) {
	s := harness.Get(t)
	for _, path := range []string{s.Status.TrustFile, s.Status.InitPath, s.Status.AuditFile, s.Status.Dir} {
		st, err := os.Stat(path)
		harness.Must(t, err)
		if uid := st.Sys().(*syscall.Stat_t).Uid; int(uid) != os.Geteuid() {
			t.Errorf("%s belongs to uid %d", path, uid)
		}
	}
	for _, p := range s.Status.Processes {
		st, err := os.Stat("/proc/" + strconv.Itoa(p.PID))
		harness.Must(t, err)
		if uid := st.Sys().(*syscall.Stat_t).Uid; int(uid) != os.Geteuid() {
			t.Errorf("%s runs as uid %d", p.Name, uid)
		}
	}
	if os.Geteuid() != 0 && s.Status.Identity != devstack.IdentityEmbedded {
		t.Errorf("identity %s", s.Status.Identity)
	}
}
