package vaultplugin

import (
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

func (w *world) tryOverlay(text string) error {
	w.t.Helper()
	_, err := w.do("op", "", logical.UpdateOperation, "policy/overlay", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte(text))})
	return err
}

var deleteOverlay = changeCall{op: logical.DeleteOperation, path: "policy/overlay"}

func (w *world) removeOverlay() {
	w.t.Helper()
	if out, err := w.make("op", deleteOverlay); err != nil || out["proposal"] != nil {
		w.t.Fatal(out, err)
	}
}

// overlayState is what reading the overlay says of it; none is "".
func (w *world) overlayState() string {
	w.t.Helper()
	resp, err := w.do("op", "", logical.ReadOperation, "policy/overlay", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if resp == nil {
		return ""
	}
	return fmt.Sprint(resp.Data["state"], " ", resp.Data["sequence"])
}

func TestOverlayLife(t *testing.T) {
	w := newWorld(t)
	if got := w.overlayState(); got != "" {
		t.Errorf("before any: %q", got)
	}
	w.removeOverlay() // none: nothing happens
	w.layOver(laidOver, yes)
	w.layOver(laidOver, yes) // the same again
	if n := len(w.entriesOf("overlay.activated")); n != 1 || w.overlayState() != "in_force 3" {
		t.Errorf("%d entries; %s", n, w.overlayState())
	}
	w.policy("bundle 2") // has a floor of its own, and leaves the overlay where it is
	w.setShadow(onTrial, never)
	resp, err := w.do("op", "", logical.ReadOperation, "policy", nil)
	if err != nil || resp.Data["overlay"] != string(digestOfBundle([]byte(laidOver))) || resp.Data["overlay_sequence"] != "3" || w.overlayState() != "in_force 3" {
		t.Errorf("%v, %v", resp, err)
	}
	w.layOver("bundle 5 overlay", yes)
	ctx := context.Background()
	stored := func(text string) bool {
		resp, err := w.do("op", "", logical.ReadOperation, "policy/bundle/"+string(digestOfBundle([]byte(text))), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp != nil
	}
	g := w.claimed(idem(1)) // pins bundle 5
	w.removeOverlay()
	if got := w.overlayState(); got != "removed 5" || w.shadowState() != "asked" {
		t.Errorf("removed: %q, shadow %s", got, w.shadowState())
	}
	w.layOver("bundle 6 overlay", yes)
	w.layOver("bundle 7 overlay", yes)
	if err := w.b.sweepBundles(ctx, w.s); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, text := range []string{laidOver, "bundle 5 overlay", "bundle 6 overlay", "bundle 7 overlay"} {
		got[text] = stored(text)
	}
	if diff := cmp.Diff(map[string]bool{laidOver: false, "bundle 5 overlay": true, "bundle 6 overlay": true, "bundle 7 overlay": true}, got); diff != "" {
		t.Errorf("kept: %s", diff)
	}
	if err := g.finish(g.record(nil)); err != nil {
		t.Fatal(err)
	}
	if err := w.b.sweepBundles(ctx, w.s); err != nil || stored("bundle 5 overlay") {
		t.Errorf("an overlay that nobody pins any more: %v", err)
	}
	// What is stored as an overlay does not decide alone, and neither does what was signed as one, wherever it lies.
	must(t, storeBundle(ctx, w.s, digestOfBundle([]byte("bundle 7 overlay")), []byte("bundle 7 overlay")))
	if b, err := w.b.bundleByDigest(ctx, w.s, digestOfBundle([]byte("bundle 7 overlay"))); err == nil {
		t.Errorf("%v decides", b.Ref())
	}
}

// Refused is what may not follow, for policy's reasons; each leaves an entry, and the
// overlay where it is. The floor outlives the overlay.
func TestOverlayRefused(t *testing.T) {
	w := newWorld(t)
	w.layOver("bundle 4 overlay", yes)
	before := w.allButLog()
	refused := func(text, why string) {
		t.Helper()
		n := len(w.entriesOf("bundle.rejected", `"as":"overlay"`, `"why":"`+why+`"`))
		wantCode(t, w.tryOverlay(text), 400)
		if got := len(w.entriesOf("bundle.rejected", `"as":"overlay"`, `"why":"`+why+`"`)); got != n+1 {
			t.Errorf("%s: %d entries", why, got-n)
		}
	}
	refused("unsigned", "not_verified")
	refused("bundle 0 overlay", "older")
	refused("bundle 3 overlay", "older")
	refused("bundle 4 another overlay", "same_sequence")
	refused("bundle 1", "no_overlay")
	refused("bundle 9", "no_overlay")
	for _, bad := range []string{"", "%", base64.StdEncoding.EncodeToString(make([]byte, maxBundle+1))} {
		_, err := w.do("op", "", logical.UpdateOperation, "policy/overlay", map[string]any{"bundle": bad})
		wantCode(t, err, 400)
	}
	if diff := cmp.Diff(before, w.allButLog()); diff != "" {
		t.Errorf("something was written: %.1000s", diff)
	}
	// The other way round: it is no policy by itself.
	_, err := w.do("op", "", logical.UpdateOperation, "policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte("bundle 4 overlay"))})
	wantCode(t, err, 400)
	w.wantEntry("bundle.rejected", `"why":"overlay"`)
	if w.active().Ref().Sequence != 1 {
		t.Error("an overlay decides alone")
	}

	w.removeOverlay()
	w.open()
	refused("bundle 3 overlay", "older")
	refused("bundle 4 overlay", "same_sequence")
	refused("bundle 4 another overlay", "same_sequence")
	w.layOver("bundle 5 overlay", never)
	if q := w.enqueue(idem(1)); q.Keys[0].Decision.Effect != sealed.EffectDeny {
		t.Errorf("%+v", q.Keys[0])
	}
}

// The log comes first: without its entry nothing changes.
func TestOverlayIsLoggedFirst(t *testing.T) {
	w := newWorld(t)
	w.layOver(laidOver, never)
	w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeLog), false })
	wantCode(t, w.tryOverlay("bundle 4 overlay"), 503)
	_, err := w.make("op", deleteOverlay)
	wantCode(t, err, 503)
	w.s.setFail(nil)
	if got := w.overlayState(); got != "in_force 3" {
		t.Errorf("it is %s", got)
	}
	// An activation that may or may not have been written is what storage says.
	w.s.setFail(func(_ int, key string) (bool, bool) { return false, key == storePolicy })
	if err := w.tryOverlay("bundle 4 overlay"); err == nil {
		t.Error("a failed write was not told")
	}
	w.s.setFail(nil)
	if got := w.overlayState(); got != "in_force 4" {
		t.Errorf("it is %s", got)
	}
}

// To take an overlay away widens: a second person confirms exactly that.
func TestOverlayRemovalTakesTwo(t *testing.T) {
	w := newStrict(t)
	w.layOver(laidOver, never) // narrows: at once
	o := w.proposed("op", deleteOverlay)
	if o.Kind != sealed.ProposalOverlay || !o.Delete || !cmp.Equal(o.Widens, []string{"overlay"}) {
		t.Errorf("%+v", o)
	}
	if again := w.proposed("op", deleteOverlay); again.ID != o.ID {
		t.Error("two proposals of the same")
	}
	if err := w.confirm("op", o, digestOfProposal(o)); code(err) != 403 {
		t.Errorf("by the proposer: %v", err)
	}
	if got := w.overlayState(); got != "in_force 3" {
		t.Errorf("it is %s", got)
	}
	if err := w.confirm("bob", o, digestOfProposal(o)); err != nil {
		t.Fatal(err)
	}
	if got := w.overlayState(); got != "removed 3" {
		t.Errorf("it is %s", got)
	}
	w.wantEntry("overlay.removed", `"by":"bob"`, `"proposal":"`+string(o.ID)+`"`, `"sequence":3`)

	// Another overlay than the one that was shown stays.
	w.layOver("bundle 4 overlay", never)
	o = w.proposed("op", deleteOverlay)
	w.layOver("bundle 5 overlay", never)
	if err := w.confirm("bob", o, digestOfProposal(o)); code(err) != 409 {
		t.Errorf("stale: %v", err)
	}
	if got := w.overlayState(); got != "in_force 5" {
		t.Errorf("it is %s", got)
	}
	// Control: a mount that asks nobody.
	loose := newWorld(t)
	loose.layOver(laidOver, never)
	loose.removeOverlay()
	if q := loose.enqueue(idem(1)); loose.overlayState() != "removed 3" || q.Keys[4].Decision.Effect != sealed.EffectAllow {
		t.Errorf("%s, %+v", loose.overlayState(), q.Keys[4])
	}
}

// An overlay that there is and that can't be used is never none.
func TestOverlayFailsClosed(t *testing.T) {
	ctx := context.Background()
	for name, tt := range map[string]struct {
		spoil         func(w *world)
		status        int // of what needs a decision
		state, reason string
	}{
		"bytes of another bundle": {func(w *world) {
			must(t, storeParts(ctx, w.s, storeOverlays, digestOfBundle([]byte(laidOver)), []byte("bundle 3 other")))
		}, 503, "unusable 3", ""},
		"bytes gone": {func(w *world) {
			must(t, deleteAll(ctx, w.s, storeOverlays+string(digestOfBundle([]byte(laidOver)))+"/"))
		}, 503, "unusable 3", ""},
		"its key removed": {func(w *world) {
			w.openBundle = func(_ context.Context, raw []byte, _ map[string]string) (Bundle, error) {
				if string(raw) == laidOver {
					return nil, errors.New("no such key")
				}
				return fakeBundle{raw: raw, seq: 1, decide: defaultPolicy}, nil
			}
		}, 503, "unusable 3", ""},
		"another sequence than the row's": {func(w *world) {
			w.openBundle = func(_ context.Context, raw []byte, _ map[string]string) (Bundle, error) {
				return fakeBundle{raw: raw, seq: 1, decide: defaultPolicy}, nil
			}
		}, 503, "unusable 3", ""},
		"expired": {func(w *world) {
			row, err := w.b.policyRow(ctx, w.s)
			must(t, err)
			row.Overlay.Expires = w.clock.now()
			must(t, put(ctx, w.s, storePolicy, row))
			w.openBundle = func(_ context.Context, raw []byte, _ map[string]string) (Bundle, error) {
				if string(raw) == laidOver {
					return expiring{fakeBundle{raw: raw, seq: 3, decide: yes}, w.clock.now()}, nil
				}
				return fakeBundle{raw: raw, seq: 1, decide: defaultPolicy}, nil
			}
		}, 403, "expired 3", sealed.ReasonExpired},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.layOver(laidOver, yes)
			g := w.claimed(idem(1))
			id := g.pendingID("HIGH", idem(2))
			tt.spoil(w)
			w.open()
			if got := w.overlayState(); got != tt.state {
				t.Errorf("state %q", got)
			}
			_, _, err := g.creds("LOW", idem(3))
			wantCode(t, err, tt.status)
			wantCode(t, w.vote("ann", id, "approve"), tt.status)
			q, err := w.tryEnqueue("op", enqueueSpec(idem(4)))
			if tt.reason == "" {
				wantCode(t, err, tt.status)
			} else if err != nil || q.Keys[0].Decision.Reasons[0].Code != tt.reason {
				t.Errorf("%+v, %v", q.Keys, err)
			}
			w.b.mem.off.overlay = true
			if _, _, err := g.creds("LOW", idem(5)); err != nil {
				t.Errorf("control, with the overlay left out: %v", err)
			}
			w.b.mem.off.overlay, w.openBundle = false, nil
			w.b.nouns.bundles.drop()
			w.layOver("bundle 4 overlay", yes) // the way out
			if _, err := w.tryEnqueue("op", enqueueSpec(idem(6))); err != nil {
				t.Error(err)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A restored snapshot has lost an overlay: until it is back, or two persons say that
// there is none, nothing is decided.
func TestRollbackOfOverlay(t *testing.T) {
	attest := func(w *world, size, overlay string) error {
		_, err := w.do("admin", "", logical.UpdateOperation, "config/attest-rollback",
			map[string]any{"lost_size": size, "policy_sequence": "1", "overlay_sequence": overlay, "reason": "restored"})
		return err
	}
	rolled := func(t *testing.T, first string) (*world, string) {
		w := newStrict(t)
		if first != "" {
			w.layOver(first, yes)
		}
		snapshot := w.snapshot()
		w.layOver("bundle 5 overlay", never)
		lost, size := w.head()
		w.restore(snapshot)
		_, err := w.present(lost)
		wantCode(t, err, 503)
		wantCode(t, w.tryOverlay("bundle 5 overlay"), 503)
		return w, size
	}
	for _, first := range []string{"", laidOver} {
		w, size := rolled(t, first)
		if first != "" {
			wantCode(t, attest(w, size, ""), 400) // there is one: its sequence has to be said
			wantCode(t, attest(w, size, "2"), 400)
		}
		wantCode(t, attest(w, size, "x"), 400)
		must(t, attest(w, size, "5"))
		w.wantEntry("log.rollback_attested", `"overlay_sequence":"5"`)
		w.open()
		_, err := w.tryEnqueue("op", enqueueSpec(idem(1)))
		wantCode(t, err, 503)
		wantCode(t, w.tryOverlay("bundle 4 overlay"), 400)
		if got := w.overlayState(); got != "awaited 4" {
			t.Errorf("it is %s", got)
		}
		must(t, w.tryOverlay("bundle 5 overlay"))
		if q, err := w.tryEnqueue("op", enqueueSpec(idem(1))); err != nil || q.Keys[3].Decision.Effect != sealed.EffectDeny {
			t.Errorf("%+v, %v", q.Keys, err)
		}
	}
	w, size := rolled(t, "")
	must(t, attest(w, size, "5"))
	o := w.proposed("op", deleteOverlay)
	must(t, w.confirm("bob", o, digestOfProposal(o)))
	if _, err := w.tryEnqueue("op", enqueueSpec(idem(1))); err != nil {
		t.Errorf("two persons said that there is none: %v", err)
	}
	// Control: nobody says that there was one.
	w, size = rolled(t, "")
	must(t, attest(w, size, ""))
	if _, err := w.tryEnqueue("op", enqueueSpec(idem(1))); err != nil {
		t.Error(err)
	}
}

// loops never ends within the time of a decision.
const loops = `package sealed.authz
default decision := {"effect": "deny", "reasons": [{"code": "no", "msg": "no"}], "obligations": {}}
ten := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
decision := {"effect": "allow", "reasons": [], "obligations": {}} if {
	some a in ten
	some b in ten
	some c in ten
	some d in ten
	some e in ten
	some f in ten
	some g in ten
	some h in ten
	((((((a + b) + c) + d) + e) + f) + g) + h < 0
}
`

const everybodyVotes = `package sealed.approval
decision := {"effect": "allow", "reasons": [], "obligations": {}}
`

// With real bundles: the example that keeps hours narrows by night only, one that
// loops or has no answer denies, and each recorded answer is derived again offline.
func TestOverlayWithRealBundles(t *testing.T) {
	w, sign := newSignedWorld(t)
	hours := sign(os.DirFS("../rego/examples/production-hours"), 1, 30*24*time.Hour)
	over := map[sealed.Digest][]byte{}
	lay := func(raw []byte) {
		t.Helper()
		must(t, w.tryOverlay(string(raw)))
		over[digestOfBundle(raw)] = raw
	}
	answering := func(authz string) fs.FS {
		return fstest.MapFS{"sealed/authz/a.rego": {Data: []byte(authz)}, "sealed/approval/a.rego": {Data: []byte(everybodyVotes)}}
	}
	effect := func(n int) (sealed.Effect, string) {
		t.Helper()
		for _, k := range w.enqueue(idem(n)).Keys {
			if k.Name == "LOW" {
				return k.Decision.Effect, fmt.Sprint(k.Decision.Reasons)
			}
		}
		t.Fatal("no key LOW")
		return "", ""
	}
	if e, why := effect(1); e != sealed.EffectAllow {
		t.Fatalf("without an overlay: %s %s", e, why)
	}
	lay(hours)
	next := w.clock.now().Truncate(24 * time.Hour)
	for next.Weekday() != time.Wednesday {
		next = next.Add(24 * time.Hour)
	}
	w.clock.add(next.Add(7*24*time.Hour + 10*time.Hour).Sub(w.clock.now()))
	if e, why := effect(2); e != sealed.EffectAllow {
		t.Errorf("by day: %s %s", e, why)
	}
	w.clock.add(12 * time.Hour)
	if e, why := effect(3); e != sealed.EffectDeny || !strings.Contains(why, "outside_hours") {
		t.Errorf("by night: %s %s", e, why)
	}
	lay(sign(answering(loops), 2, 30*24*time.Hour))
	if e, why := effect(4); e != sealed.EffectDeny || !strings.Contains(why, sealed.ReasonTimeout) {
		t.Errorf("loops: %s %s", e, why)
	}
	lay(sign(answering("package sealed.authz\ndecision := 1 if input.nothing\n"), 3, 30*24*time.Hour))
	if e, why := effect(5); e != sealed.EffectDeny || !strings.Contains(why, sealed.ReasonUndefined) {
		t.Errorf("undefined: %s %s", e, why)
	}
	w.b.mem.off.overlay = true
	if e, why := effect(6); e != sealed.EffectAllow {
		t.Errorf("control, with the overlay left out: %s %s", e, why)
	}
	w.b.mem.off.overlay = false
	for name, raw := range map[string][]byte{
		"older": sign(os.DirFS("../rego/examples/break-glass"), 2, 30*24*time.Hour),
		"not_verified": func() []byte {
			_, other := newSignedWorld(t)
			return other(os.DirFS("../rego/examples/break-glass"), 9, 30*24*time.Hour)
		}(),
		"expired": sign(os.DirFS("../rego/examples/break-glass"), 9, time.Hour),
	} {
		wantCode(t, w.tryOverlay(string(raw)), 400)
		w.wantEntry("bundle.rejected", `"as":"overlay"`, `"why":"`+name+`"`)
	}
	derived := map[bool]int{}
	for typ, events := range w.decisions() {
		for _, e := range events {
			raw := w.raw
			if e.Overlay() {
				raw = over[e.Ref().Digest]
			}
			b, err := opabundle.Inspect(t.Context(), raw, opabundle.Limits{})
			must(t, err)
			if d, err := e.Again(t.Context(), decisionlog.Decider(b)); err != nil || !e.Matches(d) || b.Ref() != e.Ref() {
				t.Errorf("%s: %+v, %v; recorded %+v", typ, d, err, e.Result)
			}
			derived[e.Overlay()]++
		}
	}
	if derived[true] < 8 || derived[false] < 30 {
		t.Errorf("derived %v", derived)
	}
}

// newSignedWorld is a real world with a way to sign overlays for it, which live from now.
func newSignedWorld(t *testing.T) (*world, func(src fs.FS, sequence uint64, life time.Duration) []byte) {
	t.Helper()
	w := newRealWorld(t, nil, "")
	public, key := newPolicyPEM(t)
	make := func(src fs.FS, sequence uint64, life time.Duration, overlay bool) []byte {
		t.Helper()
		raw, err := opabundle.Build(t.Context(), src, opabundle.Manifest{Sequence: sequence, Expires: time.Now().Add(life), Overlay: overlay})
		must(t, err)
		raw, err = opabundle.Sign(t.Context(), raw, crypto.Signer(key), "k1")
		must(t, err)
		return raw
	}
	w.b.policy.changing.Lock()
	must(t, put(t.Context(), w.s, storePolicyKeys, policyKeys{Version: 1, Keys: map[string]string{"k1": public}}))
	must(t, put(t.Context(), w.s, storePolicy, policyRow{}))
	w.b.policy.changing.Unlock()
	w.open()
	w.raw = make(rego.FS(), 1, 30*24*time.Hour, false)
	w.policy(string(w.raw))
	return w, func(src fs.FS, sequence uint64, life time.Duration) []byte { return make(src, sequence, life, true) }
}
