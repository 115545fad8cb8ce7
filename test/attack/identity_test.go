package attack

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sandbox/local"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/workspace"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// enqueue asks for a run of a command as the operator, and makes the boot
// document that belongs to it.
func (w *world) enqueue(t *testing.T, profile string, argv ...string) (sealed.Enqueued, sealed.EnqueueRequest, sealed.Boot) {
	t.Helper()
	idem, err := sealed.NewULID(time.Now(), nil)
	harness.Must(t, err)
	r := sealed.EnqueueRequest{
		IdempotencyKey: idem, Agent: agentName, Mode: sealed.ModeJIT, Profile: sealed.ProfileName(profile),
		CommandDigest: sealed.CommandDigest(argv), WorkspaceDigest: workspace.EmptyDigest(),
		Sandbox: sealed.SandboxSpec{Backend: sealed.BackendLocal, Isolation: sealed.IsolationOwnUID, Network: sealed.NetworkNone, WallTime: sealed.Duration(time.Minute)},
	}
	q, err := w.Engine(t, "operator").Enqueue(t.Context(), r)
	harness.Must(t, err)
	return q, r, sealed.Boot{Run: q.Run, Ticket: q.Ticket, Mode: sealed.ModeJIT, Argv: argv, Dir: "/workspace"}
}

// refused checks that a launch got nothing: the status of a failure of
// Sealed's own, one line, no agent, no claim.
func refused(t *testing.T, out outcome) {
	t.Helper()
	if out.exit != sealed.ExitSealed || out.claimed() || out.stdout != "" || strings.Count(out.stderr, "\n") != 1 {
		t.Errorf("exit %d, claimed %t\nstdout: %s\nstderr: %s", out.exit, out.claimed(), out.stdout, out.stderr)
	}
}

// The control of every launch below: the same launcher, being honest, works.
func TestHonestLauncher(t *testing.T) {
	t.Parallel()
	w := get(t)
	profile, _ := w.profile(t, binding("api.test"))
	_, _, boot := w.enqueue(t, profile, "/bin/echo", "it works")
	out := launcher{boot: boot}.run(t, w)
	if out.registered != nil || out.exit != 0 || !out.claimed() || out.stdout != "it works\n" {
		t.Errorf("%+v", out)
	}
}

// D11: a run that is claimed before init asks for an identity has none.
func TestD11ClaimedBeforeAttestation(t *testing.T) {
	t.Parallel()
	w := get(t)
	_, _, boot := w.enqueue(t, "", "/bin/echo", "no")
	out := launcher{boot: boot, claimed: true}.run(t, w)
	harness.Must(t, out.registered)
	refused(t, out)
	if !strings.Contains(out.stderr, "X509-SVID") {
		t.Errorf("stderr: %s", out.stderr)
	}
}

// D11: an init that was attested asks again: within 10 s of the first time it
// is the same process and gets the same; after that, and after the claim, it
// gets nothing, and nor does anybody once a second process lives beside it, or
// that process itself. The attestor's log says why. Init is the asker here,
// on a stack of its own that takes it for the real one.
func TestD11SecondAttestation(t *testing.T) {
	t.Parallel()
	shared := get(t)
	programs := shared.Programs(t)
	data, err := os.ReadFile(shared.Build(t, "./test/attack/testdata/asker"))
	harness.Must(t, err)
	harness.Must(t, os.WriteFile(filepath.Join(programs, "sealed-init"), data, 0o755))
	w := own(t, harness.Options{Identity: devstack.IdentityEmbedded, Programs: programs, Cold: true})
	attestor, err := os.ReadFile(filepath.Join(w.Status.Dir, "private", "log", "authority.log"))
	harness.Must(t, err)
	if strings.Contains(string(attestor), "reason=") {
		t.Fatalf("refusals before any attack:\n%s", attestor)
	}
	t.Run("all", func(t *testing.T) { // ends when its parallel parts have
		for _, tt := range []struct {
			name   string
			steps  []string
			want   string // the last step's answer
			reason string
		}{
			{"control: again within the window", []string{"fetch", "fetch"}, "yes", ""},
			{"again after the window", []string{"fetch", "fetch", "wait", "fetch"}, "no", "window_over"},
			{"again after the claim", []string{"fetch", "claim", "fetch"}, "no", "claimed"},
			{"with a second process beside it", []string{"fetch", "spawn", "fetch"}, "no", "not_alone"},
			{"the second process itself", []string{"fetch", "child"}, "no", "not_init"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				out := launcher{boot: sealed.Boot{Argv: tt.steps}, honor: true}.run(t, w)
				harness.Must(t, out.registered)
				lines := strings.Split(strings.TrimSpace(out.stdout), "\n")
				if len(lines) != len(tt.steps) {
					t.Fatalf("%+v", out)
				}
				for i, l := range lines[:len(lines)-1] {
					if l != "yes "+tt.steps[i] {
						t.Errorf("control: step %d: %s", i, l)
					}
				}
				if !strings.HasPrefix(lines[len(lines)-1], tt.want+" ") {
					t.Errorf("at last: %s", lines[len(lines)-1])
				}
				log, err := os.ReadFile(filepath.Join(w.Status.Dir, "private", "log", "authority.log"))
				harness.Must(t, err)
				if tt.reason != "" && !strings.Contains(string(log), "reason="+tt.reason) && !strings.Contains(string(log), `"reason":"`+tt.reason+`"`) {
					t.Errorf("the attestor does not say %s:\n%s", tt.reason, log)
				}
			})
		}
	})
}

// A sandbox that nobody announced has no identity.
func TestD12NotRegistered(t *testing.T) {
	t.Parallel()
	w := get(t)
	_, _, boot := w.enqueue(t, "", "/bin/echo", "no")
	refused(t, launcher{boot: boot, unregistered: true}.run(t, w))
}

// swapper starts the attacker's program in place of init, under the path where
// the driver puts it. The genuine init, and the attacker's child, are in
// below
// /opt.
type swapper struct{ alone bool }

func (s swapper) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if s.alone {
		if err := os.WriteFile(filepath.Join(spec.Workspace, "alone"), nil, 0o644); err != nil {
			return nil, err
		}
	}
	return local.Driver{}.Start(ctx, spec)
}

// D02: a process connects to the Workload API, hands the connection to a child
// and becomes the genuine init by execve. The kernel now says that the genuine
// init has connected. It is not alone in its sandbox, so it is not attested.
func TestD02ExecSwap(t *testing.T) {
	t.Parallel()
	w := get(t)
	dir, err := os.MkdirTemp("/opt", "attack-") // the probe, which gets no arguments, looks for it
	harness.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	harness.Must(t, os.Chmod(dir, 0o755))
	install(t, w.probe, filepath.Join(dir, "probe"), 0o755)
	install(t, w.Status.InitPath, filepath.Join(dir, "init"), 0o711)
	swapped := func(pid int) bool {
		exe, err := os.Readlink("/proc/" + itoa(pid) + "/exe")
		return err == nil && exe == filepath.Join(dir, "init")
	}
	l := launcher{init: w.probe, readOnly: []string{dir}, ready: swapped}
	t.Run("with a child", func(t *testing.T) {
		_, _, l.boot = w.enqueue(t, "", "/bin/echo", "no")
		l.driver, l.pause = swapper{}, 4*time.Second // the child asks for three
		out := l.run(t, w)
		if !strings.Contains(out.stdout, "no svid") || strings.Contains(out.stdout, "yes") || out.claimed() || out.exit != sealed.ExitSealed {
			t.Errorf("%+v", out)
		}
	})
	t.Run("control: without the child it is attested", func(t *testing.T) {
		_, _, l.boot = w.enqueue(t, "", "/bin/echo", "no")
		l.driver, l.pause = swapper{alone: true}, 0
		out := l.run(t, w)
		// The workspace is not empty then, so the claim is refused, but after
		// the attestation.
		if out.registered != nil || strings.Contains(out.stderr, "SVID") {
			t.Errorf("%+v", out)
		}
	})
}

func install(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	harness.Must(t, err)
	harness.Must(t, os.WriteFile(to, b, mode))
	harness.Must(t, os.Chmod(to, mode))
}

// D03, R04: init is given a socket of the launcher's that leads to the real
// Workload API. There, the launcher is the caller, and gets nothing.
func TestD03RelayedSocket(t *testing.T) {
	t.Parallel()
	w := get(t)
	path := filepath.Join(openDir(t), "api.sock")
	l, err := net.Listen("unix", path)
	harness.Must(t, err)
	harness.Must(t, os.Chmod(path, 0o666))
	t.Cleanup(func() { _ = l.Close() })
	var relayed atomic.Int32
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			relayed.Add(1)
			out, err := net.Dial("unix", w.Status.SPIFFESocket)
			if err != nil {
				_ = in.Close()
				continue
			}
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
		}
	}()
	_, _, boot := w.enqueue(t, "", "/bin/echo", "no")
	refused(t, launcher{boot: boot, spiffe: path}.run(t, w))
	if relayed.Load() == 0 {
		t.Error("control: init did not come by")
	}
}

// C10, E19, R05: the launcher enqueues one thing and runs another. The real
// init tells the truth, and the engine refuses.
func TestE19R05AnotherRunThanEnqueued(t *testing.T) {
	t.Parallel()
	w := get(t)
	for name, change := range map[string]func(*sealed.Boot, *launcher){
		"command":          func(b *sealed.Boot, _ *launcher) { b.Argv = []string{"/bin/echo", "other"} },
		"input":            func(b *sealed.Boot, _ *launcher) { b.Input, b.HasInput = []byte("other"), true },
		"terminal":         func(b *sealed.Boot, _ *launcher) { b.Interactive, b.Rows, b.Cols = true, 24, 80 },
		"ticket":           func(b *sealed.Boot, _ *launcher) { b.Ticket = strings.Repeat("A", len(b.Ticket)) },
		"workspace":        func(_ *sealed.Boot, l *launcher) { l.driver = swapper{alone: true} },
		"agent":            func(_ *sealed.Boot, l *launcher) { l.agent = "demo" },
		"agent's a secret": func(_ *sealed.Boot, l *launcher) { l.agent = "root" },
	} {
		t.Run(name, func(t *testing.T) {
			profile, c := w.profile(t)
			q, _, boot := w.enqueue(t, profile, "/bin/sh", "-c", "echo $KEY")
			l := launcher{boot: boot}
			change(&l.boot, &l)
			out := l.run(t, w)
			refused(t, out)
			if hits := canary.Scan("output", []byte(out.stdout+out.stderr), c); len(hits) > 0 {
				t.Error(hits)
			}
			run, err := w.Engine(t, "operator").Run(t.Context(), q.Run)
			harness.Must(t, err)
			if len(run.Grants) > 0 {
				t.Errorf("granted: %+v", run.Grants)
			}
		})
	}
}

// R04: a copy of the trust file, owned by root and the same but for the address
// of Vault. It is not the file that the attestor was told, so there is no
// identity, and the double hears nothing at all.
func TestR04CopiedTrustFile(t *testing.T) {
	t.Parallel()
	w := get(t)
	double := newDouble(t, w.otherCA(t))
	trust := w.forge.Trust
	trust.VaultAddr = "https://" + double.addr
	trust.VaultCA = string(double.ca)
	b, err := json.Marshal(trust)
	harness.Must(t, err)
	path := filepath.Join(openDir(t), "trust.json")
	harness.Must(t, os.WriteFile(path, b, 0o644))
	r := w.Ctl(t, harness.Caller{Env: []string{"SEALED_TRUST_FILE=" + path}}, shell("", "echo no", "--no-workspace")...).Want(t, sealed.ExitSealed)
	if n := double.conns.Load(); n != 0 {
		t.Errorf("the double got %d connections", n)
	}
	if r.Stdout != "" || strings.Count(strings.TrimSpace(lastLines(r.Stderr)), "\n") > 1 {
		t.Errorf("stdout: %s\nstderr: %s", r.Stdout, r.Stderr)
	}
	t.Run("control: an exact copy of the content is not enough either", func(t *testing.T) {
		b, err := os.ReadFile(w.Status.TrustFile)
		harness.Must(t, err)
		harness.Must(t, os.WriteFile(path, b, 0o644))
		w.Ctl(t, harness.Caller{Env: []string{"SEALED_TRUST_FILE=" + path}}, shell("", "echo no", "--no-workspace")...).Want(t, sealed.ExitSealed)
	})
	t.Run("control: the file itself is", func(t *testing.T) {
		w.Ctl(t, harness.Caller{}, shell("", "echo yes", "--no-workspace")...).Want(t, 0)
	})
}

// lastLines are those after the talk about the run.
func lastLines(stderr string) string {
	var out []string
	for _, l := range strings.Split(strings.TrimSpace(stderr), "\n") {
		if !strings.HasPrefix(l, "sealed: run ") {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

// B28: init's relay gives out Vault to init only, and no other private address.
func TestB28RelayHeaders(t *testing.T) {
	t.Parallel()
	w := get(t)
	vault, err := relay.VaultHostPort(w.Status.VaultAddr)
	harness.Must(t, err)
	p := relay.Policy{Vault: vault, Network: sealed.NetworkFull, Map: w.forge.Trust.Relay}
	a, b := net.Pipe()
	host := &relay.Host{Policy: p}
	go func() { _ = host.Serve(t.Context(), a) }()
	c, err := relay.NewClient(b)
	harness.Must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	for _, addr := range []string{vault, "localhost:443", "127.0.0.1:443", "[::1]:443", "metadata.google.internal:80", "0x7f000001:443"} {
		conn, err := c.Dial(t.Context(), addr)
		if err == nil {
			_ = conn.Close()
			t.Errorf("%s was dialed", addr)
		}
	}
	t.Run("control: a mapped host is dialed", func(t *testing.T) {
		conn, err := c.Dial(t.Context(), "api.test:443")
		harness.Must(t, err)
		_ = conn.Close()
	})
	t.Run("control: Vault by its own kind of stream is", func(t *testing.T) {
		conn, err := c.Vault(t.Context())
		harness.Must(t, err)
		_ = conn.Close()
	})
}
