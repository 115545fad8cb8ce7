package vaultplugin

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

func (w *world) watchHost(r sealed.HostWatchRequest) (a sealed.HostWatchAnswer, err error) {
	resp, err := w.do("op", "", logical.ReadOperation, "watch", map[string]any{"watch": w.json(r)})
	if err != nil {
		return a, err
	}
	keys, err := w.b.engineKeys(context.Background(), w.s)
	if err != nil {
		return a, err
	}
	var signed sealed.Signed
	if err := json.Unmarshal([]byte(resp.Data["answer"].(string)), &signed); err != nil {
		return a, err
	}
	return a, signed.Open(sealed.DomainAnswer, keys.answer.Public().(ed25519.PublicKey), &a)
}

func ids(runs []sealed.HostRun) (out []sealed.RunID) {
	for _, r := range runs {
		out = append(out, r.Run)
	}
	return out
}

// One call covers all runs of a host and comes back as soon as one of them is
// to stop, whatever stopped it.
func TestWatchHost(t *testing.T) {
	const wait = sealed.Duration(time.Second)
	for name, stop := range map[string]struct {
		act    func(*world, *guest)
		reason string
	}{
		"hard revocation": {func(w *world, g *guest) { w.revoke(sealed.RevokeRun, string(g.run), true) }, "revocation "},
		"stopped":         {func(w *world, g *guest) { w.must("op", g.path("stop"), map[string]any{"reason": "test"}) }, sealed.RunAborted},
		"finished":        {func(w *world, g *guest) { _ = g.finish(g.record(nil)) }, sealed.RunFinished},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b, waiting := w.claimed(idem(1)), w.claimed(idem(2)), w.enqueue(idem(3)).Run
			runs := []sealed.RunID{a.run, b.run, waiting}
			before, err := w.watchHost(sealed.HostWatchRequest{Runs: runs})
			if err != nil || len(before.Orders) != 0 || !cmp.Equal(ids(before.Continue), runs) || !before.Time.Equal(w.clock.now()) {
				t.Fatalf("%+v %v", before, err)
			}
			type result struct {
				a    sealed.HostWatchAnswer
				err  error
				took time.Duration
			}
			got, start := make(chan result), time.Now()
			go func() {
				a, err := w.watchHost(sealed.HostWatchRequest{Runs: runs, Epoch: before.Epoch, Wait: wait})
				got <- result{a, err, time.Since(start)}
			}()
			stop.act(w, b)
			r := <-got
			if r.err == nil && len(r.a.Orders) == 0 { // the epoch came first
				r.a, r.err = w.watchHost(sealed.HostWatchRequest{Runs: runs, Epoch: r.a.Epoch, Wait: wait})
			}
			if r.err != nil || len(r.a.Orders) != 1 || r.a.Orders[0].Run != b.run || r.a.Orders[0].Order != sealed.OrderAbort || r.took > 900*time.Millisecond {
				t.Fatalf("%+v", r)
			}
			if got := r.a.Orders[0].Reason; len(got) < len(stop.reason) || got[:len(stop.reason)] != stop.reason {
				t.Errorf("reason %q", got)
			}
			if diff := cmp.Diff([]sealed.RunID{a.run, waiting}, ids(r.a.Continue)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWatchHostRefuses(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	many := sealed.HostWatchRequest{}
	for i := range sealed.MaxHostRuns + 1 {
		many.Runs = append(many.Runs, sealed.RunID(fmt.Sprintf("01JNAAAAAAAAAAAAAAAAAAA%03d", i)))
	}
	for name, r := range map[string]sealed.HostWatchRequest{
		"none": {}, "too many": many, "twice": {Runs: []sealed.RunID{g.run, g.run}}, "not an id": {Runs: []sealed.RunID{"../x"}},
		"negative wait": {Runs: []sealed.RunID{g.run}, Wait: -1}, "not a state": {Runs: []sealed.RunID{g.run}, State: strings.Repeat("0", 65)},
	} {
		if _, err := w.watchHost(r); code(err) != 400 {
			t.Errorf("%s: %v", name, err)
		}
	}
	most := sealed.HostWatchRequest{Runs: many.Runs[1:], Epoch: math.MaxUint64, State: strings.Repeat("0", 64), Wait: sealed.Duration(time.Second)}
	if a, err := w.watchHost(most); err != nil || len(a.Orders) != sealed.MaxHostRuns {
		t.Errorf("as many as may be: %d orders, %v", len(a.Orders), err)
	}
	if n := len(url.QueryEscape(w.json(most))); n > 7<<10 {
		t.Errorf("a query of %d bytes", n)
	}
	a, err := w.watchHost(sealed.HostWatchRequest{Runs: []sealed.RunID{g.run, "01JNAAAAAAAAAAAAAAAAAAAAAA"}})
	if err != nil || len(a.Orders) != 1 || a.Orders[0].Reason != "not known" || len(a.Continue) != 1 {
		t.Errorf("an unknown run: %+v %v", a, err)
	}
}

// A caller that hands back the state of its last answer hears at once of what
// differs, and only of that: an order that it knows is no news.
func TestWatchHostState(t *testing.T) {
	w := newWorld(t)
	a, b := w.claimed(idem(1)), w.claimed(idem(2))
	r := sealed.HostWatchRequest{Runs: []sealed.RunID{a.run, b.run}}
	ask := func(wait time.Duration) (sealed.HostWatchAnswer, time.Duration) {
		t.Helper()
		r.Wait = sealed.Duration(wait)
		start := time.Now()
		got, err := w.watchHost(r)
		if err != nil {
			t.Fatal(err)
		}
		return got, time.Since(start)
	}
	first, _ := ask(0)
	r.Epoch, r.State = first.Epoch, first.State
	if got, took := ask(300 * time.Millisecond); got.State != first.State || took < 250*time.Millisecond {
		t.Errorf("nothing is new: %+v after %v", got, took)
	}
	_, lease, err := b.creds("LOW", idem(9)) // what init does itself is no news for it
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := ask(0); got.State != first.State {
		t.Errorf("after issuing: %+v", got)
	}

	// A lease revoked by hand raises no epoch, and is one run's affair.
	if _, err := w.lease(logical.RevokeOperation, lease); err != nil {
		t.Fatal(err)
	}
	got, took := ask(time.Second)
	if got.Epoch != r.Epoch || got.State == r.State || took > 1500*time.Millisecond || got.Continue[0] != first.Continue[0] || got.Continue[1].Mark == first.Continue[1].Mark {
		t.Fatalf("%+v after %v, first %+v", got, took, first)
	}
	if own := b.watch(got.Epoch); own.Mark != got.Continue[1].Mark || len(own.Dead) != 1 {
		t.Errorf("own watch: %+v", own)
	}
	if own := a.watch(got.Epoch); own.Mark != first.Continue[0].Mark || own.Every.Std() != 3750*time.Millisecond || own.Time.Before(own.Came) {
		t.Errorf("the other's: %+v", own)
	}

	r.State = got.State
	w.must("op", b.path("stop"), map[string]any{"reason": "test"})
	got, took = ask(time.Second)
	if len(got.Orders) != 1 || got.State == r.State || took > 900*time.Millisecond {
		t.Fatalf("stopped: %+v after %v", got, took)
	}
	r.State = got.State
	if again, took := ask(300 * time.Millisecond); again.State != got.State || took < 250*time.Millisecond {
		t.Errorf("an order that is known: %+v after %v", again, took)
	}
	r.State = ""
	if _, took := ask(time.Second); took > 900*time.Millisecond {
		t.Errorf("an order, without a state: after %v", took)
	}

	// A shorter limit for silence makes runs call more often, at once.
	r.State = got.State
	w.must("admin", "config", map[string]any{"silent_after": "4s"})
	if got, _ := ask(0); got.State == r.State || got.Continue[0].Mark == first.Continue[0].Mark {
		t.Errorf("the limit was changed: %+v", got)
	}
	if own := a.watch(got.Epoch); own.Every.Std() != time.Second {
		t.Errorf("own watch: %+v", own)
	}
}

// An agent may ask for the runs beside its own; one of another tenant hears
// nothing, whatever Vault's policies let through.
func TestWatchHostIsForThisTenant(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	r := map[string]any{"watch": w.json(sealed.HostWatchRequest{Runs: []sealed.RunID{g.run}})}
	if _, err := w.do(g.entity, g.accessor, logical.ReadOperation, "watch", r); err != nil {
		t.Errorf("the run's own token: %v", err)
	}
	w.sys.entities["stranger"] = &logical.Entity{ID: "stranger", Name: "stranger", Aliases: []*logical.Alias{
		{Name: "spiffe://" + testTD + sealed.AgentSPIFFEPath("beta", testAgent), MountAccessor: jwtMount},
	}}
	_, err := w.do("stranger", "", logical.ReadOperation, "watch", r)
	wantCode(t, err, 403)
	_, err = w.do("stranger", "", logical.ReadOperation, "watch", nil)
	wantCode(t, err, 403)
	_, err = w.do("nobody at all", "", logical.ReadOperation, "watch", r)
	wantCode(t, err, 403)
}

// Waiting calls are sent home when the mount is closed, as on a reload of the
// plug-in, and when its caches are dropped, as on a change of leader.
func TestWatchIsReleased(t *testing.T) {
	for name, send := range map[string]func(*world){
		"invalidate": func(w *world) { w.b.invalidate(context.Background(), "") },
		"reload":     func(w *world) { w.b.clean(context.Background()) },
		"control":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := w.claimed(idem(1))
			took := make(chan time.Duration, 2)
			start := time.Now()
			go func() {
				_, err := g.call("watch", sealed.WatchRequest{Run: g.run, Path: g.path("watch"), Wait: sealed.Duration(time.Second)})
				if err != nil {
					t.Error(err)
				}
				took <- time.Since(start)
			}()
			go func() {
				if _, err := w.watchHost(sealed.HostWatchRequest{Runs: []sealed.RunID{g.run}, Wait: sealed.Duration(time.Second)}); err != nil {
					t.Error(err)
				}
				took <- time.Since(start)
			}()
			time.Sleep(200 * time.Millisecond) // the wait is the thing under test
			if send != nil {
				send(w)
			}
			for range 2 {
				d := <-took
				if (d < 900*time.Millisecond) != (send != nil) || d > 3*time.Second {
					t.Errorf("came back after %v", d)
				}
			}
		})
	}
}

// A revocation is one write and a look at what runs: a person needs few.
func TestRevocationsAreLimited(t *testing.T) {
	w := newWorld(t)
	rev := map[string]any{"kind": "key", "target": "NONE", "reason": "r"}
	for range revocationsPerMinute {
		w.must("op", "revocations", rev)
	}
	epoch, err := w.b.epoch(context.Background(), w.s)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.do("op", "", logical.UpdateOperation, "revocations", rev)
	wantCode(t, err, 429)
	if now, _ := w.b.epoch(context.Background(), w.s); now != epoch {
		t.Error("the epoch rose")
	}
	w.must("ann", "revocations", rev) // another person's are not touched
	for range revocationsPerMinute {
		w.must("op", "revocations/preview", rev)
	}
	_, err = w.do("op", "", logical.UpdateOperation, "revocations/preview", rev)
	wantCode(t, err, 429)
	w.clock.add(time.Minute)
	w.must("op", "revocations", rev)
}

// BenchmarkWatchHost is the engine's part of one call for twenty live runs
// without a wait.
func BenchmarkWatchHost(b *testing.B) {
	w := newWorld(b)
	r := sealed.HostWatchRequest{Runs: w.rows(20, sealed.RunClaimed, nil)}
	for b.Loop() {
		if a, err := w.watchHost(r); err != nil || len(a.Continue) != 20 {
			b.Fatalf("%+v %v", a, err)
		}
	}
}
