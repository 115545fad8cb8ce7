package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

const laidOver = "bundle 3 overlay"

// layOver lays a bundle over the policy that decides so.
func (w *world) layOver(text string, decide func(string, any) sealed.Decision) {
	w.t.Helper()
	w.policies[text] = decide
	if err := w.tryOverlay(text); err != nil {
		w.t.Fatal(err)
	}
}

func yes(string, any) sealed.Decision { return sealed.Decision{Effect: sealed.EffectAllow} }

// authz decides about keys so, and lets everybody vote.
func authz(d sealed.Decision) func(string, any) sealed.Decision {
	return func(question string, in any) sealed.Decision {
		if question == sealed.QuestionApproval {
			return yes(question, in)
		}
		return d
	}
}

// atPhase denies at one phase, and allows at the others.
func atPhase(phase string) func(string, any) sealed.Decision {
	return func(question string, in any) sealed.Decision {
		if x, ok := in.(sealed.Input); ok && x.Phase == phase {
			return never(question, in)
		}
		return yes(question, in)
	}
}

func asking(o sealed.ApprovalObligations) sealed.Decision {
	return sealed.Decision{Effect: sealed.EffectRequireApproval, Reasons: []sealed.Reason{{Code: "ask"}}, Obligations: sealed.Obligations{Approvals: o}}
}

// An overlay narrows and never widens; without the rule it does not narrow.
func TestOverlayOnlyNarrows(t *testing.T) {
	plain := newWorld(t).outcome()
	maps.DeleteFunc(plain, func(k, _ string) bool { return strings.HasPrefix(k, "decided ") })
	t.Run("one that allows everything changes nothing", func(t *testing.T) {
		w := newWorld(t)
		w.layOver(laidOver, yes)
		got := w.outcome()
		maps.DeleteFunc(got, func(k, _ string) bool { return strings.HasPrefix(k, "decided ") })
		if diff := cmp.Diff(plain, got); diff != "" {
			t.Error(diff)
		}
	})
	short := sealed.Decision{Effect: sealed.EffectAllow, Obligations: sealed.Obligations{TTL: 60, Delivery: sealed.DeliveryEnv, Egress: "bound"}}
	for name, tt := range map[string]struct {
		over      func(string, any) sealed.Decision
		low, high int // status of a credential
		ttl       int64
	}{
		"denies":                 {never, 403, 403, 0},
		"asks":                   {authz(asking(sealed.ApprovalObligations{Quorum: 1, Groups: []string{"approvers"}})), 428, 428, 0},
		"asks nobody in common":  {authz(asking(sealed.ApprovalObligations{Quorum: 1, Groups: []string{"cooks"}})), 428, 403, 0},
		"says no effect":         {authz(sealed.Decision{Effect: "maybe"}), 403, 403, 0},
		"obliges":                {authz(short), 0, 428, 60},
		"denies later":           {atPhase(phaseIssue), 403, 403, 0},
		"allows with wide terms": {authz(sealed.Decision{Effect: sealed.EffectAllow, Obligations: sealed.Obligations{TTL: 1 << 40, Delivery: sealed.DeliveryEnv}}), 0, 428, 15 * 60},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.layOver(laidOver, tt.over)
			g := w.claimed(idem(1))
			a, _, err := g.creds("LOW", idem(2))
			wantCode(t, err, tt.low)
			if err == nil && (a.TTL != tt.ttl || a.Delivery != sealed.DeliveryProxy) {
				t.Errorf("%d s, %s", a.TTL, a.Delivery)
			}
			_, _, err = g.creds("HIGH", idem(3))
			wantCode(t, err, tt.high)
			_, _, err = g.creds("OTHER", idem(4)) // which the base denies
			wantCode(t, err, 403)
			if tt.low == 0 {
				return
			}
			c := newWorld(t)
			c.b.mem.off.overlay = true
			c.layOver(laidOver, tt.over)
			g = c.claimed(idem(1))
			if _, _, err := g.creds("LOW", idem(2)); err != nil {
				t.Errorf("control, with the overlay left out: %v", err)
			}
		})
	}
}

// Obligations of both hold: the stricter of each, and the groups in common.
func TestOverlayObligations(t *testing.T) {
	w := newWorld(t)
	w.layOver(laidOver, authz(asking(sealed.ApprovalObligations{Quorum: 2, Groups: []string{"cooks", "approvers"}, TTL: 60})))
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	var o sealed.ApprovalObject
	if err := json.Unmarshal(w.view(id).Object, &o); err != nil {
		t.Fatal(err)
	}
	if o.Quorum != 2 || !slices.Equal(o.Groups, []string{"approvers"}) || o.ExpiresAt.Sub(o.CreatedAt).Seconds() != 60 {
		t.Errorf("%d of %q within %s", o.Quorum, o.Groups, o.ExpiresAt.Sub(o.CreatedAt))
	}
	if want := (sealed.BundleRef{Digest: digestOfBundle([]byte(laidOver)), Sequence: 3}); o.Overlay != want {
		t.Errorf("the approval names the overlay %+v", o.Overlay)
	}
}

// The overlay of the enqueue and that of now must both say yes.
func TestOverlayPinnedAndCurrent(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after func(string, any) sealed.Decision // nil: none
		status        int
	}{
		"control: none":                   {nil, nil, 0},
		"control: both allow":             {yes, yes, 0},
		"pinned, then removed":            {atPhase(phaseIssue), nil, 403},
		"pinned, then replaced":           {atPhase(phaseIssue), yes, 403},
		"new since the enqueue":           {nil, never, 403},
		"another one since the enqueue":   {yes, never, 403},
		"control: removed, and had no no": {yes, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tt.before != nil {
				w.layOver(laidOver, tt.before)
			}
			g := w.claimed(idem(1))
			switch {
			case tt.after != nil:
				w.layOver("bundle 4 overlay", tt.after)
			case tt.before != nil:
				w.removeOverlay()
			}
			if err := w.b.sweepBundles(context.Background(), w.s); err != nil {
				t.Fatal(err)
			}
			w.open() // nothing is in memory
			_, _, err := g.creds("LOW", idem(2))
			wantCode(t, err, tt.status)
			if tt.status == 0 {
				return
			}
			w.b.mem.off.overlay = true
			if _, _, err := g.creds("LOW", idem(3)); err != nil {
				t.Errorf("control, with overlays left out: %v", err)
			}
		})
	}
	t.Run("control: removed, for a run after it", func(t *testing.T) {
		w := newWorld(t)
		w.layOver(laidOver, never)
		w.removeOverlay()
		g := w.claimed(idem(1))
		if _, _, err := g.creds("LOW", idem(2)); err != nil {
			t.Error(err)
		}
	})
}

// E17: an overlay that comes, changes or goes between a person's yes and the issue
// voids the yes.
func TestOverlayVoidsApprovals(t *testing.T) {
	for name, tt := range map[string]struct {
		first  bool
		change func(w *world)
	}{
		"control: nothing":       {true, nil},
		"control: no overlay":    {false, nil},
		"comes":                  {false, func(w *world) { w.layOver(laidOver, yes) }},
		"changes":                {true, func(w *world) { w.layOver("bundle 4 overlay", yes) }},
		"goes":                   {true, (*world).removeOverlay},
		"goes and another comes": {true, func(w *world) { w.removeOverlay(); w.layOver("bundle 4 overlay", yes) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tt.first {
				w.layOver(laidOver, yes)
			}
			g := w.claimed(idem(1))
			id := g.pendingID("HIGH", idem(2))
			if err := w.vote("ann", id, "approve"); err != nil {
				t.Fatal(err)
			}
			if tt.change == nil {
				if _, _, err := g.creds("HIGH", idem(2)); err != nil {
					t.Error(err)
				}
				return
			}
			tt.change(w)
			if again := g.pendingID("HIGH", idem(2)); again == id || w.view(id).State != sealed.ApprovalVoid {
				t.Errorf("the approval is %s", w.view(id).State)
			}
			w.wantEntry("approval.void", string(id), `"what":"overlay"`)
		})
	}
}

// The overlay is asked about a vote when it is cast, and when the yes is used.
func TestOverlayVotes(t *testing.T) {
	notAnn := func(question string, in any) sealed.Decision {
		if x, ok := in.(sealed.ApprovalInput); ok && x.Voter.EntityID == "ann" {
			return never(question, in)
		}
		return yes(question, in)
	}
	w := newWorld(t)
	w.layOver(laidOver, notAnn)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	wantCode(t, w.vote("ann", id, "approve"), 403)
	w.wantEntry("approval.refused", string(id), `"what":"policy"`)
	wantCode(t, w.vote("op", id, "approve"), 403) // whom the base does not let vote
	if err := w.vote("bob", id, "approve"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.creds("HIGH", idem(2)); err != nil {
		t.Error(err)
	}

	w = newWorld(t)
	w.b.mem.off.overlay = true
	w.layOver(laidOver, notAnn)
	if err := w.vote("ann", w.claimed(idem(1)).pendingID("HIGH", idem(2)), "approve"); err != nil {
		t.Errorf("control, with the overlay left out: %v", err)
	}

	w = newWorld(t)
	strict := false // as if it looked at the clock
	w.layOver(laidOver, func(question string, in any) sealed.Decision {
		if strict {
			return notAnn(question, in)
		}
		return yes(question, in)
	})
	g = w.claimed(idem(1))
	id = g.pendingID("HIGH", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	strict = true
	if again := g.pendingID("HIGH", idem(2)); again == id {
		t.Error("a yes that no longer counts")
	}
	w.wantEntry("approval.void", string(id), `"what":"approvers"`, `["ann"]`)
}

// Each answer is an event, named for its bundle, beside that of the bundle below.
func TestOverlayDecisionsAreRecorded(t *testing.T) {
	w := newWorld(t)
	w.layOver(laidOver, atPhase(phaseRequest))
	w.setShadow(onTrial, never)
	g := w.claimed(idem(1))
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := g.call("requests", sealed.MoreRequest{Run: g.run, Path: g.path("requests"), Key: "LOW", Reason: "hunter2"}); err != nil {
		t.Fatal(err)
	}
	over := fakeBundle{raw: []byte(laidOver), seq: 3, decide: atPhase(phaseRequest)}
	counts := map[string]int{}
	for typ, events := range w.decisions() {
		below := map[string]decisionlog.Event{}
		for _, e := range events {
			var by decisionlog.Decider = w.active()
			switch {
			case e.Shadow:
				continue
			case e.Overlay():
				base, ok := below[e.Beside]
				if !ok || base.Result.Effect == sealed.EffectDeny || e.Ref() != over.Ref() {
					t.Errorf("%s: beside %+v", typ, base)
				}
				by = over
				counts["overlay"]++
			default:
				below[e.DecisionID] = e
				counts["base "+string(e.Result.Effect)]++
			}
			if d, err := e.Again(context.Background(), by); err != nil || !e.Matches(d) {
				t.Errorf("%s: %+v, %v; recorded %+v", typ, d, err, e.Result)
			}
		}
	}
	// Of seven keys the base denies one, which the overlay is not asked about.
	if diff := cmp.Diff(map[string]int{"base allow": 5, "base require_approval": 3, "base deny": 1, "overlay": 8}, counts); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(strings.Join(w.logged(), "\n"), "hunter2") {
		t.Error("what the agent said is in the log")
	}
	w.wantEntry("run.enqueued", `"overlay":"`+string(digestOfBundle([]byte(laidOver)))+`"`)
	w.wantEntry("issue.intent", `"overlay":"`+string(digestOfBundle([]byte(laidOver)))+`"`)
	w.wantEntry("approval.requested", `"overlay":"`+string(digestOfBundle([]byte(laidOver)))+`"`)
}

// Preview, dry run and replay tell of the overlay.
func TestOverlayIsShown(t *testing.T) {
	w := newWorld(t)
	w.policies["bundle 2"] = yes
	w.policy("bundle 2")
	g := w.claimed(idem(1))
	w.layOver(laidOver, never)
	want := sealed.BundleRef{Digest: digestOfBundle([]byte(laidOver)), Sequence: 3}
	p := w.preview("op", sealed.PreviewRequest{Profile: "team/release", Agent: testAgent, Workflow: "release"})
	if p.Overlay != want || p.Keys[0].Decision.Effect != sealed.EffectDeny {
		t.Errorf("%+v", p)
	}
	var in sealed.Input
	in.Key.Agents, in.Agent.Name = []string{testAgent}, testAgent
	out := w.must("op", "policy/decide", map[string]any{"input": w.json(in)})
	if !strings.Contains(fmt.Sprint(out["decision"]), `"never"`) || out["overlay"] != string(want.Digest) || out["bundle"] != string(w.active().Ref().Digest) {
		t.Errorf("%v", out)
	}
	if out := w.must("op", "policy/decide", map[string]any{"question": "approval", "input": `{"voter":{"groups":["approvers"]}}`}); !strings.Contains(fmt.Sprint(out["decision"]), `"never"`) {
		t.Errorf("%v", out)
	}
	for _, k := range w.dryReplay(g.run, sealed.ReplayRecorded) {
		if !slices.Contains(k.Differs, sealed.ReplayBundleChanged) {
			t.Errorf("%s: %q", k.Name, k.Differs)
		}
	}
}

// TestNoOverlayCostsNothing: neither a byte of what is stored and logged, nor a look.
func TestNoOverlayCostsNothing(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	g.pendingID("HIGH", idem(2))
	for key, text := range w.allButLog() {
		if strings.Contains(text, "overlay") {
			t.Errorf("%s: %s", key, text)
		}
	}
	for _, line := range w.logged() {
		if strings.Contains(line, "overlay") {
			t.Error(line)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		if by, err := w.b.currentRules(context.Background(), w.s); err != nil || by.overlay != nil {
			t.Fatal(by, err)
		}
	}); n > 4 {
		t.Errorf("%v allocations", n)
	}
}
