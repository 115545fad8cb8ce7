package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// pairs makes verdicts that allow, each with the answer of a shadow.
func pairs(t *testing.T, shadow sealed.BundleRef, from, n int, said sealed.Decision) (out []decisionlog.Event) {
	t.Helper()
	ref := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, nil), Sequence: 1}
	for i := from; i < from+n; i++ {
		in := sealed.Input{Time: time.Unix(int64(1000+i), 0).UTC()}
		in.Agent.Name, in.Key.Name, in.Run.Workflow = "codex", "TOKEN", "release"
		v, err := decisionlog.New(fmt.Sprintf("verdict-%d", i), ref, in, sealed.Decision{Effect: sealed.EffectAllow})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v, v.NewShadow(fmt.Sprintf("shadow-%d", i), shadow, said))
	}
	return out
}

func paired(events ...decisionlog.Event) shadowReport {
	p := newPairing()
	for _, e := range events {
		p.add(e)
	}
	return p.report()
}

func TestPairing(t *testing.T) {
	older := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, []byte("a")), Sequence: 2}
	newer := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, []byte("b")), Sequence: 3}
	no, ask := sealed.Deny("no", ""), sealed.Decision{Effect: sealed.EffectRequireApproval, Reasons: []sealed.Reason{{Code: "ask"}}}
	first, second := pairs(t, older, 0, 3, no), pairs(t, newer, 3, 2, ask)
	change := func(what, code, example string, n int) groupChange {
		return groupChange{Change: what, Agent: "codex", Key: "TOKEN", Workflow: "release", Count: n, Reasons: []string{code}, Example: example}
	}
	none := []groupChange{}
	for name, tt := range map[string]struct {
		events []decisionlog.Event
		want   shadowReport
	}{
		"none": {nil, shadowReport{policyDiff: policyDiff{Changes: none}}},
		"no shadow": {
			[]decisionlog.Event{first[0], first[2]}, shadowReport{policyDiff: policyDiff{Changes: none}},
		},
		"one": {first, shadowReport{Shadow: older, policyDiff: policyDiff{Decisions: 3, Changes: []groupChange{change("newly denied", "no", "verdict-0", 3)}}}},
		"the newest counts": {
			append(append([]decisionlog.Event{}, first...), second...),
			shadowReport{Shadow: newer, Earlier: 3, policyDiff: policyDiff{Decisions: 2, Changes: []groupChange{change("newly asked", "ask", "verdict-3", 2)}}},
		},
		"answers of two at once": {
			append(append([]decisionlog.Event{second[0], second[1]}, first...), second[2:]...),
			shadowReport{Shadow: newer, Earlier: 3, Alone: 3, policyDiff: policyDiff{Decisions: 2, Changes: []groupChange{change("newly asked", "ask", "verdict-3", 2)}}},
		},
		"the answer comes first": {
			[]decisionlog.Event{first[1], first[0], first[3], first[2]},
			shadowReport{Shadow: older, policyDiff: policyDiff{Decisions: 2, Changes: []groupChange{change("newly denied", "no", "verdict-0", 2)}}},
		},
		"without an answer": {
			[]decisionlog.Event{first[0], first[2], first[3], first[4]},
			shadowReport{Shadow: older, Alone: 1, policyDiff: policyDiff{Decisions: 1, Changes: []groupChange{change("newly denied", "no", "verdict-1", 1)}}},
		},
		"an answer to nothing is no verdict": {
			[]decisionlog.Event{first[1], first[3], first[3]},
			shadowReport{Shadow: older, policyDiff: policyDiff{Changes: none}},
		},
	} {
		if diff := cmp.Diff(tt.want, paired(tt.events...), cmp.AllowUnexported(shadowReport{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	long := pairs(t, older, 0, 3*pairWindow, no)
	p := newPairing()
	for _, e := range long {
		if e.Shadow {
			p.add(e)
		}
	}
	if len(p.waiting) > pairWindow {
		t.Errorf("%d events are kept", len(p.waiting))
	}
}

// Whoever looks for verdicts is not shown what a shadow said.
func TestReplayCountsShadowsApart(t *testing.T) {
	allow, no := sealed.Decision{Effect: sealed.EffectAllow}, sealed.Deny("no", "")
	shadow := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, []byte("a")), Sequence: 2}
	both := pairs(t, shadow, 0, 1, no)
	late := pairs(t, shadow, 0, 1, sealed.Deny(sealed.ReasonTimeout, ""))[1]
	for name, tt := range map[string]struct {
		v                                           decisionlog.Verdict
		decisions, matching, shadows, same, unknown int
		mismatches                                  int
	}{
		"verdict":          {decisionlog.Verdict{Event: both[0], Got: []sealed.Decision{allow}}, 1, 1, 0, 0, 0, 0},
		"wrong verdict":    {decisionlog.Verdict{Event: both[0], Got: []sealed.Decision{no}}, 1, 0, 0, 0, 0, 1},
		"lost verdict":     {decisionlog.Verdict{Event: both[0], Err: sealed.ErrNotFound}, 1, 0, 0, 0, 0, 1},
		"shadow":           {decisionlog.Verdict{Event: both[1], Got: []sealed.Decision{no}}, 0, 0, 1, 1, 0, 0},
		"wrong shadow":     {decisionlog.Verdict{Event: both[1], Got: []sealed.Decision{allow}}, 0, 0, 1, 0, 0, 1},
		"lost shadow":      {decisionlog.Verdict{Event: both[1], Err: sealed.ErrNotFound}, 0, 0, 1, 0, 1, 0},
		"shadow was late":  {decisionlog.Verdict{Event: late, Got: []sealed.Decision{allow}}, 0, 0, 1, 0, 1, 0},
		"late, and now so": {decisionlog.Verdict{Event: late, Got: []sealed.Decision{late.Result}}, 0, 0, 1, 1, 0, 0},
	} {
		var r redecided
		r.count(tt.v)
		got := []int{r.Decisions, r.Matching, r.Shadows.Decisions, r.Shadows.Matching, r.Shadows.NotDerived, len(r.Mismatches)}
		if diff := cmp.Diff([]int{tt.decisions, tt.matching, tt.shadows, tt.same, tt.unknown, tt.mismatches}, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
