// Package attack holds the attacks of the threat model on the whole product:
// a real Vault, a real SPIRE, real sandboxes and the real command. Test names
// begin with the ids of the threat model. Each attack has a control, in the same
// test, that shows the attack working where Sealed does not stand in the way,
// or the oracle finding the value where it is: a test that can't fail proves
// nothing.
package attack

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// Most tests run beside each other. Those that change what all runs see, the
// policy and who approves, or that count what nobody may cause, do not.
func TestMain(m *testing.M) { harness.Main(m, harness.Options{Hosts: []string{echoHost}}) }

// echoHost is where one test answers instead of the upstream.
const echoHost = "echo.test"

// agentName is an agent that is recognized by its name only, so that a shell
// can play it.
const agentName = sealed.Name("custom")

// A world is the stack with what attackers need.
type world struct {
	*harness.Stack
	forge *guest.Forge
	probe string // the attacker's program
}

var built struct {
	sync.Mutex
	w *world
}

// get returns the world. Everything here needs root: to start sandboxes under
// uids of their own, and to look into processes.
func get(t *testing.T) *world {
	t.Helper()
	s := harness.Get(t)
	built.Lock()
	defer built.Unlock()
	if built.w == nil {
		forge, err := guest.Open(t.Context(), s.Stack)
		harness.Must(t, err)
		built.w = &world{Stack: s, forge: forge, probe: s.Build(t, "./test/attack/testdata/probe")}
	}
	built.w.Agent(t, string(agentName))
	return built.w
}

// own returns a world on a stack of the test's own.
func own(t *testing.T, o harness.Options) *world {
	t.Helper()
	shared := get(t)
	s := harness.Open(t, o)
	forge, err := guest.Open(t.Context(), s.Stack)
	harness.Must(t, err)
	w := &world{Stack: s, forge: forge, probe: shared.probe}
	w.Agent(t, string(agentName))
	return w
}

// openDir makes a directory that every uid may pass.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sealed-attack-")
	harness.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	harness.Must(t, os.Chmod(dir, 0o755))
	return dir
}

// plant stores a canary as a secret.
func (w *world) plant(t *testing.T, name string) (*canary.Canary, string) {
	t.Helper()
	c, err := canary.New(name)
	harness.Must(t, err)
	path := "attack/" + w.Name("secret")
	w.Secret(t, path, c.Value)
	return c, path
}

// binding lets a key be used on api.test.
func binding(host string) sealed.Binding {
	return sealed.Binding{Host: host, Methods: []string{"GET", "POST"}, Paths: []string{"/v1/**"}}
}

// profile makes a profile with one canary, KEY, of env delivery without
// bindings and of proxy delivery with them.
func (w *world) profile(t *testing.T, bindings ...sealed.Binding) (string, *canary.Canary) {
	t.Helper()
	c, path := w.plant(t, "KEY")
	name := w.Name("attack/p")
	w.Profile(t, harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{"KEY": harness.Key(path, []string{string(agentName)}, bindings...)}))
	return name, c
}

// shell is the command line of a run of a shell script.
func shell(profile, script string, flags ...string) []string {
	args := []string{"run", "--agent", string(agentName)}
	if profile != "" {
		args = append(args, "--profile", profile)
	}
	return append(append(args, flags...), "--", "/bin/sh", "-c", script)
}

// untilTold ends a script that runs until the test calls tell, and which
// nothing else ends early. It says isUp, and more, because the redactor holds
// back what could be the beginning of a value: a single letter, too.
const (
	untilTold = "echo this is up, and it goes on until told; while [ ! -e told ]; do sleep 0.05; done"
	isUp      = "this is up"
)

// tell lets a script of untilTold go on. The copy of the workspace is in the
// run's directory, which root reaches.
func (w *world) tell(t *testing.T, p *harness.Process) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(w.Base, "home", "*", "state", "sealed", "runs", string(p.RunID(t)), "workspace"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("finding the copy of the workspace: %q, %v", dirs, err)
	}
	harness.Must(t, os.WriteFile(filepath.Join(dirs[0], "told"), nil, 0o644))
}

// sinks scans everything that a run leaves where a value must not be.
func (w *world) sinks(t *testing.T, r harness.Result, cs ...*canary.Canary) []canary.Hit {
	t.Helper()
	hits := canary.Scan("stdout", []byte(r.Stdout), cs...)
	hits = append(hits, canary.Scan("stderr", []byte(r.Stderr), cs...)...)
	for _, dir := range []string{r.RunDir(t), r.Dir} {
		found, err := canary.ScanTree(dir, cs...)
		harness.Must(t, err)
		hits = append(hits, found...)
	}
	id := r.RunID(t)
	log, err := json.Marshal(w.Entries(t, id))
	harness.Must(t, err)
	hits = append(hits, canary.Scan("log", log, cs...)...)
	if record, err := w.Engine(t, "auditor").Record(t.Context(), id); err == nil {
		hits = append(hits, canary.Scan("record", record, cs...)...)
	}
	return hits
}

func (w *world) clean(t *testing.T, r harness.Result, cs ...*canary.Canary) {
	t.Helper()
	if hits := w.sinks(t, r, cs...); len(hits) > 0 {
		t.Errorf("found: %v", hits)
	}
}

// entry reports whether a run has an entry with this type and every text.
func (w *world) entry(t *testing.T, run sealed.RunID, typ string, texts ...string) bool {
	t.Helper()
	for _, e := range w.Entries(t, run) {
		if e.Type == typ && !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(string(e.Body), s) }) {
			return true
		}
	}
	return false
}

func (w *world) wantEntry(t *testing.T, run sealed.RunID, typ string, texts ...string) {
	t.Helper()
	if w.entry(t, run, typ, texts...) {
		return
	}
	t.Errorf("run %s has no entry %s with %q; it has %v", run, typ, texts, harness.Types(w.Entries(t, run)))
}

// logged reports whether the log has an entry with this type and every text.
func (w *world) logged(t *testing.T, typ string, texts ...string) bool {
	t.Helper()
	return w.entry(t, "", typ, texts...)
}

// children returns the processes whose parent is pid.
func children(t *testing.T, pid int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	harness.Must(t, err)
	var out []int
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) > 1 && f[1] == strconv.Itoa(pid) && f[0] != "Z" {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			harness.Must(t, err)
			out = append(out, child)
		}
	}
	return out
}

// outside runs the probe on the host, as uid.
func (w *world) outside(t *testing.T, uid int, args ...string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.probe, args...)
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.SysProcAttr = credential(uid)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("probe: %v\n%s", err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// worked returns what a probe reports as done.
func worked(lines []string) []string {
	var out []string
	for _, l := range lines {
		if what, ok := strings.CutPrefix(l, "yes "); ok {
			out = append(out, what)
		}
	}
	return out
}

func itoa(n int) string { return strconv.Itoa(n) }

func parseCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
