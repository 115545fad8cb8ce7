package vaultplugin

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// What the policy, its overlay and the shadow say about a vote is in the vote's
// entry, and is derived again; the agent's words are not.
func TestVotesAreRecorded(t *testing.T) {
	w := newWorld(t)
	notAnn := func(question string, in any) sealed.Decision {
		if x, ok := in.(sealed.ApprovalInput); ok && x.Voter.EntityID == "ann" {
			return never(question, in)
		}
		return yes(question, in)
	}
	w.layOver(laidOver, notAnn)
	w.setShadow(onTrial, never)
	g := w.claimed(idem(1))
	const said = "because-my-secret-is-hunter2"
	_, err := g.call("creds/HIGH", sealed.CredsRequest{Run: g.run, Path: g.path("creds/HIGH"), Idempotency: idem(2), Delivery: sealed.DeliveryProxy, Reason: said})
	wantCode(t, err, 428)
	id := sealed.ApprovalID(err.Error()[len(err.Error())-26:])
	if !strings.Contains(string(w.view(id).Object), said) {
		t.Fatal("the test has no words to look for")
	}
	w.sys.person("cy", nil, "cooks")
	wantCode(t, w.vote("ann", id, "approve"), 403) // by the overlay
	wantCode(t, w.vote("cy", id, "approve"), 403)  // by the policy, and the overlay is not asked
	wantCode(t, w.vote("op", id, "approve"), 403)  // by the engine, and nobody is asked
	if err := w.vote("bob", id, "approve"); err != nil {
		t.Fatal(err)
	}
	over := fakeBundle{raw: []byte(laidOver), seq: 3, decide: notAnn}
	got := map[string][]string{}
	for typ, events := range w.decisions() {
		for _, e := range events {
			if !e.Vote() {
				continue
			}
			var by decisionlog.Decider = w.active()
			who := "policy "
			switch {
			case e.Shadow:
				who, by = "shadow ", fakeBundle{decide: never}
			case e.Overlay():
				who, by = "overlay ", over
			}
			if d, err := e.Again(context.Background(), by); err != nil || !e.Matches(d) {
				t.Errorf("%s: %+v, %v; recorded %+v", typ, d, err, e.Result)
			}
			if run, key := e.About(); run != g.run || key != "HIGH" || !slices.Contains(e.Erased, "/input/approval/reason") {
				t.Errorf("%s: about %s %s, erased %q", typ, run, key, e.Erased)
			}
			got[typ] = append(got[typ], who+string(e.Result.Effect))
		}
	}
	want := map[string][]string{
		"approval.refused": {"policy allow", "overlay deny", "shadow deny", "policy deny", "shadow deny"},
		"approval.granted": {"policy allow", "overlay allow", "shadow deny"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("in %q: %s", slices.Sorted(maps.Keys(got)), diff)
	}
	if strings.Contains(strings.Join(w.logged(), "\n"), "hunter2") {
		t.Error("what the agent said is in the log")
	}
}

// A hostile shadow changes nothing about a vote.
func TestShadowDoesNotVote(t *testing.T) {
	until := make(chan struct{})
	defer close(until)
	for name, decide := range hostile(until) {
		w := newWorld(t)
		w.setShadow(onTrial, decide)
		if name == "is stuck" {
			w.b.policy.trials.wait = 0
		}
		g := w.claimed(idem(1))
		id := g.pendingID("HIGH", idem(2))
		wantCode(t, w.vote("op", id, "approve"), 403)
		w.sys.person("cy", nil, "cooks")
		wantCode(t, w.vote("cy", id, "approve"), 403)
		if err := w.vote("ann", id, "approve"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := g.creds("HIGH", idem(2)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
