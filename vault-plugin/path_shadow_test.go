package vaultplugin

import (
	"context"
	"encoding/base64"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

func (w *world) tryShadow(text string) error {
	w.t.Helper()
	_, err := w.do("op", "", logical.UpdateOperation, "policy/shadow", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte(text))})
	return err
}

func (w *world) removeShadow() {
	w.t.Helper()
	if _, err := w.do("op", "", logical.DeleteOperation, "policy/shadow", nil); err != nil {
		w.t.Fatal(err)
	}
}

// asked is how many answers of shadows one more enqueue adds to the log.
func (w *world) asked(id string) int {
	w.t.Helper()
	count := func() (n int) {
		for _, events := range w.shadows() {
			n += len(events)
		}
		return n
	}
	before := count()
	w.enqueue(id)
	return count() - before
}

// storedUnder are the keys of storage with a prefix.
func (w *world) storedUnder(prefix string) []string {
	w.t.Helper()
	keys := slices.Sorted(maps.Keys(w.allButLog()))
	return slices.DeleteFunc(keys, func(k string) bool { return !strings.HasPrefix(k, prefix) })
}

func never(string, any) sealed.Decision { return sealed.Deny("never", "") }

func TestShadowLife(t *testing.T) {
	w := newWorld(t)
	if w.shadowState() != "" || w.asked(idem(1)) != 0 {
		t.Error("a shadow that nobody set")
	}
	w.removeShadow() // none: nothing happens
	w.setShadow(onTrial, never)
	if got := w.shadowState(); got != "asked" || w.asked(idem(2)) != 7 {
		t.Errorf("state %q", got)
	}
	w.setShadow(onTrial, never) // the same again
	if n := len(w.entriesOf("policy.shadow_set")); n != 1 {
		t.Errorf("%d entries", n)
	}
	// It has raised no floor, an upload keeps it, and so does the sweep.
	w.policy("bundle 2")
	if err := w.b.sweepBundles(context.Background(), w.s); err != nil {
		t.Fatal(err)
	}
	if w.active().Ref().Sequence != 2 || w.asked(idem(3)) != 7 {
		t.Error("an upload below the sequence of the shadow")
	}
	resp, err := w.do("op", "", logical.ReadOperation, "policy/bundle/"+string(digestOfBundle([]byte(onTrial))), nil)
	if err != nil || resp == nil || resp.Data["bundle"] != base64.StdEncoding.EncodeToString([]byte(onTrial)) {
		t.Errorf("reading the bundle: %v, %v", resp, err)
	}
	// What is on trial is not among the bundles that may decide.
	if b, err := w.b.bundleByDigest(context.Background(), w.s, digestOfBundle([]byte(onTrial))); err == nil {
		t.Errorf("%v decides", b.Ref())
	}
	// Another one takes its place, of a sequence below that in force.
	w.setShadow("bundle 1 older", never)
	if got := w.storedUnder(storeShadows); len(got) != 1 || !strings.Contains(got[0], string(digestOfBundle([]byte("bundle 1 older")))) {
		t.Errorf("stored: %q", got)
	}
	// Removed, it is gone at once.
	w.removeShadow()
	if got := w.storedUnder(storeShadows); w.shadowState() != "" || w.asked(idem(4)) != 0 || len(got) != 0 {
		t.Errorf("after the removal: %q", got)
	}
	if n := len(w.entriesOf("policy.shadow_removed", `"why":"removed"`)); n != 1 {
		t.Errorf("%d entries of the removal", n)
	}
}

func TestShadowThatIsUploadedIsRemoved(t *testing.T) {
	w := newWorld(t)
	w.setShadow(onTrial, defaultPolicy)
	out := w.must("op", "policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte("bundle 3"))})
	if out["shadow_removed"] != nil || w.shadowState() != "asked" {
		t.Errorf("by another bundle: %v", out)
	}
	out = w.must("op", "policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte(onTrial))})
	if out["shadow_removed"] != true || w.shadowState() != "" || w.active().Ref().Sequence != 9 || w.asked(idem(1)) != 0 {
		t.Errorf("%v", out)
	}
	if n := len(w.entriesOf("policy.shadow_removed", `"why":"activated"`)); n != 1 {
		t.Errorf("%d entries", n)
	}
	if err := w.b.sweepBundles(context.Background(), w.s); err != nil || len(w.storedUnder(storeShadows)) != 0 {
		t.Errorf("%v, %q", err, w.storedUnder(storeShadows))
	}
	wantCode(t, w.tryShadow(onTrial), 400) // it is in force
}

func TestShadowRefused(t *testing.T) {
	w := newWorld(t)
	w.setShadow(onTrial, never)
	before := w.allButLog()
	for name, text := range map[string]string{"not_verified": "unsigned", "older": "bundle 0", "in_force": "bundle 1", "overlay": "bundle 9 overlay"} {
		wantCode(t, w.tryShadow(text), 400)
		if n := len(w.entriesOf("bundle.rejected", `"as":"shadow"`, `"why":"`+name+`"`)); n != 1 {
			t.Errorf("%s: %d entries", name, n)
		}
	}
	for _, bad := range []string{"", "%", base64.StdEncoding.EncodeToString(make([]byte, maxBundle+1))} {
		_, err := w.do("op", "", logical.UpdateOperation, "policy/shadow", map[string]any{"bundle": bad})
		wantCode(t, err, 400)
	}
	for k, v := range w.allButLog() {
		if before[k] != v {
			t.Errorf("%s was written", k)
		}
	}
	if w.shadowState() != "asked" || w.asked(idem(1)) != 7 {
		t.Error("the shadow that was there is not asked any more")
	}
}

// The log comes first: without its entry nothing changes.
func TestShadowIsLoggedFirst(t *testing.T) {
	w := newWorld(t)
	w.setShadow(onTrial, never)
	w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeLog), false })
	wantCode(t, w.tryShadow("bundle 4"), 503)
	_, err := w.do("op", "", logical.DeleteOperation, "policy/shadow", nil)
	wantCode(t, err, 503)
	_, err = w.do("op", "", logical.UpdateOperation, "policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte(onTrial))})
	wantCode(t, err, 503)
	w.s.setFail(nil)
	if w.shadowState() != "asked" || w.active().Ref().Sequence != 1 || w.asked(idem(1)) != 7 {
		t.Error("it was changed")
	}
}

// expiring is a bundle with an end.
type expiring struct {
	Bundle
	at time.Time
}

func (e expiring) Expires() time.Time { return e.at }

func TestShadowExpires(t *testing.T) {
	w := newWorld(t)
	end := w.clock.now().Add(time.Hour)
	w.openBundle = func(_ context.Context, raw []byte, _ map[string]string) (Bundle, error) {
		return expiring{fakeBundle{raw: raw, seq: 9, decide: never}, end}, nil
	}
	w.setShadow(onTrial, never)
	w.openBundle = nil
	if w.asked(idem(1)) != 7 {
		t.Error("it is not asked")
	}
	w.clock.add(time.Hour)
	if got := w.shadowState(); got != "expired" || w.asked(idem(2)) != 0 {
		t.Errorf("state %q", got)
	}
	w.openBundle = func(_ context.Context, raw []byte, _ map[string]string) (Bundle, error) {
		return expiring{fakeBundle{raw: raw, seq: 10, decide: never}, end}, nil
	}
	wantCode(t, w.tryShadow("bundle 10"), 400)
}

// A shadow survives a restart. Opening it holds up no call; one that can't be opened
// fails none.
func TestShadowAfterRestart(t *testing.T) {
	w := newWorld(t)
	w.setShadow(onTrial, never)
	w.open()
	w.b.policy.trials.wait = time.Minute
	w.enqueue(idem(1)) // begins to open it
	deadline := time.Now().Add(10 * time.Second)
	n := 0
	for i := 2; n == 0 && time.Now().Before(deadline); i++ {
		n = w.asked(idem(i))
	}
	if n != 7 || w.shadowState() != "asked" {
		t.Errorf("%d answers after a restart", n)
	}
	// Another node removed it.
	row, err := w.b.policyRow(context.Background(), w.s)
	if err != nil {
		t.Fatal(err)
	}
	row.Shadow = nil
	if err := put(context.Background(), w.s, storePolicy, row); err != nil {
		t.Fatal(err)
	}
	w.b.invalidate(context.Background(), storePolicy)
	if w.shadowState() != "" || w.asked(idem(1000)) != 0 {
		t.Error("it is asked after another node removed it")
	}
}

func TestShadowThatCannotBeOpened(t *testing.T) {
	w := newWorld(t)
	w.setShadow(onTrial, never)
	w.policies[onTrial] = nil
	if err := w.s.Put(context.Background(), &logical.StorageEntry{
		Key: partUnder(storeShadows, digestOfBundle([]byte(onTrial)), 0), Value: []byte(`{"of":1,"data":"eA=="}`),
	}); err != nil {
		t.Fatal(err)
	}
	w.open()
	if got := w.shadowState(); got != "unusable" || w.asked(idem(1)) != 0 || w.asked(idem(2)) != 0 {
		t.Errorf("state %q", got)
	}
	g := w.claimed(idem(3))
	if _, _, err := g.creds("LOW", idem(4)); err != nil {
		t.Errorf("a credential with an unusable shadow: %v", err)
	}
}
