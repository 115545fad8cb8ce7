package vaultplugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

func (w *world) lease(op logical.Operation, resp *logical.Response) (*logical.Response, error) {
	return w.b.HandleRequest(context.Background(), &logical.Request{
		Operation: op, Path: "sealed/lease", Storage: w.s, Secret: resp.Secret, Data: resp.Data})
}

func TestApproval(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if again := g.pendingID("HIGH", idem(3)); again != id {
		t.Fatalf("a second approval %s beside %s", again, id)
	}
	w.sys.person("eve", nil, "interns")
	for name, tc := range map[string]struct {
		entity string
		code   int
	}{"requester": {"op", 403}, "not an approver": {"eve", 403}, "agent": {"agent-1", 403}, "root": {"", 403}} {
		if err := w.vote(tc.entity, id, "approve"); code(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.wantEntry("approval.self")
	_, err := w.do("ann", "", logical.UpdateOperation, "approvals/"+string(id)+"/approve", map[string]any{"digest": strings.Repeat("0", 64)})
	wantCode(t, err, 409)
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	a, _, err := g.creds("HIGH", idem(4))
	if err != nil || string(a.Grant) != string(id) || g.value(a) != canary {
		t.Fatalf("%+v %v", a, err)
	}
	if v := w.view(id); v.State != sealed.ApprovalConsumed {
		t.Errorf("state %s", v.State)
	}
	wantCode(t, w.vote("bob", id, "approve"), 409)
	w.wantEntry("approval.replayed")
	if next := g.pendingID("HIGH", idem(5)); next == id { // E18
		t.Error("a consumed approval is pending again")
	}
}

func TestApprovalDenied(t *testing.T) { // E25
	w := newWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	if err := w.vote("bob", id, "deny"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.vote("ann", id, "approve"), 409)
	_, _, err := g.creds("HIGH", idem(3))
	wantCode(t, err, 403)
}

func TestApprovalQuorum(t *testing.T) { // E20, R24
	w := newWorld(t)
	w.must("op", "config", map[string]any{"person_claim": "hr_id"})
	w.sys.person("op", map[string]string{"hr_id": "1"}, "release-eng")
	w.sys.person("ann", map[string]string{"hr_id": "2"}, "approvers")
	w.sys.person("ann-oidc", map[string]string{"hr_id": "2"}, "approvers")
	w.sys.person("op-oidc", map[string]string{"hr_id": "1"}, "approvers")
	w.sys.person("nobody", nil, "approvers")
	w.sys.person("bob", map[string]string{"hr_id": "3"}, "approvers")
	w.policies["bundle 2"] = func(q string, in any) sealed.Decision { // a wrong policy: everybody may vote
		if q == sealed.QuestionApproval {
			return sealed.Decision{Effect: sealed.EffectAllow}
		}
		return defaultPolicy(q, in)
	}
	w.policy("bundle 2")
	g := w.claimed(idem(1))
	id := g.pendingID("CRITICAL", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.vote("ann", id, "approve"), 409)
	wantCode(t, w.vote("ann-oidc", id, "approve"), 409)
	wantCode(t, w.vote("op-oidc", id, "approve"), 403)
	wantCode(t, w.vote("nobody", id, "approve"), 403)
	g.pendingID("CRITICAL", idem(3))
	if err := w.vote("bob", id, "approve"); err != nil {
		t.Fatal(err)
	}
	w.sys.mu.Lock()
	w.sys.groups["bob"] = nil // no longer an approver
	w.sys.mu.Unlock()
	if next := g.pendingID("CRITICAL", idem(4)); next == id {
		t.Error("a vote of somebody who lost the right still counts")
	}
	w.wantEntry("approval.void", "approvers")
}

func TestApprovalExpires(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	for range 70 {
		w.clock.add(10 * time.Second)
		g.watch(0)
	}
	if next := g.pendingID("HIGH", idem(3)); next == id {
		t.Error("an expired yes is still good")
	}
	wantCode(t, w.vote("bob", id, "approve"), 409)
	w.wantEntry("approval.expired")
}

func TestPolicyChangeVoidsApproval(t *testing.T) { // E17
	w := newWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	w.policy("bundle 2")
	next := g.pendingID("HIGH", idem(3))
	if next == id {
		t.Fatal("the approval of another bundle was used")
	}
	w.wantEntry("approval.void", `"what":"bundle"`)
	if err := w.vote("bob", next, "approve"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.creds("HIGH", idem(4)); err != nil {
		t.Fatal(err)
	}
	t.Run("a stricter bundle denies what the pinned one allows", func(t *testing.T) {
		w.policies["bundle 3"] = func(string, any) sealed.Decision { return sealed.Deny("closed", "") }
		w.policy("bundle 3")
		_, _, err := g.creds("LOW", idem(5))
		wantCode(t, err, 403)
	})
	t.Run("a laxer bundle does not widen the pinned one", func(t *testing.T) {
		w.policies["bundle 4"] = func(string, any) sealed.Decision { return sealed.Decision{Effect: sealed.EffectAllow} }
		w.policy("bundle 4")
		_, _, err := g.creds("OTHER", idem(6))
		wantCode(t, err, 403)
	})
}

func TestProfileChangeAfterEnqueue(t *testing.T) { // E19
	for name, tc := range map[string]struct {
		change func(*sealed.KeySpec)
		hosts  int // bindings left; 0: refused
	}{
		"nothing":         {func(*sealed.KeySpec) {}, 1},
		"another path":    {func(k *sealed.KeySpec) { k.Ref.Path = "ci/weak" }, 0},
		"another source":  {func(k *sealed.KeySpec) { k.Source = "dyn" }, 0},
		"another binding": {func(k *sealed.KeySpec) { k.Bindings[0].Host = "evil.example.com" }, 0},
		"one more binding": {func(k *sealed.KeySpec) {
			more := k.Bindings[0]
			more.Host = "evil.example.com"
			k.Bindings = append(k.Bindings, more)
		}, 1},
		"weaker delivery": {func(k *sealed.KeySpec) { k.Delivery = sealed.DeliveryEnv }, 1},
		"agent removed":   {func(k *sealed.KeySpec) { k.Agents = nil }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := w.claimed(idem(1))
			p := w.profile()
			p.Version = 1
			k := p.Keys["LOW"]
			tc.change(&k)
			p.Keys["LOW"] = k
			w.must("op", "profiles/workflow/team/release", map[string]any{"profile": w.json(p)})
			a, _, err := g.creds("LOW", idem(2))
			if tc.hosts == 0 {
				wantCode(t, err, 403)
				return
			}
			if err != nil || len(a.Bindings) != tc.hosts || a.Bindings[0].Host != "api.example.com" {
				t.Fatalf("%+v %v", a, err)
			}
			resp, err := g.call("creds/LOW", sealed.CredsRequest{Run: g.run, Path: g.path("creds/LOW"), Idempotency: idem(3), Delivery: sealed.DeliveryEnv})
			if wantCode(t, err, 403); resp != nil && resp.Secret != nil {
				t.Error("env delivery of a key that was enqueued as proxy")
			}
		})
	}
}

func TestOneApprovalManyIssues(t *testing.T) { // E21
	w := newWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	var (
		all    sync.WaitGroup
		mu     sync.Mutex
		grants = map[sealed.GrantID]int{}
	)
	for i := range 1000 {
		all.Go(func() {
			a, _, err := g.creds("HIGH", idem(100+i))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				grants[a.Grant]++
			} else if code(err) != 428 {
				t.Errorf("issue %d: %v", i, err)
			}
		})
	}
	all.Wait()
	if len(grants) != 1 || grants[sealed.GrantID(id)] != 1 {
		t.Fatalf("issued %v, want exactly one", grants)
	}
	w.open()
	if next := g.pendingID("HIGH", idem(2000)); next == id {
		t.Error("the approval is good again after a restart")
	}
}

func TestSameIdempotencyResumes(t *testing.T) { // R19
	w := newWorld(t)
	g := w.claimed(idem(1))
	a, first, err := g.creds("DYN", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	b, second, err := g.creds("DYN", idem(2))
	if err != nil || b.Grant != a.Grant || b.Ciphertext != a.Ciphertext || w.dyn.minted != 1 {
		t.Fatalf("%+v %v, %d minted", b, err, w.dyn.minted)
	}
	if _, err := w.lease(logical.RevokeOperation, first); err != nil { // of the dropped answer
		t.Fatal(err)
	}
	if err := g.confirm(b); err != nil {
		t.Fatalf("the older lease took the grant with it: %v", err)
	}
	if _, err := w.lease(logical.RevokeOperation, second); err != nil {
		t.Fatal(err)
	}
	wantCode(t, g.confirm(b), 403)
}

func TestLease(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	a, resp, err := g.creds("DYN", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.lease(logical.RenewOperation, resp)
	wantCode(t, err, 403) // not confirmed
	if err := g.confirm(a); err != nil {
		t.Fatal(err)
	}
	renewed, err := w.lease(logical.RenewOperation, resp)
	if err != nil || renewed.Secret.TTL != 15*time.Minute || len(renewed.Data) != 0 {
		t.Fatalf("%+v %v", renewed, err)
	}
	t.Run("soft revocation stops renewal", func(t *testing.T) {
		rev := w.revoke(sealed.RevokeKey, "DYN", false)
		_, err = w.lease(logical.RenewOperation, resp)
		wantCode(t, err, 403)
		if got := g.watch(0); got.Order != sealed.OrderContinue || len(got.Blocked) != 1 || got.Blocked[0] != "DYN" {
			t.Errorf("watch %+v", got)
		}
		w.must("op", "revocations/"+rev["id"].(string)+"/lift", map[string]any{"reason": "test"})
	})
	t.Run("within a second of the end", func(t *testing.T) { // F08
		for range 359 {
			w.clock.add(10 * time.Second)
			g.watch(0)
		}
		w.clock.add(9500 * time.Millisecond)
		_, err = w.lease(logical.RenewOperation, resp)
		wantCode(t, err, 403)
	})
	t.Run("revoke is idempotent and undoes upstream", func(t *testing.T) {
		for range 3 {
			if _, err := w.lease(logical.RevokeOperation, resp); err != nil {
				t.Fatal(err)
			}
		}
		w.b.worker.pay(context.Background(), w.s, "")
		if w.dyn.alive() != 0 {
			t.Error("still there upstream")
		}
	})
	t.Run("revoke after the run is gone", func(t *testing.T) { // F10
		if err := g.finish(g.record(nil)); err != nil {
			t.Fatal(err)
		}
		w.clock.add(time.Minute)
		w.b.worker.tick(context.Background(), w.s)
		if _, err := w.lease(logical.RevokeOperation, resp); err != nil {
			t.Fatal(err)
		}
		_, err = w.lease(logical.RenewOperation, resp)
		wantCode(t, err, 403)
	})
}

func TestUpstreamRevocationIsRetried(t *testing.T) { // F13
	w := newWorld(t)
	ctx := context.Background()
	g := w.claimed(idem(1))
	if _, _, err := g.creds("DYN", idem(2)); err != nil {
		t.Fatal(err)
	}
	w.dyn.broken = true
	w.revoke(sealed.RevokeRun, string(g.run), true)
	if got := g.watch(0); got.Order != sealed.OrderAbort {
		t.Fatalf("the run goes on: %+v", got)
	}
	for range alarmAfter {
		w.b.worker.pay(ctx, w.s, "")
		w.clock.add(maxBackoff)
	}
	w.wantEntry("lease.irrevocable")
	w.clock.add(time.Minute)
	w.b.worker.tick(ctx, w.s)
	w.dyn.broken = false
	w.open() // the debt survives the process
	w.b.worker.pay(ctx, w.s, "")
	if w.dyn.alive() != 0 {
		t.Error("never revoked")
	}
}

func TestHardRevocation(t *testing.T) {
	for kind, target := range map[string]func(*guest) string{
		sealed.RevokeKey:      func(*guest) string { return "team/release#DYN" },
		sealed.RevokeProfile:  func(*guest) string { return "team/release" },
		sealed.RevokeSource:   func(*guest) string { return "dyn" },
		sealed.RevokeIdentity: func(*guest) string { return testSPIFFE },
		sealed.RevokeRun:      func(g *guest) string { return string(g.run) },
		sealed.RevokeTenant:   func(*guest) string { return testTenant },
	} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			g, other := w.claimed(idem(1)), w.claimed(idem(2))
			a, resp, err := g.creds("DYN", idem(3))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := other.creds("LOW", idem(4)); err != nil {
				t.Fatal(err)
			}
			w.revoke(kind, target(g), true)
			wantCode(t, g.confirm(a), 403)
			got := g.watch(0)
			if got.Order != sealed.OrderAbort || len(got.Dead) != 1 {
				t.Fatalf("watch %+v", got)
			}
			_, err = w.lease(logical.RenewOperation, resp)
			wantCode(t, err, 403)
			wide := kind == sealed.RevokeProfile || kind == sealed.RevokeIdentity || kind == sealed.RevokeTenant
			if order := other.watch(0).Order; (order == sealed.OrderAbort) != wide {
				t.Errorf("the other run: %s", order)
			}
			w.b.worker.pay(context.Background(), w.s, "")
			if w.dyn.alive() != 0 {
				t.Error("still there upstream")
			}
			if err := g.finish(g.record(nil)); err != nil { // an aborted run may hand in its record
				t.Fatal(err)
			}
		})
	}
}

func TestRevokeWhileMinting(t *testing.T) { // F11, R09
	for name, hard := range map[string]bool{"hard": true, "soft": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := w.claimed(idem(1))
			entered, release := make(chan struct{}), make(chan struct{})
			w.dyn.minting = func(string) error { close(entered); <-release; return nil }
			result := make(chan error)
			go func() { _, _, err := g.creds("DYN", idem(2)); result <- err }()
			<-entered
			w.revoke(sealed.RevokeKey, "DYN", hard) // acknowledged while Mint hangs
			close(release)
			wantCode(t, <-result, 403)
			w.b.worker.pay(context.Background(), w.s, "")
			if w.dyn.alive() != 0 {
				t.Error("still there upstream")
			}
			w.wantEntry("issue.failed", "revoked")
		})
	}
	t.Run("control: without the revocation it is issued", func(t *testing.T) {
		w := newWorld(t)
		g := w.claimed(idem(1))
		w.dyn.minting = func(string) error { return nil }
		if _, _, err := g.creds("DYN", idem(2)); err != nil || w.dyn.alive() != 1 {
			t.Fatalf("%v, %d alive", err, w.dyn.alive())
		}
	})
}

func TestRevokeRaces(t *testing.T) { // F11, many interleavings
	w := newWorld(t)
	for i := range 60 {
		g := w.claimed(idem(10 * i))
		var all sync.WaitGroup
		all.Go(func() {
			a, _, err := g.creds("DYN", idem(10*i+1))
			if err == nil {
				_ = g.confirm(a)
			}
		})
		all.Go(func() { w.revoke(sealed.RevokeRun, string(g.run), true) })
		all.Wait()
		if order := g.watch(0).Order; order != sealed.OrderAbort {
			t.Fatalf("round %d: %s", i, order)
		}
	}
	w.b.worker.pay(context.Background(), w.s, "")
	if n := w.dyn.alive(); n != 0 {
		t.Errorf("%d credentials are alive after every run was revoked", n)
	}
}

func TestUnconfirmedIsRevoked(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	a, _, err := g.creds("DYN", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	w.clock.add(11 * time.Second)
	w.b.worker.tick(context.Background(), w.s)
	w.b.worker.pay(context.Background(), w.s, "")
	wantCode(t, g.confirm(a), 403)
	if w.dyn.alive() != 0 {
		t.Error("still there upstream")
	}
	w.wantEntry("issue.failed", outcomeUnconfirmed)
}

func TestSourceDown(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	w.dyn.minting = func(string) error { return errors.New("denied for token hvs.SECRET") }
	_, _, err := g.creds("DYN", idem(2))
	wantCode(t, err, 503)
	if strings.Contains(err.Error(), "hvs.") || strings.Contains(w.dump(), "hvs.SECRET") {
		t.Error("the source's error text got out")
	}
	w.dyn.minting = nil
	_, _, err = g.creds("DYN", idem(2))
	wantCode(t, err, 403) // nothing is minted twice under one key
	if _, _, err := g.creds("LOW", idem(3)); err != nil {
		t.Errorf("another key: %v", err)
	}
}

func TestNoValueInStorage(t *testing.T) { // R08, F17
	w := newWorld(t)
	g := w.claimed(idem(1))
	for i, key := range []string{"LOW", "DYN"} {
		a, resp, err := g.creds(key, idem(2+i))
		if err != nil {
			t.Fatal(err)
		}
		if text := w.json(resp.Data) + fmt.Sprint(resp.Secret.InternalData); strings.Contains(text, canary) {
			t.Error("the answer holds the value")
		}
		if err := g.confirm(a); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(w.dump(), canary) {
		t.Error("storage holds a value outside the built-in store")
	}
	if own, err := w.s.List(context.Background(), storeSecrets); err != nil || len(own) == 0 {
		t.Fatalf("control: the built-in store is empty: %v", err)
	}
}

// TestCrashAtEveryWrite kills the process at each storage write of one whole
// run, before the write and after it, and opens another over what is stored.
func TestCrashAtEveryWrite(t *testing.T) { // E22, F14
	script := func(w *world, g *guest) (issued map[sealed.GrantID]bool) {
		issued = map[sealed.GrantID]bool{}
		for i, key := range []string{"DYNHIGH", "DYN", "LOW"} {
			a, _, err := g.creds(key, idem(20+i))
			if err == nil && g.confirm(a) == nil {
				issued[a.Grant] = true
			}
		}
		return issued
	}
	setup := func() (*world, *guest, sealed.ApprovalID) {
		w := newWorld(t)
		g := w.claimed(idem(1))
		id := g.pendingID("DYNHIGH", idem(2))
		if err := w.vote("ann", id, "approve"); err != nil {
			t.Fatal(err)
		}
		return w, g, id
	}
	w, g, _ := setup()
	w.s.setFail(nil)
	if n := len(script(w, g)); n != 3 {
		t.Fatalf("control: %d issued without a crash", n)
	}
	writes := w.s.count()
	for n := 1; n <= writes; n++ {
		for _, after := range []bool{false, true} {
			w, g, id := setup()
			w.s.setFail(func(i int, _ string) (bool, bool) {
				// From the crash on nothing is written any more.
				return i > n || (i == n && !after), i == n && after
			})
			issued := script(w, g)
			w.s.setFail(nil)
			w.open()
			w.checkAfterCrash(fmt.Sprintf("write %d after=%v", n, after), g, id, issued)
		}
	}
	t.Logf("crashed at %d writes, before and after each", writes)
}

func (w *world) checkAfterCrash(name string, g *guest, id sealed.ApprovalID, issued map[sealed.GrantID]bool) {
	w.t.Helper()
	ctx := context.Background()
	x, err := w.b.index(ctx, w.s)
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	for _, row := range x.grants(g.run) {
		if !w.inLog(row.ID) {
			w.t.Errorf("%s: grant %s is not in the log", name, row.ID)
		}
		delete(issued, row.ID)
	}
	if len(issued) != 0 {
		w.t.Errorf("%s: init uses grants that storage does not know: %v", name, issued)
	}
	_, consumed := x.grant(g.run, sealed.GrantID(id))
	a, _, err := g.creds("DYNHIGH", idem(40))
	if consumed && err == nil {
		w.t.Errorf("%s: the approval was used twice (grant %s)", name, a.Grant)
	}
	if !consumed && err != nil {
		w.t.Errorf("%s: the approval is gone without a grant: %v", name, err)
	}
	// Whatever was minted and is not confirmed is revoked.
	w.clock.add(11 * time.Second)
	w.b.worker.tick(ctx, w.s)
	w.b.worker.pay(ctx, w.s, "")
	for _, row := range x.grants(g.run) {
		if !w.inLog(row.ID) {
			w.t.Errorf("%s: grant %s ended as %q without an entry", name, row.ID, row.Outcome)
		}
	}
	w.must("op", g.path("close"), map[string]any{"reason": "test"})
	w.b.worker.pay(ctx, w.s, "")
	if n := w.dyn.alive(); n != 0 {
		w.t.Errorf("%s: %d credentials are left upstream", name, n)
	}
}

func (w *world) inLog(id sealed.GrantID) bool {
	w.t.Helper()
	return strings.Contains(strings.Join(w.logged(), "\n"), `"grant":"`+string(id)+`"`)
}

func TestAmbiguousClaimBindsOnce(t *testing.T) {
	for n := 1; n <= 4; n++ {
		for _, after := range []bool{false, true} {
			w := newWorld(t)
			q := w.enqueue(idem(1))
			first, second := w.guest(q, "agent-1", "acc-1"), w.guest(q, "agent-2", "acc-2")
			w.s.setFail(func(i int, _ string) (bool, bool) { return i == n && !after, i == n && after })
			err1 := first.sendClaim(first.claimDoc(q.Ticket, w.ownUID(), nil, nil))
			w.s.setFail(nil)
			w.open()
			err2 := second.sendClaim(second.claimDoc(q.Ticket, w.ownUID(), nil, nil))
			if err1 == nil && err2 == nil {
				t.Errorf("write %d after=%v: the run was claimed twice", n, after)
			}
			if claims := strings.Count(strings.Join(w.logged(), "\n"), "run.claimed "); claims > 1 {
				t.Errorf("write %d after=%v: %d run.claimed entries", n, after, claims)
			}
		}
	}
}

func TestStopAndClose(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	_, err := w.do("", "", logical.UpdateOperation, g.path("stop"), map[string]any{"reason": "x"})
	wantCode(t, err, 403) // entity-less
	waiting := make(chan sealed.WatchAnswer)
	go func() {
		resp, err := g.call("watch", sealed.WatchRequest{Run: g.run, Path: g.path("watch"), Epoch: 1 << 40, Wait: sealed.Duration(time.Second)})
		var a sealed.WatchAnswer
		if err == nil {
			err = g.openAnswer(resp, &a)
		}
		if err != nil {
			t.Error(err)
		}
		waiting <- a
	}()
	w.must("op", g.path("stop"), map[string]any{"reason": "enough"})
	if a := <-waiting; a.Order != sealed.OrderAbort {
		t.Errorf("watch %+v", a)
	}
	_, _, err = g.creds("LOW", idem(2))
	wantCode(t, err, 403)
	w.must("op", g.path("close"), map[string]any{"reason": "init died"})
	w.wantEntry("run.closed", `"signed":false`)
	list, err := w.do("op", "", logical.ListOperation, "runs", map[string]any{"state": sealed.RunClosed})
	if err != nil || len(list.Data["keys"].([]string)) != 1 {
		t.Fatalf("%+v %v", list, err)
	}
}

func TestNoDecisionNoBundle(t *testing.T) {
	w := newWorld(t)
	if err := w.s.InmemStorage.Delete(context.Background(), storePolicy); err != nil {
		t.Fatal(err)
	}
	w.open()
	_, err := w.tryEnqueue("op", enqueueSpec(idem(1)))
	wantCode(t, err, 503)
}

func TestDamagedManifestIsAnError(t *testing.T) { // F15
	w := newWorld(t)
	g := w.claimed(idem(1))
	var r runRow
	if ok, err := get(context.Background(), w.s, storeRunsLive+string(g.run), &r); err != nil || !ok {
		t.Fatal(err)
	}
	r.Manifest = strings.Replace(r.Manifest, `"own_uid"`, `"same_uid"`, 1)
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.InmemStorage.Put(context.Background(), &logical.StorageEntry{Key: storeRunsLive + string(g.run), Value: raw}); err != nil {
		t.Fatal(err)
	}
	w.open()
	if _, _, err := g.creds("LOW", idem(2)); err == nil {
		t.Error("a damaged manifest was used")
	}
}
