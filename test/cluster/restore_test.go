package cluster

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/harness"
)

// operator runs Vault's own command against the cluster.
func (w *world) operator(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(vaultBinary(t, w.Stack), append([]string{"operator", "raft", "snapshot"}, args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir(), "VAULT_ADDR=" + w.Status.VaultAddr, "VAULT_CACERT=" + w.Status.VaultCA, "VAULT_TOKEN=" + w.root}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("vault operator raft snapshot %s: %v: %s", args[0], err, out)
	}
}

// restore takes Vault back, and waits until it serves again.
func (w *world) restore(t *testing.T, file string) {
	t.Helper()
	w.operator(t, "restore", file)
	w.settle(t)
}

// restores takes Vault back to a snapshot in which an approval is not used yet. As
// long as nobody shows the engine what was lost, the approval can be used again:
// that is the control. The next sealedctl run shows it, and from then on nothing
// is issued until an administrator attests the restore.
func (w *world) restores(t *testing.T) {
	forge, err := guest.Open(t.Context(), w.Stack.Stack)
	harness.Must(t, err)
	profile := w.profile(t, func(k *sealed.KeySpec) { k.Risk = sealed.RiskHigh })
	g := w.guest(t, forge, profile)
	w.approve(t, g)
	file := filepath.Join(t.TempDir(), "snapshot")
	w.operator(t, "save", file)
	_, err = g.Creds(t.Context(), "KEY", "approved-0000001")
	harness.Must(t, err)
	w.run(t).Want(t, 0) // and remembers the log's head
	lost, err := w.Engine(t, "auditor").LogReader().Checkpoint(t.Context())
	harness.Must(t, err)

	w.restore(t, file)
	if _, err := g.Creds(t.Context(), "KEY", "approved-0000002"); err != nil {
		t.Errorf("control: the approval is there again: %v", err)
	}
	w.restore(t, file)
	r := w.run(t).Want(t, sealed.ExitSealed)
	if !strings.Contains(r.Stderr, "went back") {
		t.Errorf("stderr: %s", r.Stderr)
	}
	w.wantStopped(t, g)
	old, back := w.killLeader(t)
	w.newLeader(t, old)
	w.wantStopped(t, g)
	back()
	w.attested(t, g, lost)
}

// run is a run of sealedctl that does nothing.
func (w *world) run(t *testing.T) harness.Result {
	t.Helper()
	return w.Ctl(t, harness.Caller{}, "run", "--agent", string(agentName), "--mode", "identity", "--no-workspace", "--", "/bin/true")
}

func (w *world) approve(t *testing.T, g *guest.Guest) {
	t.Helper()
	_, err := g.Creds(t.Context(), "KEY", "approved-0000001")
	if !errors.Is(err, sealed.ErrApprovalRequired) {
		t.Fatalf("without an approval: %v", err)
	}
	run, err := w.Engine(t, "operator").Run(t.Context(), g.Run)
	harness.Must(t, err)
	for id := range run.Approvals {
		e := w.Engine(t, "approver")
		a, err := e.Approval(t.Context(), id)
		harness.Must(t, err)
		_, err = e.Approve(t.Context(), id, a.Digest)
		harness.Must(t, err)
	}
}

func (w *world) wantStopped(t *testing.T, g *guest.Guest) {
	t.Helper()
	if _, err := g.Creds(t.Context(), "KEY", "approved-0000003"); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("issuing: %v", err)
	}
	if _, err := w.Engine(t, "operator").Enqueue(t.Context(), request(t, "cluster/any")); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("enqueueing: %v", err)
	}
	_, err := w.Engine(t, "operator").Revoke(t.Context(), sealed.Revocation{Kind: sealed.RevokeKey, Target: "NOBODY_HAS_IT", Reason: "stopping works"})
	if err != nil {
		t.Errorf("revoking: %v", err)
	}
}

// attested has the administrator attest, and looks at what is left.
func (w *world) attested(t *testing.T, g *guest.Guest, lost []byte) {
	t.Helper()
	admin := w.Engine(t, "admin")
	st, err := admin.Rollback(t.Context())
	harness.Must(t, err)
	if !st.RolledBack || st.LostSize <= st.RestoredSize || st.Lost == "" {
		t.Fatalf("%+v", st)
	}
	if _, err := w.Engine(t, "operator").AttestRollback(t.Context(), st.LostSize, 1, 0, "I do not mind"); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("the operator attests: %v", err)
	}
	aborted, err := admin.AttestRollback(t.Context(), st.LostSize, 1, 0, "restored after a test")
	harness.Must(t, err)
	if aborted == 0 {
		t.Error("no run was aborted")
	}
	if _, err := g.Creds(t.Context(), "KEY", "approved-0000004"); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("the approval of before: %v", err)
	}
	// Whoever remembers the lost history is told so, and decides.
	r := w.run(t).Want(t, sealed.ExitSealed)
	pins, err := filepath.Glob(filepath.Join(r.StateDir, "pins", "*.checkpoint"))
	if err != nil || len(pins) != 1 || !strings.Contains(r.Stderr, "given up") || !strings.Contains(r.Stderr, pins[0]) {
		t.Errorf("%v: %s", pins, r.Stderr)
	}
	for _, pin := range pins {
		harness.Must(t, os.Remove(pin))
	}
	w.run(t).Want(t, 0)
	w.Verify(t)
	if _, err := audit.VerifyDir(w.Pull(t), audit.Options{VerifierKey: w.LogKey(t), Pinned: lost}); !errors.Is(err, audit.ErrInconsistent) {
		t.Errorf("control: the lost head is no part of the log: %v", err)
	}
}
