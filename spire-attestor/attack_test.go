package spireattestor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
	spireattestor "sealed.dev/sealed/spire-attestor"
	"sealed.dev/sealed/spire-attestor/registry"
)

// gullible is an attestor with every control off.
type gullible struct{ digest string }

func (g gullible) Attest(context.Context, int) ([]string, error) {
	return []string{"tenant:acme", "agent:test", "init_sha256:" + g.digest, "isolation:own_uid", "init_owner:root"}, nil
}

// wantDenied checks that init got nothing, and why by the attestor's log.
func wantDenied(t *testing.T, w *world, got string, reason spireattestor.Reason) {
	t.Helper()
	if !strings.HasPrefix(got, "error ") || !strings.Contains(got, "PermissionDenied") {
		t.Errorf("answer = %q, want PermissionDenied", got)
	}
	if reason != "" && !strings.Contains(w.log.String(), "reason="+string(reason)) {
		t.Errorf("log names no reason %s:\n%s", reason, w.log)
	}
}

func wantFetched(t *testing.T, w *world, got string) {
	t.Helper()
	if !strings.Contains(got, agentID) || strings.HasPrefix(got, "error") {
		t.Errorf("control off: answer = %q, want an SVID, or the attack is none\n%s", got, w.log)
	}
}

// TestAttacksOnAttestation runs each attack against a registered init, then
// again with the one control switched off that should have stopped it.
func TestAttacksOnAttestation(t *testing.T) {
	tests := []struct {
		name   string
		spec   func(w *world) sandboxSpec
		attack func(w *world, sb *sandbox, r *registry.Registration) string
		reason spireattestor.Reason
		off    func(w *world, sb *sandbox)
	}{{
		name: "second process in the namespace (D12)",
		attack: func(w *world, sb *sandbox, _ *registry.Registration) string {
			if got := sb.say("spawn"); got != "ok" {
				w.t.Fatalf("spawn = %q", got)
			}
			return sb.say("fetch")
		},
		reason: spireattestor.ReasonNotAlone,
		off:    func(w *world, sb *sandbox) { w.attestor.BlindToSiblings(sb.pid) },
	}, {
		name: "connection relayed to a second process (D03)",
		attack: func(_ *world, sb *sandbox, _ *registry.Registration) string {
			return sb.say("relay")
		},
		reason: spireattestor.ReasonNotAlone,
		off:    func(w *world, sb *sandbox) { w.attestor.BlindToSiblings(sb.pid) },
	}, {
		name: "other trust file (R04)",
		spec: func(w *world) sandboxSpec {
			return sandboxSpec{trust: writeTrust(w.t, filepath.Join(w.dir, "evil.json"))}
		},
		reason: spireattestor.ReasonTrustFD,
		off:    func(w *world, _ *sandbox) { w.attestor.BlindToTrustFD(w.trust) },
	}, {
		name: "after the claim (D11)",
		attack: func(w *world, sb *sandbox, r *registry.Registration) string {
			wantFetched(w.t, w, sb.say("fetch"))
			if err := r.Claimed(); err != nil {
				w.t.Fatal(err)
			}
			return sb.say("fetch")
		},
		reason: spireattestor.ReasonClaimed,
	}, {
		name: "later than 10 s after the first",
		attack: func(w *world, sb *sandbox, _ *registry.Registration) string {
			wantFetched(w.t, w, sb.say("fetch"))
			w.clock.Advance(9 * time.Second)
			wantFetched(w.t, w, sb.say("fetch")) // the control, and not its neighbor, decides below
			w.clock.Advance(2 * time.Second)
			return sb.say("fetch")
		},
		reason: spireattestor.ReasonWindow,
	}, {
		name: "first later than 60 s after registration",
		attack: func(w *world, sb *sandbox, _ *registry.Registration) string {
			w.clock.Advance(61 * time.Second)
			return sb.say("fetch")
		},
		reason: spireattestor.ReasonWindow,
		off:    func(w *world, _ *sandbox) { w.clock.Advance(-10 * time.Second) },
	}, {
		name: "connection of the launcher closed",
		attack: func(w *world, sb *sandbox, r *registry.Registration) string {
			if err := r.Close(); err != nil {
				w.t.Fatal(err)
			}
			waitDropped(w, sb.pid)
			return sb.say("fetch")
		},
	}, {
		name: "launcher no longer configured",
		attack: func(w *world, sb *sandbox, _ *registry.Registration) string {
			cfg := w.cfg
			cfg.Launchers = map[uint32]spireattestor.Launcher{otherUID: w.cfg.Launchers[otherUID]}
			if err := w.attestor.Reconfigure(cfg); err != nil {
				w.t.Fatal(err)
			}
			return sb.say("fetch")
		},
		reason: spireattestor.ReasonLauncher,
	}, {
		name: "traced",
		attack: func(w *world, sb *sandbox, _ *registry.Registration) (out string) {
			// Asked for here: a traced init stops at its first signal.
			traced(w.t, sb.pid, func() {
				if _, err := w.attestor.Attest(w.t.Context(), sb.pid); errors.Is(err, sealed.ErrDenied) {
					out = "error PermissionDenied"
				}
			})
			return out
		},
		reason: spireattestor.ReasonTraced,
	}}
	for _, tt := range tests {
		fetch := func(_ *world, sb *sandbox, _ *registry.Registration) string { return sb.say("fetch") }
		run := func(t *testing.T, off bool) (*world, string) {
			w := newWorld(t)
			var spec sandboxSpec
			if tt.spec != nil {
				spec = tt.spec(w)
			}
			sb := w.start(spec)
			r := w.register(sb)
			if off && tt.off != nil {
				tt.off(w, sb)
			}
			switch {
			case tt.attack == nil, off && tt.off == nil: // off: the attack is left out
				return w, fetch(w, sb, r)
			default:
				return w, tt.attack(w, sb, r)
			}
		}
		t.Run(tt.name, func(t *testing.T) {
			w, got := run(t, false)
			wantDenied(t, w, got, tt.reason)
		})
		t.Run(tt.name+"/control off", func(t *testing.T) {
			w, got := run(t, true)
			wantFetched(t, w, got)
		})
	}
}

func waitDropped(w *world, pid int) {
	w.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); w.attestor.Registered(pid); {
		if time.Now().After(deadline) {
			w.t.Fatal("descriptor outlives its connection or process")
		}
		time.Sleep(time.Millisecond)
	}
}

// traced runs f while pid has a tracer. Root may attach; a launcher with the
// sandbox's uid could do so before execve.
func traced(t *testing.T, pid int, f func()) {
	t.Helper()
	const seize, interrupt = 0x4206, 0x4207
	attached, release, done := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // a tracer is a thread
		defer runtime.UnlockOSThread()
		if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, seize, uintptr(pid), 0, 0, 0, 0); errno != 0 {
			attached <- errno
			return
		}
		attached <- nil
		<-release
		_, _, _ = unix.Syscall6(unix.SYS_PTRACE, interrupt, uintptr(pid), 0, 0, 0, 0)
		_, err := unix.Wait4(pid, nil, unix.WALL, nil)
		done <- errors.Join(err, unix.PtraceDetach(pid))
	}()
	if err := <-attached; err != nil {
		t.Fatalf("attaching: %v", err)
	}
	f()
	close(release)
	if err := <-done; err != nil {
		t.Fatalf("detaching: %v", err)
	}
}

// TestStrangersGetNoIdentity: processes without a descriptor.
func TestStrangersGetNoIdentity(t *testing.T) {
	t.Run("init that nobody registered (C10)", func(t *testing.T) {
		w := newWorld(t)
		wantDenied(t, w, w.start(sandboxSpec{}).say("fetch"), "")
	})
	t.Run("second process with the relayed O_PATH descriptor (D02)", func(t *testing.T) {
		w := newWorld(t)
		sb := w.start(sandboxSpec{})
		w.register(sb)
		wantDenied(t, w, sb.say("spawn-fetch"), spireattestor.ReasonNoDescriptor)
	})
	t.Run("control off", func(t *testing.T) {
		w := newWorld(t)
		socket := filepath.Join(w.dir, "gullible.sock")
		w.serveAuthority(gullible{w.digest}, socket)
		sb := w.start(sandboxSpec{workload: socket})
		wantFetched(t, w, sb.say("fetch"))
		wantFetched(t, w, sb.say("spawn-fetch"))
	})
	t.Run("process outside any sandbox is no error", func(t *testing.T) {
		w := newWorld(t)
		got, err := w.attestor.Attest(t.Context(), os.Getpid())
		if got != nil || err != nil {
			t.Errorf("Attest(self) = %v, %v; want nothing", got, err)
		}
	})
}

// TestRegistrationRefused: what never becomes a descriptor.
func TestRegistrationRefused(t *testing.T) {
	evil := func(mode os.FileMode, suffix string) func(*world) sandboxSpec {
		return func(w *world) sandboxSpec {
			path, _ := install(w.t, w.init, filepath.Join(w.dir, "evil"), mode)
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				w.t.Fatal(err)
			}
			if _, err := f.WriteString(suffix); err != nil {
				w.t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				w.t.Fatal(err)
			}
			return sandboxSpec{init: path}
		}
	}
	tests := []struct {
		name     string
		spec     func(w *world) sandboxSpec
		register func(w *world, sb *sandbox) error
		want     spireattestor.Reason
		off      func(w *world)
	}{{
		name: "init with another digest",
		spec: evil(0o711, "\x00"), want: spireattestor.ReasonDigest,
		off: func(w *world) {
			cfg := w.cfg
			_, digest := install(w.t, filepath.Join(w.dir, "evil"), filepath.Join(w.dir, "copy"), 0o600)
			cfg.InitSHA256 = []string{digest}
			if err := w.attestor.Reconfigure(cfg); err != nil {
				w.t.Fatal(err)
			}
		},
	}, {
		name: "init that its user may read (R01)",
		spec: evil(0o755, ""), want: spireattestor.ReasonExe,
		off: func(w *world) { w.attestor.BlindToExe() },
	}, {
		name: "setuid init",
		spec: evil(0o711|os.ModeSetuid, ""), want: spireattestor.ReasonExe,
		off: func(w *world) { w.attestor.BlindToExe() },
	}, {
		name: "launcher's uid not configured",
		want: spireattestor.ReasonLauncher,
		register: func(w *world, sb *sandbox) (err error) {
			asUID(w.t, 12345, func() { _, err = w.tryRegister(sb.pid) })
			return err
		},
	}, {
		name: "another launcher's sandbox",
		want: spireattestor.ReasonUID,
		register: func(w *world, sb *sandbox) (err error) {
			asUID(w.t, otherUID, func() { _, err = w.tryRegister(sb.pid) })
			return err
		},
	}, {
		name: "agent not allowed",
		want: spireattestor.ReasonAgent,
		register: func(w *world, sb *sandbox) error {
			_, err := registry.Register(w.t.Context(), w.registry, registry.Descriptor{Agent: "codex", PID: sb.pid})
			return err
		},
	}, {
		name: "bubblewrap's own process",
		want: spireattestor.ReasonNotFirst,
		register: func(w *world, sb *sandbox) error {
			_, err := w.tryRegister(sb.cmd.Process.Pid)
			return err
		},
	}, {
		name: "registered twice",
		want: spireattestor.ReasonRegistered,
		register: func(w *world, sb *sandbox) error {
			w.register(sb)
			_, err := w.tryRegister(sb.pid)
			return err
		},
	}, {
		name: "uid of another live sandbox",
		want: spireattestor.ReasonUIDInUse,
		register: func(w *world, sb *sandbox) error {
			w.register(sb)
			_, err := w.tryRegister(w.start(sandboxSpec{}).pid)
			return err
		},
	}}
	for _, tt := range tests {
		run := func(t *testing.T, off bool) error {
			w := newWorld(t)
			w.attestor.SetSettle(500 * time.Millisecond)
			var spec sandboxSpec
			if tt.spec != nil {
				spec = tt.spec(w)
			}
			sb := w.start(spec)
			if off && tt.off != nil {
				tt.off(w)
			}
			if tt.register == nil || off && tt.off == nil {
				_, err := w.tryRegister(sb.pid)
				return err
			}
			return tt.register(w, sb)
		}
		t.Run(tt.name, func(t *testing.T) {
			err := run(t, false)
			if !errors.Is(err, sealed.ErrDenied) || !strings.Contains(err.Error(), string(tt.want)) {
				t.Errorf("Register = %v, want denied with %s", err, tt.want)
			}
		})
		t.Run(tt.name+"/control off", func(t *testing.T) {
			if err := run(t, true); err != nil {
				t.Errorf("control off: Register = %v, want success, or the attack is none", err)
			}
		})
	}
}

func TestSameUIDLauncherIsGraded(t *testing.T) {
	w := newWorld(t)
	sb := w.start(sandboxSpec{uid: otherUID})
	var r *registry.Registration
	var err error
	asUID(t, otherUID, func() { r, err = w.tryRegister(sb.pid) })
	if err != nil {
		t.Fatal(err)
	}
	if r.Isolation != "same_uid" {
		t.Errorf("isolation = %q, want same_uid", r.Isolation)
	}
	// The only entry wants own_uid.
	wantDenied(t, w, sb.say("fetch"), "")
}

// TestKilledAndNumberReused kills a registered init and starts sandboxes until
// one has its number (D01, R13).
func TestKilledAndNumberReused(t *testing.T) {
	w := newWorld(t)
	first := w.start(sandboxSpec{})
	w.register(first)
	first.kill()
	waitDropped(w, first.pid)
	for range 500 { // others take numbers, too
		// bubblewrap takes the next number, its child the one after that.
		last := strconv.Itoa(first.pid - 2)
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(last), 0); err != nil {
			need(t, "bwrap", fmt.Errorf("choosing process numbers: %w", err))
		}
		second := w.start(sandboxSpec{})
		if second.pid != first.pid {
			second.kill()
			continue
		}
		wantDenied(t, w, second.say("fetch"), "")
		w.register(second)
		if got := second.say("fetch"); got != fetched {
			t.Errorf("control off: registered, fetch = %q, want %q", got, fetched)
		}
		return
	}
	need(t, "bwrap", errors.New("the number was not given out again in 500 tries"))
}
