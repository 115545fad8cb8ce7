package vaultplugin

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// unlogged makes an intent under an approval whose entry was lost: the log and
// taking back the row fail, and the process dies.
func unlogged(t *testing.T) (*world, *guest, sealed.ApprovalID) {
	t.Helper()
	w := newWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	stored := false
	w.s.setFail(func(_ int, key string) (bool, bool) {
		intent := strings.HasPrefix(key, storeGrants) && !stored
		stored = stored || intent
		return !intent, false
	})
	_, _, err := g.creds("HIGH", idem(3))
	wantCode(t, err, 503)
	w.s.setFail(nil)
	w.open()
	if w.inLog(sealed.GrantID(id)) {
		t.Fatal("control: the intent is in the log")
	}
	if rows, err := w.s.List(context.Background(), storeGrants+string(g.run)+"/"); err != nil || len(rows) != 1 {
		t.Fatalf("control: stored intents %v, %v", rows, err)
	}
	return w, g, id
}

// TestUnloggedIntent: an intent that storage has and the log has not is never
// minted, and leaves an entry however it ends: a consumed approval has one.
func TestUnloggedIntent(t *testing.T) { // E21, E22
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
			if rows, err := w.s.List(ctx, storeGrants+string(g.run)+"/"); err != nil || len(rows) != 0 {
				t.Errorf("not archived: %v %v", rows, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, g, id := unlogged(t)
			end(w, g)
			if !w.inLog(sealed.GrantID(id)) {
				t.Error("ended without an entry")
			}
			if v := w.view(id); v.State != sealed.ApprovalConsumed {
				t.Errorf("approval is %s", v.State)
			}
		})
	}
	t.Run("control off", func(t *testing.T) {
		w, g, id := unlogged(t)
		w.b.mem.off.ended = true
		_, _, err := g.creds("HIGH", idem(3))
		wantCode(t, err, 403)
		if w.inLog(sealed.GrantID(id)) {
			t.Error("the test shows nothing")
		}
	})
}

// TestUnloggedIntentIsTakenBack: when only the log fails, the approval is as it
// was, and good for one grant.
func TestUnloggedIntentIsTakenBack(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeLog), false })
	_, _, err := g.creds("HIGH", idem(3))
	wantCode(t, err, 503)
	w.s.setFail(nil)
	if a, _, err := g.creds("HIGH", idem(3)); err != nil || string(a.Grant) != string(id) {
		t.Fatalf("%+v %v", a, err)
	}
	if next := g.pendingID("HIGH", idem(4)); next == id {
		t.Error("the approval was used twice")
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

// TestSpentRunWritesNothing: R23, with intent and entry written side by side.
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
}
