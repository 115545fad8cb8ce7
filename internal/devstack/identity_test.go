package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/spire-attestor/registry"
	"sealed.dev/sealed/test/harness/require"
)

// runUID is the uid of the sandboxes of these tests.
const runUID = runUIDMin + 1

// sandbox is a bubblewrap sandbox whose process 1 is the stack's init.
type sandbox struct {
	pid    int // of process 1, on the host
	stdin  io.WriteCloser
	stdout io.Reader
	stderr *strings.Builder
	cmd    *exec.Cmd
}

// startSandbox starts one as uid, with the descriptors that init inherits.
func startSandbox(t *testing.T, s *Stack, uid int) *sandbox {
	t.Helper()
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		need(t, "bwrap", "bubblewrap is not installed")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	trust, err := os.Open(s.l.trust())
	if err != nil {
		t.Fatal(err)
	}
	defer trust.Close()
	fd, err := unix.Open(s.l.workloadSocket(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(fd), "socket")
	defer socket.Close()
	info, infoW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer info.Close()
	cmd := exec.Command(bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--as-pid-1",
		"--cap-drop", "ALL", "--die-with-parent", "--new-session", "--clearenv",
		"--proc", "/proc", "--dev", "/dev", "--ro-bind", s.l.bin(binInit), "/init", "--info-fd", "7", "/init")
	box := &sandbox{cmd: cmd, stderr: &strings.Builder{}}
	cmd.Stderr = box.stderr
	cmd.ExtraFiles = []*os.File{null, null, trust, socket, infoW} // 3 to 7
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	if box.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if box.stdout, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	_ = infoW.Close()
	var started struct {
		Child int `json:"child-pid"`
	}
	if err := json.NewDecoder(info).Decode(&started); err != nil {
		t.Fatalf("starting sandbox: %v: %s", err, box.stderr)
	}
	box.pid = started.Child
	return box
}

// ask lets init ask for its identity. SPIRE's agent may need one more
// synchronization to know the entries, so a refusal is an answer, not a failure.
func (b *sandbox) ask() (id string, dns []string, jwt string, err error) {
	if _, err := b.stdin.Write([]byte("\n")); err != nil {
		return "", nil, "", err
	}
	var got struct {
		ID  string   `json:"id"`
		DNS []string `json:"dns"`
		JWT string   `json:"jwt"`
	}
	if err := json.NewDecoder(b.stdout).Decode(&got); err != nil {
		_ = b.cmd.Wait()
		return "", nil, "", fmt.Errorf("%w: %s", err, b.stderr)
	}
	return got.ID, got.DNS, got.JWT, nil
}

// testIdentity takes the way of a run up to its Vault token.
func testIdentity(t *testing.T, s *Stack, wantDNS string) {
	begun := time.Now()
	var jwt string
	err := poll(t.Context(), 5*time.Second, func(ctx context.Context) error {
		box := startSandbox(t, s, runUID)
		r, err := registry.Register(ctx, s.l.registrySocket(), registry.Descriptor{Agent: "demo", PID: box.pid})
		if err != nil {
			return &finalError{err}
		}
		defer r.Close()
		id, dns, token, err := box.ask()
		if err != nil {
			return err
		}
		if want := "spiffe://" + s.s.TrustDomain + "/sealed/tenant/acme/agent/demo"; id != want {
			return &finalError{fmt.Errorf("SPIFFE ID %s, want %s", id, want)}
		}
		if diff := cmp.Diff([]string{wantDNS}, dns); diff != "" {
			return &finalError{errors.New("DNS names: " + diff)}
		}
		jwt = token
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("identity after %v", time.Since(begun))
	c, err := s.client("")
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.Login(t.Context(), "auth/"+AuthMount+"/login", map[string]any{"role": AuthRole, "jwt": jwt})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"sealed-agent"}, l.Policies); diff != "" || l.TTL != 120 || !l.Renewable {
		t.Errorf("login: policies %s, ttl %d, renewable %t", diff, l.TTL, l.Renewable)
	}
	tok, err := vaultclient.New(s.s.VaultAddr, mustRead(t, s.l.ca()), string(l.Token))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.Write(t.Context(), "auth/token/renew-self", nil); err != nil {
		t.Errorf("renewing: %v", err)
	}
	if _, err := tok.Read(t.Context(), Mount+"/config", nil); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("an agent reads the configuration: %v", err)
	}
}

// testNoIdentity: neither a process that nobody registered nor an init that
// nobody registered gets an identity.
func testNoIdentity(t *testing.T, s *Stack) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr("unix://"+s.l.workloadSocket())); err == nil {
		t.Errorf("this test has the identity %s", svid.ID)
	}
	if id, _, _, err := startSandbox(t, s, runUID).ask(); err == nil || !strings.Contains(err.Error(), "PermissionDenied") {
		t.Errorf("an unregistered init: %s, %v", id, err)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ready is where our programs are, built once.
var ready struct {
	once sync.Once
	dir  string // empty: they could not be built
}

// programs are ours as the product builds them, but with an init that only
// shows its identity. Each caller has copies, which it may change.
func programs(t *testing.T, cfg Config) string {
	t.Helper()
	ready.once.Do(func() { ready.dir = buildPrograms(t, cfg) })
	if ready.dir == "" {
		t.Fatal("our programs could not be built")
	}
	out := filepath.Join(filepath.Dir(cfg.Dir), "programs")
	if err := os.CopyFS(out, os.DirFS(ready.dir)); err != nil {
		t.Fatal(err)
	}
	return out
}

func buildPrograms(t *testing.T, cfg Config) string {
	t.Helper()
	out, err := os.MkdirTemp("", "sealed-devstack-") // TestMain removes it
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", out + "/"}
	for _, p := range ownPackages() {
		if !strings.HasSuffix(p, binInit) {
			args = append(args, p)
		}
	}
	args = append(args, "./internal/devstack/testdata/init")
	if err := goTool(t.Context(), cfg.Module, []string{"CGO_ENABLED=0"}, args, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(out, "init"), filepath.Join(out, binInit)); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestUnprivileged brings a stack up as a user without privileges, from
// ready-built programs and a Vault on PATH. As root, it hands over to itself
// under another uid.
func TestUnprivileged(t *testing.T) {
	if dir := os.Getenv("DEVSTACK_UNPRIVILEGED"); dir != "" {
		unprivileged(t, dir)
		return
	}
	require.Root(t, "it starts this test under another uid; TestUpDown is the same without root")
	t.Parallel()
	const uid = 54321
	cfg := realConfig(t, IdentityEmbedded)
	base := filepath.Dir(cfg.Dir)
	for _, d := range []string{"home", "bin"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(base, "home"), uid, uid); err != nil {
		t.Fatal(err)
	}
	programs(t, cfg)
	vault, err := Servers(IdentityEmbedded)[0].find(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{vault.Path: "vault", os.Args[0]: "devstack.test"} {
		if err := install(from, filepath.Join(base, "bin", to), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(base, "bin", "devstack.test"), "-test.run=^TestUnprivileged$", "-test.v")
	cmd.Dir = base
	cmd.Env = []string{"DEVSTACK_UNPRIVILEGED=" + base, "HOME=" + filepath.Join(base, "home"), "PATH=" + filepath.Join(base, "bin") + ":/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: TestUnprivileged") {
		t.Errorf("as uid %d: %v", uid, err)
	}
}

func unprivileged(t *testing.T, base string) {
	if os.Geteuid() == 0 {
		t.Fatal("still root")
	}
	cfg := Config{
		Dir: filepath.Join(base, "home", "s"), Programs: filepath.Join(base, "programs"),
		Self: []string{os.Args[0], "authority"}, DieWithParent: true,
	}
	for name, c := range map[string]Config{
		"spire":           {Dir: cfg.Dir, Identity: IdentitySPIRE},
		"other launchers": {Dir: cfg.Dir, Launchers: []int{1000}},
	} {
		if _, err := Up(t.Context(), c); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	begun := time.Now()
	s, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	t.Logf("up after %v", time.Since(begun))
	testRunning(t, s)
	testFiles(t, s)
	testIdentity(t, s, "same-uid.isolation.sealed.internal")
	testNoIdentity(t, s)
}
