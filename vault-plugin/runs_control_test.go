package vaultplugin

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// TestControlsOff shows that each attack works once its control is off: the
// tests of the controls can fail.
func TestControlsOff(t *testing.T) {
	t.Run("recheck after the mint", func(t *testing.T) { // F11
		w := newWorld(t)
		w.b.mem.off.recheck = true
		g := w.claimed(idem(1))
		w.dyn.minting = func(string) error { w.revoke(sealed.RevokeKey, "DYN", true); return nil }
		if _, _, err := g.creds("DYN", idem(2)); err != nil {
			t.Errorf("the revocation was seen without the check: %v", err)
		}
	})
	t.Run("binding of the token", func(t *testing.T) { // R03
		w := newWorld(t)
		w.b.mem.off.binding = true
		a, b := w.claimed(idem(1)), w.claimed(idem(2))
		if _, err := b.callAs(a.entity, a.accessor, b.key, b.path("creds/LOW"), sealed.CredsRequest{
			Run: b.run, Path: b.path("creds/LOW"), Idempotency: idem(3), Delivery: sealed.DeliveryProxy}); err != nil {
			t.Errorf("another run's token was refused without the check: %v", err)
		}
	})
	t.Run("measurement", func(t *testing.T) { // R05
		w := newWorld(t)
		w.b.mem.off.measure = true
		q := w.enqueue(idem(1))
		g := w.guest(q, "agent-1", "acc")
		if err := g.sendClaim(g.claimDoc(q.Ticket, w.ownUID(), func(c *sealed.Claim) {
			c.Measurement.CommandDigest = sealed.CommandDigest([]string{"evil"})
		}, nil)); err != nil {
			t.Errorf("another command was refused without the check: %v", err)
		}
	})
	t.Run("self-approval", func(t *testing.T) { // E20
		w := newWorld(t)
		w.b.mem.off.self = true
		w.sys.person("op", nil, "release-eng", "approvers")
		id := w.claimed(idem(1)).pendingID("HIGH", idem(2))
		if err := w.vote("op", id, "approve"); err != nil {
			t.Errorf("the requester's vote was refused without the check: %v", err)
		}
	})
	t.Run("consumption", func(t *testing.T) { // E21
		w := newWorld(t)
		w.b.mem.off.consume = true
		g := w.claimed(idem(1))
		if err := w.vote("ann", g.pendingID("HIGH", idem(2)), "approve"); err != nil {
			t.Fatal(err)
		}
		var issued atomic.Int32
		var all sync.WaitGroup
		for i := range 5 {
			all.Go(func() {
				if _, _, err := g.creds("HIGH", idem(10+i)); err == nil {
					issued.Add(1)
				}
			})
		}
		all.Wait()
		if issued.Load() != 5 {
			t.Errorf("%d of 5 issued without consumption", issued.Load())
		}
	})
}

func TestNoLogNoGrant(t *testing.T) { // G11, F18
	w := newWorld(t)
	g := w.claimed(idem(1))
	w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeLog), false })
	_, _, err := g.creds("DYN", idem(2))
	wantCode(t, err, 503)
	_, err = w.tryEnqueue("op", enqueueSpec(idem(3)))
	wantCode(t, err, 503)
	w.s.setFail(nil)
	if w.dyn.minted != 0 {
		t.Error("minted without an entry")
	}
	if rows := g.rows(); len(rows) != 0 {
		t.Errorf("an intent without an entry: %v", rows)
	}
	if _, _, err := g.creds("DYN", idem(4)); err != nil {
		t.Fatalf("control: with the log back: %v", err)
	}
}

func TestRevocationDoesNotWaitForTheLog(t *testing.T) { // §11
	w := newWorld(t)
	g := w.claimed(idem(1))
	w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeLog), false })
	_, _, err := g.creds("LOW", idem(2)) // after it the runs are read again, the log among them
	wantCode(t, err, 503)
	w.revoke(sealed.RevokeRun, string(g.run), true)
	if got := g.watch(0); got.Order != sealed.OrderAbort {
		t.Fatalf("watch %+v", got)
	}
	w.s.setFail(nil)
	w.b.worker.tick(context.Background(), w.s)
	w.wantEntry("run.aborted", "revocation ")
}

// TestIssueWrites holds the price of a static key: one write, of the entry with
// the intent.
func TestIssueWrites(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	w.s.setFail(nil)
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatal(err)
	}
	if n := w.s.count(); n != 1 {
		t.Errorf("%d storage writes, want 1", n)
	}
	w.s.setFail(nil)
	w.b.worker.tick(context.Background(), w.s)
	g.watch(0)
	if n := w.s.count(); n != 0 {
		t.Errorf("%d storage writes of an idle tick and a watch, want 0", n)
	}
}

func TestWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.b.worker.start()
		w.b.worker.start() // a second start is nothing
		defer w.b.worker.stop()
		g := w.claimed(idem(1))
		a, _, err := g.creds("DYN", idem(2))
		if err != nil {
			t.Fatal(err)
		}
		if err := g.confirm(a); err != nil {
			t.Fatal(err)
		}
		w.clock.add(16 * time.Second)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		w.wantEntry("run.closed", "silent")
		if w.dyn.alive() != 0 {
			t.Error("still there upstream")
		}
	})
}

func TestSeamForPreviewAndPins(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	g := w.claimed(idem(1))
	if _, _, err := g.creds("DYN", idem(2)); err != nil {
		t.Fatal(err)
	}
	runs, prefixes, grants, err := w.b.affected(ctx, w.s, sealed.Revocation{Kind: sealed.RevokeSource, Target: "dyn", Hard: true})
	if err != nil || len(runs) != 1 || prefixes[0] != g.path("creds/") || grants != 1 {
		t.Fatalf("%v %v %d %v", runs, prefixes, grants, err)
	}
	if pinned, err := w.b.livePins(ctx, w.s, g.answer.Bundle.Digest); err != nil || !pinned {
		t.Fatalf("pinned %v %v", pinned, err)
	}
	w.must("op", g.path("close"), map[string]any{"reason": "test"})
	if pinned, err := w.b.livePins(ctx, w.s, g.answer.Bundle.Digest); err != nil || pinned {
		t.Fatalf("pinned after the end: %v %v", pinned, err)
	}
}

func TestListAndReadShowNoSecret(t *testing.T) {
	w := newWorld(t)
	q := w.enqueue(idem(1))
	for _, path := range []string{"runs/" + string(q.Run), "approvals/" + string(q.Keys[0].Approval)} {
		resp, err := w.do("op", "", logical.ReadOperation, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(w.json(resp.Data), q.Ticket) {
			t.Errorf("%s shows the ticket", path)
		}
	}
	_, err := w.do("op", "", logical.ReadOperation, "runs/01JNAAAAAAAAAAAAAAAAAAAAAA", nil)
	wantCode(t, err, 403)
}

// FuzzClaim feeds claims from nobody: no panic, never a binding.
func FuzzClaim(f *testing.F) {
	w := newWorld(f)
	q := w.enqueue(idem(1))
	g := w.guest(q, "agent-1", "acc")
	good := g.claimDoc("wrong ticket", w.ownUID(), nil, nil)
	f.Add(w.json(good))
	f.Add(`{"payload":"{}","svid":[],"svid_signature":"","run_signature":""}`)
	f.Add(`{"payload":"{\"run\":\"` + string(q.Run) + `\"}","svid":["AAAA"],"svid_signature":"AA==","run_signature":"AA=="}`)
	f.Add("null")
	f.Fuzz(func(t *testing.T, claim string) {
		_, err := w.do("agent-1", "acc", logical.UpdateOperation, g.path("claim"), map[string]any{"claim": claim})
		if err == nil {
			t.Fatal("claimed without the ticket")
		}
	})
}

// FuzzOneUser: whatever maps another uid, more than one, or root is refused.
func FuzzOneUser(f *testing.F) {
	for _, s := range []string{"0 0 1", "1000 65536 1", "1000 0 2", "", "a b c"} {
		f.Add(s, 1000)
	}
	f.Fuzz(func(t *testing.T, line string, uid int) {
		fields := strings.Fields(line)
		if oneUser(line, uid) && (uid <= 0 || len(fields) != 3 || fields[2] != "1") {
			t.Fatalf("%q passed for %d", line, uid)
		}
	})
}

// TestEnqueueCrash kills the process at each write of an enqueue: the repeated
// call makes the one run, and no approval of a run that never was stays.
func TestEnqueueCrash(t *testing.T) {
	for n := 1; n <= 8; n++ {
		for _, after := range []bool{false, true} {
			w := newWorld(t)
			w.s.setFail(func(i int, _ string) (bool, bool) { return i > n || (i == n && !after), i == n && after })
			_, first := w.tryEnqueue("op", enqueueSpec(idem(1)))
			w.s.setFail(nil)
			w.open()
			q := w.enqueue(idem(1))
			runs, err := w.s.List(context.Background(), storeRunsLive)
			if err != nil || len(runs) != 1 {
				t.Fatalf("write %d after=%v (%v): runs %v %v", n, after, first, runs, err)
			}
			g := w.guest(q, "agent-1", "acc")
			if err := g.sendClaim(g.claimDoc(q.Ticket, w.ownUID(), nil, nil)); err != nil {
				t.Errorf("write %d after=%v: %v", n, after, err)
			}
			if err := w.vote("ann", g.pendingID("HIGH", idem(2)), "approve"); err != nil {
				t.Errorf("write %d after=%v: %v", n, after, err)
			}
			if _, _, err := g.creds("HIGH", idem(3)); err != nil {
				t.Errorf("write %d after=%v: %v", n, after, err)
			}
		}
	}
}

// TestObligedTTL: a policy's TTL bounds each period of the lease, a person
// sees the longest life, and no renewal goes beyond it.
func TestObligedTTL(t *testing.T) {
	w := newWorld(t)
	w.policies["bundle 2"] = func(q string, in any) sealed.Decision {
		d := defaultPolicy(q, in)
		d.Obligations.TTL = 60
		return d
	}
	w.policy("bundle 2")
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if !strings.Contains(string(w.view(id).Object), `"ttl":3600,`) {
		t.Errorf("object %s", w.view(id).Object)
	}
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	a, resp, err := g.creds("HIGH", idem(3))
	if err != nil || a.TTL != 60 || resp.Secret.TTL != time.Minute || resp.Secret.MaxTTL != time.Hour {
		t.Fatalf("%+v %+v %v", a, resp, err)
	}
	if err := g.confirm(a); err != nil {
		t.Fatal(err)
	}
	for range 357 {
		w.clock.add(10 * time.Second)
		g.watch(0)
	}
	renewed, err := w.lease(logical.RenewOperation, resp)
	if err != nil || renewed.Secret.TTL != 30*time.Second {
		t.Fatalf("%+v %v", renewed, err)
	}
	w.clock.add(30 * time.Second)
	_, err = w.lease(logical.RenewOperation, resp)
	wantCode(t, err, 403)
}
