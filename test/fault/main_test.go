// Package fault kills real servers at the worst moment, by SIGKILL, and looks
// whether what Sealed promises still holds: nothing that was acknowledged is
// lost, nothing that was not handed over lives on upstream, the log verifies.
package fault

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/supervise"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/harness"
)

// Stopping servers is mostly waiting for them, so tests take turns on a few
// stacks.
func TestMain(m *testing.M) { harness.Main(m, harness.Options{Stacks: 4}) }

const agentName = sealed.Name("custom")

type world struct {
	*harness.Stack
	forge    *guest.Forge
	programs string // links to ours, so that a repair builds nothing
}

// get makes the test parallel, and returns a world that is the test's until it
// ends.
func get(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	s := harness.Borrow(t)
	w := &world{Stack: s, programs: filepath.Join(s.Base, "programs")}
	switch err := os.Mkdir(w.programs, 0o755); {
	case err == nil:
		for _, from := range []string{"private/plugins/vault-plugin-secrets-sealed", "private/plugins/spire-attestor-sealed", "bin/sealed-init", "bin/sealed"} {
			harness.Link(t, filepath.Join(s.Status.Dir, from), filepath.Join(w.programs, filepath.Base(from)))
		}
	case !errors.Is(err, fs.ErrExist): // it is there when a stack comes back
		t.Fatal(err)
	}
	var err error
	w.forge, err = guest.Open(t.Context(), s.Stack)
	harness.Must(t, err)
	s.Agent(t, string(agentName))
	return w
}

// crash kills one server of the stack, with its plug-ins.
func (w *world) crash(t testing.TB, name string) {
	t.Helper()
	harness.Must(t, w.Kill(context.WithoutCancel(t.Context()), name))
}

// repair starts what is not running, as an administrator would.
func (w *world) repair(t testing.TB) {
	t.Helper()
	relay := map[string]string{}
	for _, h := range harness.Hosts() {
		relay[h+":443"] = w.Upstream.Addr
	}
	_, err := devstack.Up(context.WithoutCancel(t.Context()), devstack.Config{
		Dir: w.Status.Dir, Identity: w.Status.Identity, Module: w.Module, Programs: w.programs, Launchers: w.Status.Launchers[1:],
		Relay: relay, UpstreamRoots: w.Upstream.CA, Self: []string{os.Args[0], "authority"}, DieWithParent: true,
	})
	harness.Must(t, err)
}

// verify pulls the log and verifies it as a continuation of an earlier head,
// which may be nil. It returns the new one.
func (w *world) verify(t *testing.T, pinned []byte) []byte {
	t.Helper()
	dir := w.Pull(t)
	if _, err := audit.VerifyDir(dir, audit.Options{VerifierKey: w.LogKey(t), Pinned: pinned}); err != nil {
		t.Fatalf("verifying: %v", err)
	}
	head, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	harness.Must(t, err)
	return head
}

func (w *world) guest(t *testing.T, profile string) *guest.Guest {
	t.Helper()
	r := harness.Enqueue(t, agentName, profile)
	q, err := w.Engine(t, "operator").Enqueue(t.Context(), r)
	harness.Must(t, err)
	g, err := w.forge.Arrive(t.Context(), q.Run, agentName)
	harness.Must(t, err)
	harness.Must(t, g.Claim(t.Context(), q.Ticket, guest.Measure(r), nil))
	return g
}

func binding() sealed.Binding {
	return sealed.Binding{Host: "api.test", Methods: []string{"GET"}, Paths: []string{"/v1/**"}}
}

// profile makes a profile with one KEY.
func (w *world) profile(t *testing.T, spec sealed.KeySpec) string {
	t.Helper()
	name := w.Name("fault/p")
	w.Profile(t, harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{"KEY": spec}))
	return name
}

func (w *world) static(t *testing.T, value string) string {
	t.Helper()
	path := "fault/" + w.Name("secret")
	w.Secret(t, path, value)
	return w.profile(t, harness.Key(path, []string{string(agentName)}, binding()))
}

// pluginPID is the process of the engine.
func (w *world) pluginPID(t *testing.T) int {
	t.Helper()
	for _, p := range w.Stack.Stack.Status(t.Context()).Processes {
		if p.Name != "vault" {
			continue
		}
		stats, err := filepath.Glob("/proc/[0-9]*/stat")
		harness.Must(t, err)
		for _, path := range stats {
			b, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
			exe, _ := os.Readlink(filepath.Join(filepath.Dir(path), "exe"))
			if len(f) > 1 && f[0] != "Z" && f[1] == strconv.Itoa(p.PID) && filepath.Base(exe) == "vault-plugin-secrets-sealed" {
				pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				harness.Must(t, err)
				return pid
			}
		}
	}
	t.Fatal("the engine has no process")
	return 0
}

func (w *world) tell(t *testing.T, p *harness.Process, what string) {
	t.Helper()
	dir := supervise.RunDir(filepath.Join(w.Base, "home", "0", "state", "sealed"), string(p.RunID(t)))
	harness.Must(t, os.WriteFile(filepath.Join(dir, "workspace", what), nil, 0o644))
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
}
