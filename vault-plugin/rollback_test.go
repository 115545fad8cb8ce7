package vaultplugin

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// snapshot is what Vault's snapshot of the mount would hold.
func (w *world) snapshot() map[string][]byte {
	w.t.Helper()
	out := map[string][]byte{}
	err := logical.ScanView(context.Background(), w.s, func(key string) {
		e, err := w.s.Get(context.Background(), key)
		if err != nil || e == nil {
			w.t.Fatalf("reading %s: %v", key, err)
		}
		out[key] = append([]byte(nil), e.Value...)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// restore makes storage a snapshot's and starts a new process over it, as Vault
// does.
func (w *world) restore(snapshot map[string][]byte) {
	w.t.Helper()
	w.s = &faultStorage{}
	for key, value := range snapshot {
		if err := w.s.Put(context.Background(), &logical.StorageEntry{Key: key, Value: value}); err != nil {
			w.t.Fatal(err)
		}
	}
	w.open()
}

// head is the log's newest checkpoint and its size.
func (w *world) head() (text, size string) {
	w.t.Helper()
	resp, err := w.do("op", "", logical.ReadOperation, "log/checkpoint", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	text = resp.Data["checkpoint"].(string)
	return text, strings.Split(text, "\n")[1]
}

func (w *world) present(text string) (map[string]any, error) {
	resp, err := w.do("op", "", logical.UpdateOperation, "log/seen", map[string]any{"checkpoint": text})
	if err != nil {
		return nil, err
	}
	return resp.Data, nil
}

func (w *world) rolledBack() bool {
	w.t.Helper()
	resp, err := w.do("admin", "", logical.ReadOperation, "config/attest-rollback", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.Data["rolled_back"].(bool)
}

func (w *world) attest(size, policy, reason string) error {
	_, err := w.do("admin", "", logical.UpdateOperation, "config/attest-rollback", map[string]any{"lost_size": size, "policy_sequence": policy, "reason": reason})
	return err
}

// TestSeen: what the log continues, it proves, and nothing happens.
func TestSeen(t *testing.T) {
	w := newWorld(t)
	old, _ := w.head()
	for i := range 300 { // across a fold
		w.must("op", "secrets/more/"+strconv.Itoa(i), map[string]any{"value": "a value of no importance"})
	}
	got, err := w.present(old)
	if err != nil {
		t.Fatal(err)
	}
	newest, _ := w.head()
	if got["checkpoint"] != newest {
		t.Error("the answer is not the newest checkpoint")
	}
	keys, err := w.b.engineKeys(t.Context(), w.s)
	if err != nil {
		t.Fatal(err)
	}
	h, hashes, err := w.b.seen(t.Context(), w.s, []byte(old), "op")
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.CheckConsistency([]byte(old), h.text, hashes, h.verifier); err != nil {
		t.Error(err)
	}
	if keys.logVerifier == "" || w.rolledBack() {
		t.Error("rolled back")
	}
	for _, tt := range []struct{ name, text string }{
		{"empty", ""},
		{"no note", "hello"},
		{"another size, same signature", strings.Replace(newest, "\n3", "\n9", 1)},
		{"too large", strings.Repeat("x", 5000)},
		{"another log", func() string { o := newWorld(t); text, _ := o.head(); return text }()},
	} {
		_, err := w.present(tt.text)
		if tt.text == newest {
			t.Fatalf("%s: the same", tt.name)
		}
		wantCode(t, err, 400)
	}
	if w.rolledBack() {
		t.Error("a forged checkpoint stopped the mount")
	}
}

// TestRollback: a snapshot is restored, and with it an approval that was used,
// the policy before the last, and a shorter log.
func TestRollback(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	approval := g.pendingID("HIGH", idem(10))
	if err := w.vote("ann", approval, "approve"); err != nil {
		t.Fatal(err)
	}
	waiting := g.pendingID("DYNHIGH", idem(11))
	snapshot := w.snapshot()
	if _, _, err := g.creds("HIGH", idem(10)); err != nil { // uses the approval up
		t.Fatal(err)
	}
	w.policy("bundle 5")
	for i := range 5 {
		w.enqueue(idem(30 + i))
	}
	lost, lostSize := w.head()

	w.restore(snapshot)
	t.Run("control: nobody presents a proof", func(t *testing.T) {
		w.restore(snapshot)
		if _, _, err := g.creds("HIGH", idem(12)); err != nil {
			t.Errorf("an approval that was used up works again, as long as nobody knows: %v", err)
		}
	})
	w.restore(snapshot)
	kept, _ := w.head()
	if _, err := w.present(kept); err != nil || w.rolledBack() {
		t.Fatalf("what is older than the snapshot proves nothing: %v", err)
	}
	_, err := w.present(lost)
	wantCode(t, err, 503)
	for i := range 2 {
		if !w.rolledBack() {
			t.Fatal("not rolled back")
		}
		wantRefused(t, w, g, waiting)
		if i == 0 {
			w.open() // a restart or another leader forgets nothing
		}
	}
	t.Run("control: the refusal switched off", func(t *testing.T) {
		w.b.mem.off.rollback = true
		defer func() { w.b.mem.off.rollback = false }()
		if _, err := w.tryEnqueue("op", enqueueSpec(idem(20))); err != nil {
			t.Error(err)
		}
	})
	w.revoke("key", "team/release#DYN", false) // what stops works
	if err := w.vote("ann", waiting, "deny"); err != nil {
		t.Errorf("denying: %v", err)
	}

	wantCode(t, w.attest(lostSize, "5", ""), 400)
	wantCode(t, w.attest("1", "5", "restored"), 409)
	wantCode(t, w.attest(lostSize, "0", "restored"), 400)
	wantCode(t, w.attest(lostSize, "", "restored"), 400)
	if err := w.attest(lostSize, "5", "restored after the fire"); err != nil {
		t.Fatal(err)
	}
	wantAttested(t, w, g, lost, lostSize)
	t.Run("a second restore", func(t *testing.T) {
		newest, _ := w.head()
		w.restore(snapshot)
		_, err := w.present(newest)
		wantCode(t, err, 503)
	})
}

// wantRefused tries what a mount that was rolled back does not do.
func wantRefused(t *testing.T, w *world, g *guest, waiting sealed.ApprovalID) {
	t.Helper()
	_, err := w.tryEnqueue("op", enqueueSpec(idem(21)))
	wantCode(t, err, 503)
	_, _, err = g.creds("LOW", idem(22))
	wantCode(t, err, 503)
	wantCode(t, w.vote("bob", waiting, "approve"), 503)
	_, err = w.do("op", "", logical.UpdateOperation, "policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte("bundle 2"))})
	wantCode(t, err, 503)
	_, err = w.do("op", "", logical.DeleteOperation, "agents/"+testAgent, nil)
	wantCode(t, err, 503)
	_, err = w.b.HandleRequest(context.Background(), &logical.Request{Operation: logical.RenewOperation, Path: g.path("creds/LOW"), Storage: w.s})
	wantCode(t, err, 503)
}

func wantAttested(t *testing.T, w *world, g *guest, lost, lostSize string) {
	t.Helper()
	w.wantEntry("log.rollback_attested", "restored after the fire", strings.Split(lost, "\n")[2])
	w.wantEntry("log.lost")
	if _, size := w.head(); mustNumber(t, size) <= mustNumber(t, lostSize) {
		t.Errorf("the log has %s entries, and %s were lost", size, lostSize)
	}
	if w.rolledBack() {
		t.Error("still rolled back")
	}
	if _, _, err := g.creds("HIGH", idem(12)); err == nil {
		t.Error("an approval was used twice")
	}
	_, err := w.tryEnqueue("op", enqueueSpec(idem(23)))
	wantCode(t, err, 503) // the policy in force is not the newest there was
	for _, old := range []string{"bundle 1", "bundle 4"} {
		_, err := w.do("op", "", logical.UpdateOperation, "policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte(old))})
		wantCode(t, err, 400)
	}
	w.policy("bundle 5")
	if _, err := w.tryEnqueue("op", enqueueSpec(idem(24))); err != nil {
		t.Error(err)
	}
	_, err = w.present(lost) // somebody who has kept it
	wantCode(t, err, 409)
	if w.rolledBack() {
		t.Error("a history that was given up stopped the mount")
	}
}

func mustNumber(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRollbackInterrupted: wherever an attestation dies, the mount stays stopped,
// and the same attestation can be made again.
func TestRollbackInterrupted(t *testing.T) {
	w := newWorld(t)
	w.claimed(idem(1))
	snapshot := w.snapshot()
	w.enqueue(idem(2))
	lost, size := w.head()
	for n := 1; ; n++ {
		w.restore(snapshot)
		_, err := w.present(lost)
		wantCode(t, err, 503)
		w.s.setFail(func(i int, _ string) (bool, bool) { return i == n, false })
		err = w.attest(size, "3", "meant")
		done := w.s.count() < n
		w.s.setFail(nil)
		if done {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		if err == nil {
			continue // a failure of housekeeping
		}
		w.open()
		if !w.rolledBack() {
			t.Fatalf("write %d failed, and the mount goes on: %v", n, err)
		}
		if err := w.attest(size, "3", "meant"); err != nil {
			t.Fatalf("again, after write %d failed: %v", n, err)
		}
	}
}

// TestRollbackUnwritten: a node that can't write the verdict gives none. It may
// be cut off, and behind.
func TestRollbackUnwritten(t *testing.T) {
	w := newWorld(t)
	snapshot := w.snapshot()
	w.enqueue(idem(1))
	lost, _ := w.head()
	w.restore(snapshot)
	w.s.setFail(func(int, string) (bool, bool) { return true, false })
	_, err := w.present(lost)
	wantCode(t, err, 503)
	w.s.setFail(nil)
	if w.rolledBack() {
		t.Error("rolled back without a write")
	}
}

func TestIssues(t *testing.T) {
	for path, want := range map[string]bool{
		"runs/R/creds/KEY": true, "runs/R/creds": true, "runs/R/creds/": true, "runs/R": false, "runs/R/watch": false, "watch": false, "runs/creds": false, "secrets/R/creds": false,
	} {
		if issues(path) != want {
			t.Errorf("issues(%q) is %t", path, !want)
		}
	}
}

func TestStops(t *testing.T) {
	run := "runs/01ARZ3NDEKTSV4RRFFQ69G5FAV"
	for path, want := range map[string]bool{
		"runs": false, "runs/": false, run: false, run + "/claim": false, run + "/creds/KEY": false, run + "/requests": false, run + "/replay": false,
		run + "/finish": true, run + "/stop": true, run + "/close": true, run + "/confirm": true, run + "/watch": true, run + "/creds/stop": false,
		"approvals/X/approve": false, "proposals/profile/X/confirm": false, "proposals/profile/X/reject": true, "approvals/X/deny": true, "revocations": true, "revocations/preview": true, "revocations/X/lift": false,
		"policy": false, "policy/overlay": false, "proposals/overlay/X/confirm": false, "secrets/finish": false, "log/seen": true, "config": true, "config/attest-rollback": true, "pools/x/claim": false, "": false,
	} {
		if stops(path) != want {
			t.Errorf("stops(%q) is %t", path, !want)
		}
	}
}
