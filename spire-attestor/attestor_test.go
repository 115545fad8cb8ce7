package spireattestor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/spire-attestor/registry"
)

var genuine = func() string {
	sum := sha256.Sum256([]byte("genuine init\n"))
	return hex.EncodeToString(sum[:])
}()

// fakeAttestor runs on a fake tree; its clock moves when *now is set.
func fakeAttestor(t *testing.T, f *fakeProc, now *time.Time) *Attestor {
	t.Helper()
	a, err := New(Config{
		TrustFile: "/etc/sealed/trust.json", InitSHA256: []string{genuine},
		RunUIDs: UIDRange{Min: 700000, Max: 799999},
		Launchers: map[uint32]Launcher{
			0:    {Tenant: "acme", Agents: []sealed.Name{"claude-code"}},
			1000: {Tenant: "acme", Agents: []sealed.Name{"claude-code"}},
		},
		Clock: func() time.Time { return *now },
	})
	if err != nil {
		t.Fatal(err)
	}
	a.proc, a.trusted, a.settle = f, f.trusted, 0
	a.pin = func(int) (pin, error) { return newFakePin(), nil }
	return a
}

var request = registry.Request{V: 1, Agent: "claude-code", Backend: "local", PID: 1234}

// attack registers and attests process 1234 while the tree changes under it,
// and returns where it was refused and why.
func attack(t *testing.T, dir string) (at string, reason Reason) {
	t.Helper()
	now := time.Unix(1e9, 0)
	f := newFakeProc(t)
	a := fakeAttestor(t, f, &now)
	f.enter(filepath.Join(dir, "registration"))
	d, err := a.register(t.Context(), caller{PID: 900, UID: 0, pin: newFakePin()}, request)
	if err != nil {
		return "registration", reasonOf(t, err)
	}
	defer a.drop(d)
	f.enter(filepath.Join(dir, "attestation"))
	f.midway = filepath.Join(dir, "midway")
	got, err := a.Attest(t.Context(), 1234)
	if err != nil {
		if got != nil {
			t.Errorf("refused, but with selectors %v", got)
		}
		return "attestation", reasonOf(t, err)
	}
	want := []string{
		"tenant:acme", "agent:claude-code", "init_sha256:" + genuine, "isolation:own_uid",
		"backend:local", "image:host", "launcher_uid:0", "init_owner:root",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
	return "", ""
}

func reasonOf(t *testing.T, err error) Reason {
	t.Helper()
	var denied *DeniedError
	if !errors.As(err, &denied) || !errors.Is(err, sealed.ErrDenied) {
		t.Fatalf("error %v is no *DeniedError", err)
	}
	return denied.Reason
}

// TestFakeTrees: each tree differs from base by one attack only, so that base
// itself, which passes, is the negative control of them all.
func TestFakeTrees(t *testing.T) {
	tests := map[string]struct {
		at     string
		reason Reason
	}{
		"base":                   {},
		"neighbor_sandbox":       {},
		"pid_reused":             {"attestation", ReasonIdentity},
		"pid_reused_midway":      {"attestation", ReasonIdentity},
		"comm_with_paren":        {"attestation", ReasonIdentity},
		"boot_changed":           {"attestation", ReasonIdentity},
		"ns_recycled":            {"attestation", ReasonIdentity},
		"ns_recycled_uid":        {"attestation", ReasonIdentity},
		"exe_swapped":            {"attestation", ReasonDigest},
		"exe_readable":           {"attestation", ReasonExe},
		"exe_users":              {"attestation", ReasonExe},
		"exe_on_fuse":            {"attestation", ReasonExe},
		"exe_vanished":           {"attestation", ReasonExe},
		"dumpable":               {"attestation", ReasonDumpable},
		"not_alone":              {"attestation", ReasonNotAlone},
		"not_alone_nested":       {"attestation", ReasonNotAlone},
		"not_alone_zombie":       {"attestation", ReasonNotAlone},
		"unreadable_init":        {},
		"unreadable_agent":       {"attestation", ReasonNotAlone},
		"unreadable_nested":      {"attestation", ReasonNotAlone},
		"traced":                 {"attestation", ReasonTraced},
		"trust_fd_swapped":       {"attestation", ReasonTrustFD},
		"trust_fd_other_device":  {"attestation", ReasonTrustFD},
		"trust_fd_closed":        {"attestation", ReasonTrustFD},
		"trust_file_writable":    {"attestation", ReasonTrustFile},
		"trust_file_users":       {"attestation", ReasonTrustFile},
		"trust_file_linked":      {"attestation", ReasonTrustFile},
		"trust_file_not_regular": {"attestation", ReasonTrustFile},
		"host_uid0":              {"registration", ReasonUID},
		"host_uid0_saved":        {"registration", ReasonUID},
		"uid_outside_range":      {"registration", ReasonUID},
		"maps_host_uid0":         {"registration", ReasonUIDMap},
		"maps_another_uid":       {"registration", ReasonUIDMap},
		"maps_a_range":           {"registration", ReasonUIDMap},
		"maps_nothing":           {"registration", ReasonUIDMap},
		"not_pid1":               {"registration", ReasonNotFirst},
		"host_namespace":         {"registration", ReasonNotFirst},
		"host_namespace_lied":    {"registration", ReasonNotFirst},
		"launcher_sandboxed":     {"registration", ReasonLauncher},
		"status_twice":           {"registration", ReasonProc},
		"status_truncated":       {"registration", ReasonProc},
		"stat_garbage":           {"registration", ReasonProc},
	}
	dirs, err := filepath.Glob("testdata/proc/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		name := filepath.Base(dir)
		want, ok := tests[name]
		if !ok {
			t.Errorf("tree %s has no expectation", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			if at, reason := attack(t, dir); at != want.at || reason != want.reason {
				t.Errorf("refused at %q for %q, want %q, %q", at, reason, want.at, want.reason)
			}
		})
	}
	if len(dirs) != len(tests) {
		t.Errorf("%d trees, %d expectations", len(dirs), len(tests))
	}
}

func TestWindow(t *testing.T) {
	type step struct {
		after time.Duration // since the step before
		want  Reason
	}
	tests := map[string]struct {
		claimAt int // before this step; -1 never
		steps   []step
	}{
		"at the last moments":         {-1, []step{{60 * time.Second, ""}, {10 * time.Second, ""}}},
		"first too late":              {-1, []step{{60*time.Second + 1, ReasonWindow}}},
		"second too late":             {-1, []step{{0, ""}, {10*time.Second + 1, ReasonWindow}}},
		"refusals open nothing again": {-1, []step{{0, ""}, {11 * time.Second, ReasonWindow}, {0, ReasonWindow}}},
		"claimed":                     {1, []step{{0, ""}, {0, ReasonClaimed}}},
		"claimed before the first":    {0, []step{{0, ReasonClaimed}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			a := fakeAttestor(t, newFakeProc(t), &now)
			d, err := a.register(t.Context(), caller{PID: 900, pin: newFakePin()}, request)
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range tt.steps {
				if i == tt.claimAt {
					d.claim()
				}
				now = now.Add(s.after)
				_, err := a.Attest(t.Context(), 1234)
				var reason Reason
				if err != nil {
					reason = reasonOf(t, err)
				}
				if reason != s.want {
					t.Errorf("step %d: reason %q, want %q", i, reason, s.want)
				}
			}
		})
	}
}

// TestDescriptorDiesWith: what ends a descriptor ends it at once, before any
// watcher has run.
func TestDescriptorDiesWith(t *testing.T) {
	tests := map[string]func(a *Attestor, d *descriptor){
		"process":  func(_ *Attestor, d *descriptor) { _ = d.pin.Close() },
		"launcher": func(_ *Attestor, d *descriptor) { _ = d.launcher.Close() },
	}
	for name, end := range tests {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			a := fakeAttestor(t, newFakeProc(t), &now)
			d, err := a.register(t.Context(), caller{PID: 900, pin: newFakePin()}, request)
			if err != nil {
				t.Fatal(err)
			}
			end(a, d)
			if _, err := a.Attest(t.Context(), 1234); reasonOf(t, err) != ReasonGone {
				t.Errorf("error = %v, want %s", err, ReasonGone)
			}
			// A stale descriptor does not block the number.
			if _, err := a.register(t.Context(), caller{PID: 900, pin: newFakePin()}, request); err != nil {
				t.Errorf("registering again: %v", err)
			}
		})
	}
}

func TestReconfigureKeepsDescriptors(t *testing.T) {
	now := time.Unix(1e9, 0)
	a := fakeAttestor(t, newFakeProc(t), &now)
	if _, err := a.register(t.Context(), caller{PID: 900, pin: newFakePin()}, request); err != nil {
		t.Fatal(err)
	}
	cfg := a.config()
	if err := a.Reconfigure(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attest(t.Context(), 1234); err != nil {
		t.Errorf("same configuration: %v", err)
	}
	cfg.InitSHA256 = []string{hex.EncodeToString(make([]byte, 32))}
	if err := a.Reconfigure(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attest(t.Context(), 1234); reasonOf(t, err) != ReasonDigest {
		t.Errorf("digest withdrawn: %v, want %s", err, ReasonDigest)
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte("Name:\tx\nPPid:\t1\nTracerPid:\t0\nUid:\t1\t1\t1\t1\nNSpid:\t5\t1\n"))
	f.Add([]byte("Uid:\t1\nUid:\t1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if st, err := parseStatus(data); err == nil && len(st.NSpid) == 0 {
			t.Error("accepted without NSpid")
		}
		_, _ = parseIDMap(data)
	})
}

func FuzzParseStart(f *testing.F) {
	f.Add("x) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 9 (")
	f.Add("a b\n)")
	f.Fuzz(func(t *testing.T, comm string) {
		stat := "12 (" + comm + ") S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"
		if got, err := parseStart([]byte(stat)); err != nil || got != 4242 {
			t.Errorf("comm %q: start %d, %v; want 4242", comm, got, err)
		}
	})
}
