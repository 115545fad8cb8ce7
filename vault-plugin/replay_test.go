package vaultplugin

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// replaySpec is what a faithful caller sends.
func replaySpec(idempotency string) sealed.ReplaySpec {
	er := enqueueSpec("")
	return sealed.ReplaySpec{IdempotencyKey: idempotency, CommandDigest: er.CommandDigest, InputDigest: er.InputDigest, WorkspaceDigest: er.WorkspaceDigest}
}

func (w *world) replay(id sealed.RunID, data map[string]any) (out sealed.Replay, err error) {
	resp, err := w.do("op", "acc-op", logical.UpdateOperation, "runs/"+string(id)+"/replay", data)
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal([]byte(resp.Data["replay"].(string)), &out)
}

func (w *world) dryReplay(id sealed.RunID, as string) map[sealed.KeyName]sealed.ReplayKey {
	w.t.Helper()
	r, err := w.replay(id, map[string]any{"as": as, "dry_run": true})
	if err != nil {
		w.t.Fatal(err)
	}
	if r.Of != id || !r.DryRun || r.Enqueued != nil {
		w.t.Fatalf("%+v", r)
	}
	out := map[sealed.KeyName]sealed.ReplayKey{}
	for _, k := range r.Keys {
		out[k.Name] = k
	}
	return out
}

// recorded makes a run that got LOW and DYN and is over.
func (w *world) recorded(n int) *guest {
	w.t.Helper()
	g := w.claimed(idem(n))
	for i, key := range []string{"LOW", "DYN"} {
		a, _, err := g.creds(key, idem(n*100+i))
		if err != nil {
			w.t.Fatal(err)
		}
		if err := g.confirm(a); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := g.finish(g.record(nil)); err != nil {
		w.t.Fatal(err)
	}
	w.clock.add(time.Minute)
	w.b.worker.pay(context.Background(), w.s, "")
	w.b.worker.tick(context.Background(), w.s)
	return g
}

func TestReplayTellsWhatDiffers(t *testing.T) {
	profile := func(w *world, change func(*sealed.Profile)) {
		p := w.profile()
		p.Version = 1
		change(&p)
		w.must("op", "profiles/workflow/team/release", map[string]any{"profile": w.json(p)})
	}
	all := []string{"LOW", "DYN"}
	for name, c := range map[string]struct {
		happens func(*world)
		differs map[string][]string // of LOW and DYN
		denied  []string            // as recorded
		current []string            // denied as current
	}{
		"nothing": {func(*world) {}, map[string][]string{"DYN": {sealed.ReplayFresh}}, nil, nil},
		"rotated": {func(w *world) { w.must("op", "secrets/ci/token", map[string]any{"value": canary + "-2"}) },
			map[string][]string{"LOW": {sealed.ReplayRotated}, "DYN": {sealed.ReplayFresh}}, []string{"LOW"}, nil},
		"revoked": {func(w *world) { w.revoke(sealed.RevokeKey, "team/release#LOW", false) },
			map[string][]string{"LOW": {sealed.ReplayRevoked}, "DYN": {sealed.ReplayFresh}}, []string{"LOW"}, []string{"LOW"}},
		"source revoked": {func(w *world) { w.revoke(sealed.RevokeSource, "dyn", true) },
			map[string][]string{"DYN": {sealed.ReplayFresh, sealed.ReplayRevoked}}, []string{"DYN"}, []string{"DYN"}},
		"value gone": {func(w *world) {
			if _, err := w.do("op", "", logical.DeleteOperation, "secrets/ci/token", nil); err != nil {
				w.t.Fatal(err)
			}
		}, map[string][]string{"LOW": {sealed.ReplaySourceGone}, "DYN": {sealed.ReplayFresh}}, []string{"LOW"}, nil},
		"key gone": {func(w *world) { profile(w, func(p *sealed.Profile) { delete(p.Keys, "LOW") }) },
			map[string][]string{"LOW": {sealed.ReplayKeyGone}, "DYN": {sealed.ReplayFresh}}, []string{"LOW"}, []string{"LOW"}},
		"key changed": {func(w *world) {
			profile(w, func(p *sealed.Profile) {
				k := p.Keys["LOW"]
				k.TTL = sealed.Duration(time.Minute)
				p.Keys["LOW"] = k
			})
		}, map[string][]string{"LOW": {sealed.ReplayKeyChanged}, "DYN": {sealed.ReplayFresh}}, []string{"LOW"}, nil},
		"bundle changed": {func(w *world) { w.policy("bundle 2") },
			map[string][]string{"LOW": {sealed.ReplayBundleChanged}, "DYN": {sealed.ReplayBundleChanged, sealed.ReplayFresh}}, all, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := w.recorded(1)
			c.happens(w)
			for as, denied := range map[string][]string{sealed.ReplayRecorded: c.denied, sealed.ReplayCurrent: c.current} {
				got := w.dryReplay(g.run, as)
				for _, key := range all {
					k := got[sealed.KeyName(key)]
					if diff := cmp.Diff(c.differs[key], k.Differs); diff != "" {
						t.Errorf("%s as %s: %s", key, as, diff)
					}
					if is := k.Effect == sealed.EffectDeny; is != slices.Contains(denied, key) {
						t.Errorf("%s as %s: %s %v", key, as, k.Effect, k.Reasons)
					}
				}
				if high := got["HIGH"]; !slices.Contains(high.Differs, sealed.ReplayNotUsed) && name == "nothing" {
					t.Errorf("HIGH, which the run never got: %+v", high)
				}
			}
			if got := w.list(nil); len(got) != 1 {
				t.Errorf("a dry run made a run: %v", got)
			}
		})
	}
}

// A replay is a new run that names the old one, and gets what was said.
func TestReplay(t *testing.T) {
	w := newWorld(t)
	old := w.recorded(1)
	data := map[string]any{"as": sealed.ReplayRecorded, "spec": w.json(replaySpec(idem(50)))}
	r, err := w.replay(old.run, data)
	if err != nil || r.Enqueued == nil || r.Enqueued.Run == old.run {
		t.Fatalf("%+v %v", r, err)
	}
	w.wantEntry("run.enqueued", string(old.run), `"replay_as":"recorded"`)
	again, err := w.replay(old.run, data)
	if err != nil || again.Enqueued.Run != r.Enqueued.Run { // G21
		t.Fatalf("the same call made another run: %+v %v", again, err)
	}
	row, err := w.b.run(context.Background(), w.s, r.Enqueued.Run)
	if err != nil || row.m.ReplayOf != old.run || row.m.Requester.EntityID != "op" {
		t.Fatalf("%+v %v", row.m, err)
	}
	if k, _ := row.key("LOW"); k.SourceVersion != "1" {
		t.Errorf("LOW is not pinned: %+v", k)
	}
	w.must("op", "secrets/ci/token", map[string]any{"value": canary + "-2"}) // rotated after the enqueue
	g := w.guest(*again.Enqueued, "agent-1", "acc-replay")
	if err := g.sendClaim(g.claimDoc(again.Enqueued.Ticket, w.ownUID(), nil, nil)); err != nil {
		t.Fatal(err)
	}
	a, _, err := g.creds("LOW", idem(51))
	if err != nil || g.value(a) != canary {
		t.Errorf("as recorded is the recorded version: %v", err)
	}
	if err := g.confirm(a); err != nil {
		t.Fatal(err)
	}
	w.revoke(sealed.RevokeKey, "LOW", false)
	_, _, err = g.creds("LOW", idem(52))
	wantCode(t, err, 403)
}

// What was left out at enqueue stays out, whatever the policy says at issue;
// current, in contrast, uses what is there now.
func TestReplayLeavesOut(t *testing.T) {
	w := newWorld(t)
	old := w.recorded(1)
	w.must("op", "secrets/ci/token", map[string]any{"value": canary + "-2"})
	claim := func(as string, n int) *guest {
		t.Helper()
		r, err := w.replay(old.run, map[string]any{"as": as, "spec": w.json(replaySpec(idem(n)))})
		if err != nil {
			t.Fatal(err)
		}
		g := w.guest(*r.Enqueued, "agent-1", "acc-"+as)
		if err := g.sendClaim(g.claimDoc(r.Enqueued.Ticket, w.ownUID(), nil, nil)); err != nil {
			t.Fatal(err)
		}
		return g
	}
	_, _, err := claim(sealed.ReplayRecorded, 60).creds("LOW", idem(61))
	wantCode(t, err, 403)
	w.wantEntry("policy.denied", sealed.ReasonReplay)
	now := claim(sealed.ReplayCurrent, 62)
	a, _, err := now.creds("LOW", idem(63))
	if err != nil || now.value(a) != canary+"-2" {
		t.Errorf("control: as current is the current version: %v", err)
	}
}

func TestReplayRefuses(t *testing.T) {
	w := newWorld(t)
	old := w.recorded(1)
	spec := func(change func(*sealed.ReplaySpec)) string {
		s := replaySpec(idem(70))
		change(&s)
		return w.json(s)
	}
	other := sealed.CommandDigest([]string{"rm", "-rf", "/"})
	for name, c := range map[string]struct {
		data map[string]any
		want string
	}{
		"no as":             {map[string]any{"spec": spec(func(*sealed.ReplaySpec) {})}, "field as"},
		"as a guess":        {map[string]any{"as": "guess", "dry_run": true}, "field as"},
		"another command":   {map[string]any{"as": "current", "spec": spec(func(s *sealed.ReplaySpec) { s.CommandDigest = other })}, "field command_digest"},
		"another input":     {map[string]any{"as": "current", "spec": spec(func(s *sealed.ReplaySpec) { s.InputDigest = "" })}, "field input_digest"},
		"another workspace": {map[string]any{"as": "recorded", "spec": spec(func(s *sealed.ReplaySpec) { s.WorkspaceDigest = other })}, "field workspace_digest"},
		"short key":         {map[string]any{"as": "recorded", "spec": spec(func(s *sealed.ReplaySpec) { s.IdempotencyKey = "x" })}, "idempotency_key"},
		"no spec":           {map[string]any{"as": "recorded"}, ""},
		"unknown in spec":   {map[string]any{"as": "recorded", "spec": `{"mode":"jit"}`}, "mode"},
		"unknown field":     {map[string]any{"as": "recorded", "profile": "other"}, "profile"},
		"large":             {map[string]any{"as": "recorded", "spec": strings.Repeat("x", 1<<20)}, ""},
	} {
		_, err := w.replay(old.run, c.data)
		if code(err) != 400 || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := w.list(nil); len(got) != 1 {
		t.Errorf("a refusal made a run: %v", got)
	}
	_, err := w.replay("01JNAAAAAAAAAAAAAAAAAAAAAA", map[string]any{"as": "current", "dry_run": true})
	wantCode(t, err, 403)
	_, err = w.do("", "", logical.UpdateOperation, "runs/"+string(old.run)+"/replay", map[string]any{"as": "current", "dry_run": true})
	wantCode(t, err, 403) // an entity-less token may not enqueue
	for _, c := range [][2]string{{sealed.RevokeRun, string(old.run)}, {sealed.RevokeProfile, "team/release"}, {sealed.RevokeIdentity, testSPIFFE}, {sealed.RevokeTenant, testTenant}} {
		rev := w.revoke(c[0], c[1], false)
		for _, dry := range []bool{true, false} {
			_, err := w.replay(old.run, map[string]any{"as": "current", "dry_run": dry, "spec": spec(func(*sealed.ReplaySpec) {})})
			if code(err) != 403 || !strings.Contains(err.Error(), rev["id"].(string)) {
				t.Errorf("%s revoked, dry %v: %v", c[0], dry, err)
			}
		}
		w.must("op", "revocations/"+rev["id"].(string)+"/lift", map[string]any{"reason": "test"})
	}
	if _, err := w.replay(old.run, map[string]any{"as": "current", "dry_run": true}); err != nil {
		t.Errorf("control: after the lift: %v", err)
	}
}

// What can't be compared is not taken for the same: without a version to pin,
// as recorded goes without the key.
func TestReplayPin(t *testing.T) {
	for name, c := range map[string]struct {
		key    sealed.ReplayKey
		denied bool
		pinned sealed.SourceVersion
	}{
		"same":                     {sealed.ReplayKey{Recorded: "3", Current: "3"}, false, "3"},
		"a new one at every issue": {sealed.ReplayKey{Differs: []string{sealed.ReplayFresh}}, false, ""},
		"never got":                {sealed.ReplayKey{Differs: []string{sealed.ReplayNotUsed}, Current: "2"}, false, ""},
		"newest unknown":           {sealed.ReplayKey{Differs: []string{sealed.ReplayUnknown}, Recorded: "3"}, false, "3"},
		"nothing known":            {sealed.ReplayKey{Differs: []string{sealed.ReplayUnknown}}, true, ""},
		"rotated":                  {sealed.ReplayKey{Differs: []string{sealed.ReplayRotated}, Recorded: "3", Current: "4"}, true, ""},
		"revoked":                  {sealed.ReplayKey{Differs: []string{sealed.ReplayRevoked}, Recorded: "3", Current: "3"}, true, ""},
		"added":                    {sealed.ReplayKey{Differs: []string{sealed.ReplayKeyAdded}}, true, ""},
	} {
		mk := sealed.ManifestKey{Decision: sealed.Decision{Effect: sealed.EffectAllow}}
		(&replay{}).pin(&mk, c.key)
		if leftOut(mk) != c.denied || (mk.Decision.Effect == sealed.EffectDeny) != c.denied || mk.SourceVersion != c.pinned {
			t.Errorf("%s: %+v", name, mk)
		}
		if got := pinnedRef(mk, sealed.KeyRef{Version: "9"}).Version; got != c.pinned && (c.pinned != "" || got != "9") {
			t.Errorf("%s: reads version %s", name, got)
		}
	}
}
