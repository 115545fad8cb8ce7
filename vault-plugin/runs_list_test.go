package vaultplugin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// rows stores n runs like one that was enqueued, a minute apart, the last one
// now: claimed ones with a grant of DYN each, or ended ones.
func (w *world) rows(n int, state string, change func(i int, m *sealed.Manifest)) []sealed.RunID {
	w.t.Helper()
	ctx := context.Background()
	model, err := w.b.run(ctx, w.s, w.enqueue(fmt.Sprintf("model-of-%d-%s", n, state)).Run)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []sealed.RunID
	for i := range n {
		at := w.clock.now().Add(time.Duration(i-n+1) * time.Minute).UTC()
		id, err := sealed.NewULID(at, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		m := *model.m
		m.Run, m.CreatedAt = sealed.RunID(id), at
		if change != nil {
			change(i, &m)
		}
		raw, digest, err := sealed.MarshalManifest(m)
		if err != nil {
			w.t.Fatal(err)
		}
		r := runRow{ID: m.Run, State: state, Manifest: string(raw), ManifestDigest: digest, Idempotency: storeIdempotency + id,
			History: []stateChange{{State: state, At: at}}, Claim: &claimBinding{At: at}}
		to := storeRunsDone
		if !r.over() {
			to = storeRunsLive
			g := grantRow{ID: sealed.GrantID(id), Run: r.ID, Key: "DYN", Profile: "team/release", Source: "dyn", State: grantConfirmed, Ends: at.Add(240 * time.Hour)}
			if err := put(ctx, w.s, g.storageKey(), g); err != nil {
				w.t.Fatal(err)
			}
		}
		if err := put(ctx, w.s, to+id, r); err != nil {
			w.t.Fatal(err)
		}
		if err := put(ctx, w.s, r.Idempotency, idempotencyRow{Run: r.ID}); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, r.ID)
	}
	w.b.dropIndex()
	slices.Reverse(out)
	return out
}

// keyless makes the manifests of many runs small.
func keyless(_ int, m *sealed.Manifest) { m.Keys = nil }

func (w *world) list(query map[string]any) []sealed.RunID {
	w.t.Helper()
	resp, err := w.do("op", "", logical.ListOperation, "runs/", query)
	if err != nil {
		w.t.Fatal(err)
	}
	out := []sealed.RunID{}
	keys, _ := resp.Data["keys"].([]string)
	for _, k := range keys {
		out = append(out, sealed.RunID(k))
	}
	return out
}

func TestListRuns(t *testing.T) {
	w := newWorld(t)
	ids := w.rows(6, sealed.RunFinished, func(i int, m *sealed.Manifest) {
		m.Tags = []sealed.InputTag{{Name: fmt.Sprintf("t%d", i%2)}}
		if i == 0 {
			m.Agent.Name, m.Workflow, m.Profile = "codex", "nightly", "other"
			m.Requester = sealed.Requester{EntityID: "e-1", Name: "ann", Person: "ann@example.org"}
		}
	})
	model := w.list(map[string]any{"state": sealed.RunEnqueued})
	if len(model) != 1 {
		t.Fatalf("the enqueued run: %v", model)
	}
	at := func(i int) string { // when the i-th, newest first, was enqueued
		return w.clock.now().Add(time.Duration(-i) * time.Minute).UTC().Format(time.RFC3339Nano)
	}
	for name, c := range map[string]struct {
		query map[string]any
		want  []sealed.RunID
	}{
		"state":             {map[string]any{"state": "finished"}, ids},
		"agent":             {map[string]any{"agent": "codex"}, ids[5:]},
		"profile":           {map[string]any{"profile": "other"}, ids[5:]},
		"workflow":          {map[string]any{"workflow": "nightly"}, ids[5:]},
		"tag":               {map[string]any{"tag": "t1"}, []sealed.RunID{ids[0], ids[2], ids[4]}},
		"requester, name":   {map[string]any{"requester": "ann"}, ids[5:]},
		"requester, id":     {map[string]any{"requester": "e-1"}, ids[5:]},
		"requester, person": {map[string]any{"requester": "ann@example.org"}, ids[5:]},
		"requester, other":  {map[string]any{"requester": "nobody"}, []sealed.RunID{}},
		"since":             {map[string]any{"since": at(1), "state": "finished"}, ids[:2]},
		"until":             {map[string]any{"until": at(3)}, ids[4:]},
		"both":              {map[string]any{"since": at(4), "until": at(2)}, ids[3:5]},
		"page":              {map[string]any{"state": "finished", "limit": 2}, ids[:2]},
		"next page":         {map[string]any{"state": "finished", "limit": 2, "after": string(ids[1])}, ids[2:4]},
		"after all":         {map[string]any{"after": string(ids[5])}, []sealed.RunID{}},
		"until before after": {map[string]any{"until": at(4), "after": string(ids[0])},
			ids[5:]},
		"several": {map[string]any{"tag": "t0", "agent": "claude-code", "limit": 1}, ids[1:2]},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, w.list(c.query)); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, bad := range []map[string]any{
		{"state": "gone"}, {"after": "x"}, {"after": "../x"}, {"limit": -1}, {"limit": 1001}, {"since": "yesterday"}, {"until": "1"}, {"nonsense": "x"},
		{"since": "1000-01-01T00:00:00Z"}, {"limit": "many"},
	} {
		if _, err := w.do("op", "", logical.ListOperation, "runs/", bad); code(err) != 400 {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// counting counts what is read.
type counting struct {
	logical.Storage
	reads int
}

func (c *counting) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	c.reads++
	return c.Storage.Get(ctx, key)
}

// TestManyRuns: with 10,000 ended runs a list that finds nothing reads no row
// once they are in memory, which the worker sees to after a start.
func TestManyRuns(t *testing.T) {
	w := newWorld(t)
	ids := w.rows(10000, sealed.RunFinished, keyless)
	w.open()
	ctx := context.Background()
	for more := true; more; {
		var err error
		if more, err = w.b.warmRuns(ctx, w.s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.b.index(ctx, w.s); err != nil {
		t.Fatal(err)
	}
	if err := w.b.layout.ready(ctx, w.b, w.s); err != nil {
		t.Fatal(err)
	}
	c := &counting{Storage: w.s}
	start := time.Now()
	resp, err := w.b.HandleRequest(ctx, &logical.Request{Operation: logical.ListOperation, Path: "runs/", Data: map[string]any{"tag": "none"}, Storage: c})
	if err != nil || len(resp.Data["keys"].([]string)) != 0 || c.reads != 0 {
		t.Errorf("%d reads, %v", c.reads, err)
	}
	t.Logf("a list over 10,000 runs took %v", time.Since(start).Round(time.Millisecond))
	if got := w.list(map[string]any{"after": string(ids[4999]), "limit": 1000, "state": sealed.RunFinished}); !slices.Equal(got, ids[5000:6000]) {
		t.Error("a page from the middle")
	}
}

// TestPreviewOfManyRuns: what a revocation would stop, over 10,000 live runs.
func TestPreviewOfManyRuns(t *testing.T) {
	w := newWorld(t)
	w.rows(10000, sealed.RunClaimed, keyless)
	if _, err := w.b.index(context.Background(), w.s); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	out := w.must("op", "revocations/preview", map[string]any{"kind": "source", "target": "dyn", "reason": "r"})
	took := time.Since(start)
	t.Logf("a preview over 10,000 runs took %v", took.Round(time.Millisecond))
	if len(out["runs"].([]string)) != 10000 || out["grants"] != 10000 {
		t.Errorf("%d runs, %v grants", len(out["runs"].([]string)), out["grants"])
	}
	if took > 5*time.Second { // the goal is 1 s; the race detector and a busy machine take their part
		t.Errorf("took %v", took)
	}
}

func TestPruneRuns(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	g := w.claimed(idem(1))
	a, _, err := g.creds("LOW", idem(2))
	if err != nil || g.confirm(a) != nil {
		t.Fatal(err)
	}
	pending := g.pendingID("HIGH", idem(3))
	if err := g.finish(g.record(nil)); err != nil {
		t.Fatal(err)
	}
	closed := w.claimed(idem(4))
	w.must("op", closed.path("close"), map[string]any{"reason": "test"})
	if err := put(ctx, w.s, storeRecords+string(closed.run), recordRow{Envelope: "{}"}); err != nil { // of a finish that failed
		t.Fatal(err)
	}
	w.clock.add(time.Minute)
	w.b.worker.tick(ctx, w.s)
	prune := func() {
		t.Helper()
		if err := w.b.pruneRuns(ctx, w.s); err != nil {
			t.Fatal(err)
		}
	}
	w.clock.add(keepRuns - 2*time.Minute)
	prune()
	if got := w.list(nil); len(got) != 2 {
		t.Fatalf("pruned too early: %v", got)
	}
	before := len(w.logged())
	w.clock.add(3 * time.Minute)
	prune()
	if got := w.list(nil); len(got) != 0 {
		t.Fatalf("not pruned: %v", got)
	}
	w.wantEntry("runs.pruned", `"count":2`)
	if len(w.logged()) != before+1 {
		t.Error("one entry for one batch")
	}
	for _, id := range []string{string(g.run), string(closed.run)} {
		_, err := w.do("op", "", logical.ReadOperation, "runs/"+id, nil)
		wantCode(t, err, 403)
	}
	_, err = w.do("op", "", logical.ReadOperation, "approvals/"+string(pending), nil)
	if err == nil {
		t.Error("its approval is still there")
	}
	resp, err := w.do("op", "", logical.ReadOperation, g.path("record"), nil)
	if err != nil || resp == nil || resp.Data["record"] == "" {
		t.Errorf("the record has to stay: %v", err)
	}
	_, err = w.do("op", "", logical.ReadOperation, closed.path("record"), nil)
	wantCode(t, err, 403)
	for _, prefix := range []string{storeRunsDone, storeRunsLive, storeIdempotency, storeInputs, storeGrants} {
		if left, err := w.s.List(ctx, prefix); err != nil || len(left) != 0 {
			t.Errorf("%s: %v, %v", prefix, left, err)
		}
	}
	if again := w.enqueue(idem(1)); again.Run == g.run {
		t.Error("the same request brought back a pruned run")
	}
}

// TestPruneIsBounded: a batch at a time, oldest first; a live run of the same
// age stays; a crash between two deletes is made good.
func TestPruneIsBounded(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	ids := w.rows(prunePerTick+20, sealed.RunClosed, nil)
	live := w.rows(3, sealed.RunClaimed, nil)
	w.clock.add(keepRuns + 24*time.Hour)
	w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeRunsDone), false })
	if err := w.b.pruneRuns(ctx, w.s); err == nil {
		t.Fatal("control: storage failed")
	}
	w.s.setFail(nil)
	if err := w.b.pruneRuns(ctx, w.s); err != nil {
		t.Fatal(err)
	}
	if got := w.list(map[string]any{"limit": 1000, "state": sealed.RunClosed}); !slices.Equal(got, ids[:20]) {
		t.Errorf("%d runs are left", len(got))
	}
	for _, id := range live {
		if _, err := w.b.run(ctx, w.s, id); err != nil {
			t.Errorf("a live run is gone: %v", err)
		}
	}
	d := w.must("op", "config", map[string]any{"keep_runs": "1h"})
	if d == nil {
		t.Error("no answer")
	}
	for _, bad := range []string{"59m", "-1h", "x", "900000h"} {
		if _, err := w.do("op", "", logical.UpdateOperation, "config", map[string]any{"keep_runs": bad}); code(err) != 400 {
			t.Errorf("keep_runs %s: %v", bad, err)
		}
	}
}
