package vaultplugin

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// decisions returns the recorded decisions, by the type of their entry.
func (w *world) decisions() map[string][]decisionlog.Event {
	w.t.Helper()
	out := map[string][]decisionlog.Event{}
	for _, line := range w.logged() {
		typ, body, _ := strings.Cut(line, " ")
		events, err := decisionlog.FromBody([]byte(body), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		out[typ] = append(out[typ], events...)
	}
	return out
}

func (w *world) active() Bundle {
	w.t.Helper()
	by, err := w.b.currentRules(context.Background(), w.s)
	if err != nil {
		w.t.Fatal(err)
	}
	return by.base
}

func TestDecisionsCanBeDerivedAgain(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatal(err)
	}
	const said = "because-my-secret-is-hunter2"
	_, err := g.call("creds/OTHER", sealed.CredsRequest{Run: g.run, Path: g.path("creds/OTHER"), Idempotency: idem(3), Delivery: sealed.DeliveryProxy, Reason: said})
	wantCode(t, err, 403)
	w.clock.add(time.Minute)
	if _, err := g.call("requests", sealed.MoreRequest{Run: g.run, Path: g.path("requests"), Key: "OTHER", Reason: said}); err != nil {
		t.Fatal(err)
	}
	got := w.decisions()
	counts := map[string]int{"run.enqueued": 7, "issue.intent": 1, "policy.denied": 2}
	if n := len(got[decisionlog.TypeDecided]); n > 0 { // the body of the enqueue had no room
		counts["run.enqueued"], counts[decisionlog.TypeDecided] = 0, 7
	}
	for typ, want := range counts {
		if len(got[typ]) != want {
			t.Errorf("%s: %d decisions, want %d", typ, len(got[typ]), want)
		}
		for _, e := range got[typ] {
			d, err := e.Again(context.Background(), w.active())
			if err != nil || !e.Matches(d) || e.Ref() != w.active().Ref() {
				t.Errorf("%s: %+v, %v; recorded %+v", typ, d, err, e.Result)
			}
			in, err := e.Request()
			if err != nil || in.Run.ID != g.run || in.Time != e.Timestamp {
				t.Errorf("%s: %+v, %v", typ, in, err)
			}
		}
	}
	if e := got["policy.denied"][0]; !slices.Contains(e.Erased, "/input/reason") {
		t.Errorf("erased %q", e.Erased)
	}
	for _, line := range w.logged() {
		if strings.Contains(line, "hunter2") || strings.Contains(line, canary) {
			t.Errorf("in the log: %s", line)
		}
	}
}

// A bundle that changed since the enqueue is asked as well, and both answers are kept.
func TestBothBundlesAreRecorded(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	w.policy(fmt.Sprintf("bundle %d", w.active().Ref().Sequence+1))
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatal(err)
	}
	got := w.decisions()["issue.intent"]
	if len(got) != 2 || got[0].Ref() == got[1].Ref() || got[1].Ref() != w.active().Ref() {
		t.Errorf("%+v", got)
	}
}

func TestWithDecidedKeepsEntriesSmall(t *testing.T) {
	in := sealed.Input{Phase: "enqueue", Time: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)}
	ref := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, nil), Sequence: 1}
	for _, tt := range []struct{ keys, name, entries int }{{0, 10, 1}, {1, 10, 1}, {maxKeys, 10, 2}, {maxKeys, 1000, 2}, {maxKeys, 20000, 2}} {
		in.Requester.Name = strings.Repeat("x", tt.name)
		var events []decisionlog.Event
		for range tt.keys {
			e, err := decisionlog.New("01JTSEALED0000000000000001", ref, in, sealed.Deny("x", "y"))
			if err != nil {
				t.Fatal(err)
			}
			events = append(events, e)
		}
		out := withDecided(audit.Event{Type: "run.enqueued", Essential: true}, map[string]any{}, events)
		if len(out) < tt.entries || len(out) > maxDecided+1 {
			t.Errorf("%+v: %d entries", tt, len(out))
		}
		n := 0
		for i, e := range out {
			kept, _ := e.Body.(map[string]any)[decisionlog.Member].([]decisionlog.Event)
			if n += len(kept); i > 0 && (e.Type != decisionlog.TypeDecided || !e.Essential) {
				t.Errorf("%+v: entry %+v", tt, e)
			}
		}
		if n != tt.keys {
			t.Errorf("%+v: %d decisions", tt, n)
		}
	}
}

func TestPolicyBundleIsReadByDigest(t *testing.T) {
	w := newWorld(t)
	ref := w.active().Ref()
	resp, err := w.do("op", "", logical.ReadOperation, "policy/bundle/"+string(ref.Digest), nil)
	if err != nil || resp.Data["bundle"] == "" {
		t.Fatalf("%v %v", resp, err)
	}
	other := sealed.DigestOf(sealed.DomainAgent, nil)
	if resp, err := w.do("op", "", logical.ReadOperation, "policy/bundle/"+string(other), nil); err != nil || resp != nil {
		t.Errorf("a bundle that is not there: %v %v", resp, err)
	}
	// What is stored under another digest is not given out.
	if err := storeBundle(context.Background(), w.s, other, []byte("bundle 1")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.do("op", "", logical.ReadOperation, "policy/bundle/"+string(other), nil); err == nil {
		t.Error("a bundle with another digest was given out")
	}
}

func BenchmarkDecided(b *testing.B) {
	in := sealed.Input{Phase: "issue", Time: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC), Tenant: "acme", Reason: ""}
	in.Key.Bindings = []sealed.Binding{{Host: "api.github.com", Methods: []string{"GET"}, Paths: []string{"/**"}, Header: "Authorization", Format: "Bearer {}"}}
	ref := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, nil), Sequence: 1}
	b.ReportAllocs()
	for b.Loop() {
		e, err := decisionlog.New("01JTSEALED0000000000000001", ref, in, sealed.Deny("x", "y"))
		if err != nil || len(withDecided(audit.Event{}, map[string]any{}, []decisionlog.Event{e})) != 1 {
			b.Fatal(err)
		}
	}
}

// An upload never blocks decisions under the bundle that is in force: while the
// new one is being opened, which can take long, keys are issued as before.
func TestUploadBlocksNoDecision(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	var once sync.Once
	opening, release := make(chan struct{}), make(chan struct{})
	w.openBundle = func(_ context.Context, raw []byte, _ map[string]string) (Bundle, error) {
		if string(raw) != "bundle 2" {
			return fakeBundle{raw: raw, seq: 1, decide: defaultPolicy}, nil
		}
		once.Do(func() { close(opening) })
		<-release
		return fakeBundle{raw: raw, seq: 2, decide: never}, nil
	}
	uploaded := make(chan error, 1)
	go func() {
		_, err := w.do("op", "", logical.UpdateOperation, "policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte("bundle 2"))})
		uploaded <- err
	}()
	<-opening
	asked := make(chan error, 2)
	go func() {
		_, _, err := g.creds("LOW", idem(2))
		asked <- err
		_, err = w.tryEnqueue("op", enqueueSpec(idem(3)))
		asked <- err
	}()
	for range 2 {
		select {
		case err := <-asked:
			if err != nil {
				t.Errorf("under the old bundle: %v", err)
			}
		case <-time.After(10 * time.Second):
			close(release)
			t.Fatal("a decision waits for the upload")
		}
	}
	close(release)
	if err := <-uploaded; err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.creds("LOW", idem(4)); code(err) != 403 {
		t.Errorf("control: the new bundle does not count: %v", err)
	}
}
