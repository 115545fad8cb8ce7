package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/cascade"
	"sealed.dev/sealed/internal/sealed"
)

// approved claims a run and has a key approved.
func approved(t *testing.T) (*world, *guest, sealed.ApprovalID) {
	t.Helper()
	w := newWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	return w, g, id
}

// unacknowledged makes an intent under an approval whose one write was done and
// answered with an error.
func unacknowledged(t *testing.T) (*world, *guest, sealed.ApprovalID) {
	t.Helper()
	w, g, id := approved(t)
	w.s.setFail(func(n int, _ string) (bool, bool) { return n > 1, n == 1 })
	_, _, err := g.creds("HIGH", idem(3))
	wantCode(t, err, 503)
	w.s.setFail(nil)
	return w, g, id
}

// rows are the keys of the grants of a run that have a row of their own.
func (g *guest) rows() []string {
	g.w.t.Helper()
	rows, err := g.w.s.List(context.Background(), storeGrants+string(g.run)+"/")
	if err != nil {
		g.w.t.Fatal(err)
	}
	return rows
}

// TestUnmintedIntent: an intent that became durable and was never minted uses
// up its approval and leaves an entry however it ends, in the process that wrote
// it and in the next.
func TestUnmintedIntent(t *testing.T) { // E21, E22
	ctx := context.Background()
	for name, end := range map[string]func(*world, *guest){
		"asked again": func(w *world, g *guest) {
			_, _, err := g.creds("HIGH", idem(3))
			wantCode(t, err, 403)
		},
		"by the clock": func(w *world, g *guest) {
			w.clock.add(11 * time.Second)
			w.b.worker.tick(ctx, w.s)
		},
		"with its run": func(w *world, g *guest) {
			w.must("op", g.path("close"), map[string]any{"reason": "test"})
			w.clock.add(time.Minute)
			w.b.worker.tick(ctx, w.s)
			if rows := g.rows(); len(rows) != 0 {
				t.Errorf("not archived: %v", rows)
			}
		},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %v", name, restarted), func(t *testing.T) {
				w, g, id := unacknowledged(t)
				if restarted {
					w.open()
				}
				if v := w.view(id); v.State != sealed.ApprovalConsumed {
					t.Errorf("approval is %s", v.State)
				}
				end(w, g)
				w.wantEntry("issue.intent", string(id))
				w.wantEntry("issue.failed", string(id), outcomeCrashed)
				if v := w.view(id); v.State != sealed.ApprovalConsumed {
					t.Errorf("approval is %s", v.State)
				}
			})
		}
	}
}

// TestUnwrittenIntent: when the write fails, nobody in this process can know
// whether it will show up, so the approval counts as used; the next process reads
// that it did not.
func TestUnwrittenIntent(t *testing.T) {
	fail := func(t *testing.T) (*world, *guest, sealed.ApprovalID) {
		w, g, id := approved(t)
		w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeLog), false })
		_, _, err := g.creds("HIGH", idem(3))
		wantCode(t, err, 503)
		if v := w.view(id); v.State != sealed.ApprovalConsumed {
			t.Errorf("approval is %s while nobody knows", v.State)
		}
		w.s.setFail(nil)
		return w, g, id
	}
	t.Run("the process goes on", func(t *testing.T) {
		w, g, id := fail(t)
		_, _, err := g.creds("HIGH", idem(3))
		wantCode(t, err, 403)
		if next := g.pendingID("HIGH", idem(4)); next == id {
			t.Error("the approval is pending again")
		}
		w.wantEntry("issue.intent", string(id))
		w.wantEntry("issue.failed", string(id))
	})
	t.Run("the process dies", func(t *testing.T) {
		w, g, id := fail(t)
		w.open()
		if a, _, err := g.creds("HIGH", idem(3)); err != nil || string(a.Grant) != string(id) {
			t.Fatalf("%+v %v", a, err)
		}
		if next := g.pendingID("HIGH", idem(4)); next == id {
			t.Error("the approval was used twice")
		}
	})
}

// TestGivenUpIntent: a call that gives up before the log's turn has come to it
// leaves nothing, and costs the mount nothing: whoever asks and goes away does not
// make it read all runs again.
func TestGivenUpIntent(t *testing.T) {
	w, g, id := approved(t)
	r, err := w.b.run(context.Background(), w.s, g.run)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	row := grantRow{ID: sealed.GrantID(id), Run: g.run, Key: "HIGH", Approval: id, State: grantIntent}
	if err := w.b.writeIntent(ctx, w.s, r, row, verdict{bundle: rules{base: w.active()}, terms: keyTerms{key: &cascade.Key{}}}, time.Time{}, w.b.journal.expect()); !errors.Is(err, audit.ErrGaveUp) {
		t.Fatalf("%v, want a call that gave up", err)
	}
	if w.b.live == nil {
		t.Error("the index was dropped")
	}
	if a, _, err := g.creds("HIGH", idem(3)); err != nil || string(a.Grant) != string(id) {
		t.Errorf("%+v %v", a, err)
	}
}

// TestDisabledCaller: Vault's word about the caller comes in while the intent
// is written; without it nothing is read, minted or answered.
func TestDisabledCaller(t *testing.T) {
	setup := func() (*world, *guest) {
		w := newWorld(t)
		g := w.claimed(idem(1))
		w.sys.mu.Lock()
		defer w.sys.mu.Unlock()
		w.sys.entities["agent-1"] = &logical.Entity{ID: "agent-1", Disabled: true, Aliases: w.sys.entities["agent-1"].Aliases}
		w.clock.add(lookupGood)
		return w, g
	}
	w, g := setup()
	for i, key := range []string{"LOW", "DYN", "HIGH", "OTHER", "NO_SUCH_KEY"} {
		_, _, err := g.creds(key, idem(2+i))
		wantCode(t, err, 403)
		if err.Error() != errRefused.Error() {
			t.Errorf("%s: answer %q tells more than %q", key, err, errRefused)
		}
	}
	if w.dyn.minted != 0 {
		t.Error("a source was asked")
	}
	x, err := w.b.index(context.Background(), w.s)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range x.grants(g.run) {
		if row.held() || row.Ciphertext != "" {
			t.Errorf("grant of %s is %s", row.Key, row.State)
		}
	}
	if text := strings.Join(w.logged(), "\n"); strings.Contains(text, "policy.denied") || strings.Contains(text, `"key":"HIGH","what":"request`) {
		t.Error("acted on behalf of a caller that Vault does not vouch for")
	}
	w.wantEntry("call.refused", `"what":"spiffe_id"`)
	w.wantEntry("issue.failed", `"what":"caller"`)
	t.Run("control off", func(t *testing.T) {
		w, g := setup()
		w.b.mem.off.binding = true
		if _, _, err := g.creds("LOW", idem(2)); err != nil {
			t.Errorf("refused without the check: %v", err)
		}
	})
}

// TestStaticGrantOfADeadProcess: a static grant that nobody confirmed is an
// intent in storage. Another process ends it and serves a new request.
func TestStaticGrantOfADeadProcess(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	a, resp, err := g.creds("LOW", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	if again, _, err := g.creds("LOW", idem(2)); err != nil || again.Grant != a.Grant { // stored by the resumption
		t.Fatalf("%+v %v", again, err)
	}
	b, _, err := g.creds("LOW", idem(3))
	if err != nil {
		t.Fatal(err)
	}
	w.open()
	if _, err := w.lease(logical.RevokeOperation, resp); err != nil {
		t.Fatal(err)
	}
	wantCode(t, g.confirm(b), 403)
	_, _, err = g.creds("LOW", idem(3))
	wantCode(t, err, 403)
	c, _, err := g.creds("LOW", idem(4))
	if err != nil || g.confirm(c) != nil {
		t.Fatalf("a new request: %v", err)
	}
	w.open()
	if err := g.confirm(c); err != nil {
		t.Errorf("a confirmed one did not survive: %v", err)
	}
}

// TestRequesterOfASecondAgo: a requester who lost a group loses it here within
// lookupGood.
func TestRequesterOfASecondAgo(t *testing.T) {
	w := newWorld(t)
	w.policies["bundle 2"] = func(q string, in any) sealed.Decision {
		if in, ok := in.(sealed.Input); ok && !in.Run.WorkflowProven {
			return sealed.Deny("workflow_unproven", "")
		}
		return defaultPolicy(q, in)
	}
	w.policy("bundle 2")
	g := w.claimed(idem(1))
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatalf("control: %v", err)
	}
	w.sys.person("op", nil, "interns")
	w.clock.add(lookupGood)
	_, _, err := g.creds("LOW", idem(3))
	wantCode(t, err, 403)
}

// TestAgentOfASecondAgo: an alias that was taken away ends the calls of its runs
// within lookupGood, another configuration at once, and a no is not remembered.
func TestAgentOfASecondAgo(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	was := w.sys.entities["agent-1"]
	alias := func(e *logical.Entity) {
		w.sys.mu.Lock()
		defer w.sys.mu.Unlock()
		w.sys.entities["agent-1"] = e
	}
	alias(&logical.Entity{ID: "agent-1"})
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatalf("within lookupGood of the claim: %v", err)
	}
	w.clock.add(lookupGood)
	_, _, err := g.creds("LOW", idem(3))
	wantCode(t, err, 403)
	alias(was)
	if _, _, err := g.creds("LOW", idem(4)); err != nil {
		t.Fatalf("the no was remembered: %v", err)
	}
	w.must("op", "config", map[string]any{"agent_accessor": "another"})
	_, _, err = g.creds("LOW", idem(5))
	wantCode(t, err, 403)
}

// TestSpentRunWritesNothing: R23, and the index is as good as it was.
func TestSpentRunWritesNothing(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	w.b.mem.spend(g.run)
	w.s.setFail(nil)
	for i := range 3 {
		_, _, err := g.creds("LOW", idem(2+i))
		wantCode(t, err, 429)
	}
	if n := w.s.count(); n != 0 {
		t.Errorf("%d writes", n)
	}
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if w.b.live == nil {
		t.Error("the index was dropped: whoever floods makes the mount read everything again")
	}
}
