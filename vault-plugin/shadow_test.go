package vaultplugin

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

const onTrial = "bundle 9 on trial"

func (w *world) setShadow(text string, decide func(string, any) sealed.Decision) {
	w.t.Helper()
	w.policies[text] = decide
	w.b.policy.trials.wait = time.Minute
	w.must("op", "policy/shadow", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte(text))})
}

func (w *world) shadowState() string {
	w.t.Helper()
	resp, err := w.do("op", "", logical.ReadOperation, "policy/shadow", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if resp == nil {
		return ""
	}
	return resp.Data["state"].(string)
}

// shadows are the recorded answers of shadows, by the type of their entry.
func (w *world) shadows() map[string][]decisionlog.Event {
	out := map[string][]decisionlog.Event{}
	for typ, events := range w.decisions() {
		if _, s := decisionlog.Verdicts(events); len(s) > 0 {
			out[typ] = s
		}
	}
	return out
}

// outcome is what people and agents are told along the way of a run, and what the
// log says was decided.
func (w *world) outcome() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	q := w.enqueue(idem(1))
	for _, k := range q.Keys {
		k.Approval = sealed.ApprovalID(fmt.Sprint(k.Approval != ""))
		out["enqueue "+string(k.Name)] = w.json(k)
	}
	g := w.guest(q, "agent-1", "acc")
	if err := g.sendClaim(g.claimDoc(q.Ticket, w.ownUID(), nil, nil)); err != nil {
		w.t.Fatal(err)
	}
	for i, key := range []string{"LOW", "OTHER", "HIGH"} {
		a, _, err := g.creds(key, idem(10+i))
		out["creds "+key] = fmt.Sprint(code(err), a.Delivery, a.TTL, w.json(a.Bindings))
		if err == nil {
			out["value "+key] = g.value(a)
		}
	}
	for _, key := range []sealed.KeyName{"LOW", "OTHER"} {
		resp, err := g.call("requests", sealed.MoreRequest{Run: g.run, Path: g.path("requests"), Key: key, Reason: "please"})
		if err != nil {
			w.t.Fatal(err)
		}
		var a sealed.MoreAnswer
		if err := g.openAnswer(resp, &a); err != nil {
			w.t.Fatal(err)
		}
		out["request "+string(key)] = w.json(a)
	}
	for typ, events := range w.decisions() {
		verdicts, _ := decisionlog.Verdicts(events)
		for i, e := range verdicts {
			out[fmt.Sprint("decided ", typ, i)] = string(e.Ref().Digest) + w.json(e.Result)
		}
	}
	return out
}

// hostile are bundles that nobody would want in force.
func hostile(until <-chan struct{}) map[string]func(string, any) sealed.Decision {
	return map[string]func(string, any) sealed.Decision{
		"allows everything": func(string, any) sealed.Decision {
			return sealed.Decision{Effect: sealed.EffectAllow, Obligations: sealed.Obligations{TTL: 1, Delivery: sealed.DeliveryEnv}}
		},
		"denies everything": func(string, any) sealed.Decision { return sealed.Deny("never", "never") },
		"is stuck": func(string, any) sealed.Decision {
			<-until
			return sealed.Decision{Effect: sealed.EffectAllow}
		},
		"panics": func(string, any) sealed.Decision { panic("x") },
		"has huge reasons": func(string, any) sealed.Decision {
			return sealed.Deny(strings.Repeat("x", 60<<10), strings.Repeat("y", 60<<10))
		},
		"has many reasons": func(string, any) sealed.Decision {
			return sealed.Decision{Effect: sealed.EffectDeny, Reasons: slices.Repeat([]sealed.Reason{{Code: "c", Msg: "m"}}, 5000)}
		},
		"gives no decision": func(string, any) sealed.Decision { return sealed.Decision{Effect: "maybe"} },
	}
}

func TestShadowDecidesNothing(t *testing.T) {
	until := make(chan struct{})
	defer close(until)
	plain := newWorld(t).outcome()
	if len(plain) < 20 || plain["value LOW"] != canary {
		t.Fatalf("%v", plain)
	}
	for name, decide := range hostile(until) {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setShadow(onTrial, decide)
			if name == "is stuck" {
				w.b.policy.trials.wait = 0
			}
			got := w.outcome()
			if diff := cmp.Diff(plain, got); diff != "" {
				t.Errorf("with a shadow that %s: %s", name, diff)
			}
			shadows, dropped := w.shadows(), strings.Contains(strings.Join(w.logged(), "\n"), `"shadow_dropped":`)
			if huge := strings.HasPrefix(name, "has "); dropped != huge || huge == (len(shadows) > 0) {
				t.Errorf("dropped %v; %d kinds of entries with shadows", dropped, len(shadows))
			}
			for _, events := range shadows {
				for _, e := range events {
					if e.Ref().Digest != digestOfBundle([]byte(onTrial)) || e.Ref().Sequence != 9 {
						t.Errorf("%+v", e.Ref())
					}
				}
			}
		})
	}
	// Control: in force, such a bundle is felt.
	for _, name := range []string{"allows everything", "denies everything"} {
		t.Run("control: in force "+name, func(t *testing.T) {
			w := newWorld(t)
			w.policies[onTrial] = hostile(until)[name]
			w.policy(onTrial)
			q := w.enqueue(idem(1))
			same := true
			for _, k := range q.Keys {
				k.Approval = sealed.ApprovalID(fmt.Sprint(k.Approval != ""))
				same = same && plain["enqueue "+string(k.Name)] == w.json(k)
			}
			if same {
				t.Error("the test would not see a shadow that decides")
			}
		})
	}
}

// What goes wrong with a shadow is an answer of its own, with a fixed reason.
func TestShadowFailuresAreEvents(t *testing.T) {
	until := make(chan struct{})
	defer close(until)
	for name, want := range map[string]string{
		"is stuck": sealed.ReasonTimeout, "panics": sealed.ReasonError, "gives no decision": sealed.ReasonShape, "denies everything": "never",
	} {
		w := newWorld(t)
		w.setShadow(onTrial, hostile(until)[name])
		if name == "is stuck" {
			w.b.policy.trials.wait = 0
		}
		w.enqueue(idem(1))
		n := 0
		for _, events := range w.shadows() {
			for _, e := range events {
				if n++; e.Result.Effect != sealed.EffectDeny || e.Result.Reasons[0].Code != want {
					t.Errorf("%s: %+v", name, e.Result)
				}
			}
		}
		if n != 7 {
			t.Errorf("%s: %d answers", name, n)
		}
	}
}

// A shadow is asked what the bundle in force was asked, at every phase.
func TestShadowIsAskedTheSame(t *testing.T) {
	w := newWorld(t)
	w.setShadow(onTrial, func(_ string, in any) sealed.Decision {
		switch in := in.(type) {
		case sealed.Input:
			return sealed.Deny(in.Phase, in.Reason)
		case *sealed.Input:
			return sealed.Deny(in.Phase, in.Reason)
		}
		return sealed.Deny("other", "")
	})
	g := w.claimed(idem(1))
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatal(err)
	}
	const said = "my-secret-is-hunter2"
	if _, err := g.call("requests", sealed.MoreRequest{Run: g.run, Path: g.path("requests"), Key: "OTHER", Reason: said}); err != nil {
		t.Fatal(err)
	}
	phases := map[string]int{}
	for typ, events := range w.decisions() {
		verdicts, shadows := decisionlog.Verdicts(events)
		if len(verdicts) != len(shadows) {
			t.Errorf("%s: %d verdicts, %d answers of the shadow", typ, len(verdicts), len(shadows))
			continue
		}
		for i, v := range verdicts {
			s := shadows[i]
			in1, err1 := v.Request()
			in2, err2 := s.Request()
			if diff := cmp.Diff(in1, in2); err1 != nil || err2 != nil || diff != "" || s.Beside != v.DecisionID || s.DecisionID == v.DecisionID || !s.Timestamp.Equal(v.Timestamp) {
				t.Errorf("%s: %v %v %s", typ, err1, err2, diff)
			}
			if s.Labels["shadow"] != "true" || v.Labels["shadow"] != "" {
				t.Errorf("labels %v, %v", v.Labels, s.Labels)
			}
			phases[s.Result.Reasons[0].Code]++
		}
	}
	if diff := cmp.Diff(map[string]int{phaseEnqueue: 7, phaseIssue: 1, phaseRequest: 1}, phases); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(strings.Join(w.logged(), "\n"), "hunter2") {
		t.Error("what the agent said is in the log")
	}
}

// Stuck evaluations do not pile up, and a call does not wait for a shadow that is
// known to be stuck.
func TestStuckShadowIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	until := make(chan struct{})
	w.setShadow(onTrial, hostile(until)["is stuck"])
	w.b.policy.trials.wait = 100 * time.Millisecond
	for i := range 2 * maxOverdue {
		w.enqueue(idem(i))
	}
	if n := w.b.policy.trials.overdue.Load(); n != maxOverdue {
		t.Errorf("%d evaluations are left behind", n)
	}
	answers := 0
	for _, events := range w.shadows() {
		answers += len(events)
	}
	if answers != 7*maxOverdue {
		t.Errorf("%d answers", answers)
	}
	close(until)
	w.b.policy.trials.wait = time.Minute
	for w.b.policy.trials.overdue.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	w.enqueue(idem(100))
	n := 0
	for _, events := range w.shadows() {
		n += len(events)
	}
	if n != answers+7 {
		t.Errorf("%d answers; it is asked again when nothing is stuck", n)
	}
}

func TestShadowsTakeTheRoomThatVerdictsLeave(t *testing.T) {
	in := sealed.Input{Phase: "enqueue", Time: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)}
	ref := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, nil), Sequence: 1}
	for _, tt := range []struct {
		keys, name, reason int
		essential          bool
		kept               func(n int) bool
	}{
		{1, 10, 10, false, func(n int) bool { return n == 1 }},
		{2, 1000, 10, false, func(n int) bool { return n == 2 }},
		{1, 9000, 10, false, func(n int) bool { return n == 0 }}, // another entry would be needed
		{1, 9000, 10, true, func(n int) bool { return n == 1 }},
		{8, 10, 500, false, func(n int) bool { return n > 0 && n < 8 }},
		{1, 10, 60 << 10, true, func(n int) bool { return n == 0 }},
		{maxKeys, 1000, 10, true, func(n int) bool { return n == maxKeys }},
		{maxKeys, 1500, 3000, true, func(n int) bool { return n > 0 && n < maxKeys }},
		{maxKeys, 20000, 10, true, func(n int) bool { return n == 0 || n < maxKeys }},
	} {
		in.Requester.Name = strings.Repeat("x", tt.name)
		var verdicts, both []decisionlog.Event
		for range tt.keys {
			e, err := decisionlog.New("01JTSEALED0000000000000001", ref, in, sealed.Deny("x", "y"))
			if err != nil {
				t.Fatal(err)
			}
			verdicts = append(verdicts, e)
			both = append(both, e, e.NewShadow("01JTSEALED0000000000000002", ref, sealed.Deny(strings.Repeat("x", tt.reason), "")))
		}
		entry := audit.Event{Type: "run.enqueued", Essential: tt.essential}
		without, body := withDecided(entry, map[string]any{}, verdicts), map[string]any{}
		with := withDecided(entry, body, both)
		if len(with) > maxDecided+1 || !tt.essential && len(with) != len(without) {
			t.Errorf("%+v: %d entries, without shadows %d", tt.keys, len(with), len(without))
		}
		var v, s int
		for _, e := range with {
			events, _ := e.Body.(map[string]any)[decisionlog.Member].([]decisionlog.Event)
			size := 0
			for _, e := range events {
				if size += e.Size(); e.Shadow {
					s++
				} else {
					v++
				}
			}
			if size > audit.MaxBody-2048 {
				t.Errorf("%d keys: a body of %d bytes", tt.keys, size)
			}
		}
		dropped, _ := body["shadow_dropped"].(int)
		if v != tt.keys || s+dropped != tt.keys || !tt.kept(s) {
			t.Errorf("%d keys of %d bytes: %d verdicts, %d shadows, %d dropped", tt.keys, tt.name, v, s, dropped)
		}
	}
}

// TestNoShadowCostsNothing: what a call without a shadow pays is the look.
func TestNoShadowCostsNothing(t *testing.T) {
	w := newWorld(t)
	now := w.b.now()
	if n := testing.AllocsPerRun(100, func() {
		if w.b.onTrial(context.Background(), w.s, now) != nil {
			t.Fatal("a shadow")
		}
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
