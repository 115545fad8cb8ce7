package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// written notes the keys that a node writes, as Vault tells them to others.
type written struct {
	*faultStorage
	mu   sync.Mutex
	keys []string
}

func (s *written) note(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, key)
}

func (s *written) Put(ctx context.Context, e *logical.StorageEntry) error {
	defer s.note(e.Key)
	return s.faultStorage.Put(ctx, e)
}

func (s *written) Delete(ctx context.Context, key string) error {
	defer s.note(key)
	return s.faultStorage.Delete(ctx, key)
}

func (s *written) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.keys
	s.keys = nil
	return out
}

// TestInvalidatePerKey: a node that only learns which keys another has written
// answers as one that has just started. It is asked after each act, so that what
// it keeps in memory is warm.
func TestInvalidatePerKey(t *testing.T) {
	for _, control := range []bool{true, false} {
		t.Run(fmt.Sprintf("told %v", control), func(t *testing.T) {
			if stale := stalesAfter(t, control); control && len(stale) > 0 {
				t.Errorf("old answers after %v", stale)
			} else if !control && len(stale) == 0 {
				t.Error("a node that is told nothing has no old answers: the test shows nothing")
			}
		})
	}
}

// stalesAfter returns the acts after which a reader that is told of the keys, or
// is not, answers otherwise than a new one.
func stalesAfter(t *testing.T, told bool) (stale []string) {
	w := newWorld(t)
	s := &written{faultStorage: w.s}
	w.open()
	writer := w.b
	writer.storage = s
	w.open()
	reader := w.b
	var g *guest
	acts := []struct {
		name string
		do   func() error
	}{
		{"enqueue and claim", func() error { g = w.claimed(idem(1)); return nil }},
		{"creds", func() error {
			a, _, err := g.creds("LOW", idem(2))
			if err != nil {
				return err
			}
			return g.confirm(a)
		}},
		{"creds that nobody confirms", func() error { _, _, err := g.creds("LOW", idem(4)); return err }},
		{"ask for an approval", func() error { return w.vote("ann", g.pendingID("HIGH", idem(3)), "approve") }},
		{"config", func() error { w.must("op", "config", map[string]any{"stop_after": "90s"}); return nil }},
		{"profile", func() error {
			p := w.profile()
			p.Version, p.Description = 1, "changed"
			w.must("op", "profiles/workflow/team/release", map[string]any{"profile": w.json(p)})
			return nil
		}},
		{"agent", func() error {
			w.must("op", "agents/"+testAgent, map[string]any{"agent": w.json(sealed.AgentDefinition{Name: testAgent, Version: 1, AnyBinary: true})})
			return nil
		}},
		{"source", func() error {
			_, err := w.do("op", "", logical.DeleteOperation, "sources/dyn", map[string]any{"force": true})
			return err
		}},
		{"secret", func() error { w.must("op", "secrets/ci/token", map[string]any{"value": "next"}); return nil }},
		{"policy", func() error { w.policy("bundle 2"); return nil }},
		{"revocation", func() error { w.revoke("key", "team/release#LOW", false); return nil }},
		{"stop", func() error {
			w.must("op", "runs/"+string(g.run)+"/stop", map[string]any{"reason": "test"})
			return nil
		}},
	}
	for _, act := range acts {
		w.b, w.store = writer, s
		if err := act.do(); err != nil {
			t.Fatalf("%s: %v", act.name, err)
		}
		w.store = nil
		for _, key := range s.take() {
			if told {
				reader.invalidate(t.Context(), key)
			}
		}
		w.b = reader
		got := w.everything(g)
		w.open()
		if diff := cmp.Diff(w.everything(g), got); diff != "" {
			stale = append(stale, act.name)
			t.Logf("after %s (-new +told): %s", act.name, diff)
		}
	}
	return stale
}

// everything is what an engine answers to whoever may read all.
func (w *world) everything(g *guest) map[string]string {
	w.t.Helper()
	out := map[string]string{}
	ask := func(op logical.Operation, path string) {
		resp, err := w.do("op", "", op, path, nil)
		var data map[string]any
		if resp != nil {
			data = resp.Data
		}
		delete(data, "commits") // counted by each process
		raw, merr := json.Marshal(data)
		if merr != nil {
			w.t.Fatal(merr)
		}
		out[string(op)+" "+path] = fmt.Sprint(string(raw), err)
	}
	for _, p := range []string{"config", "config/trust-bundle", "config/policy-keys", "policy", "secrets/ci/token", "sources/dyn", "agents/" + testAgent,
		"profiles/workflow/team/release", "log/checkpoint", "config/attest-rollback", "runs/" + string(g.run)} {
		ask(logical.ReadOperation, p)
	}
	for _, p := range []string{"runs", "approvals", "revocations", "agents", "sources"} {
		ask(logical.ListOperation, p)
	}
	epoch, err := w.b.epoch(context.Background(), w.s)
	out["epoch"] = fmt.Sprint(epoch, err)
	x, err := w.b.index(context.Background(), w.s)
	if err != nil {
		w.t.Fatal(err)
	}
	var grants []string
	for _, gr := range x.grants(g.run) {
		grants = append(grants, fmt.Sprint(gr.ID, gr.State))
	}
	slices.Sort(grants)
	out["grants"] = fmt.Sprint(grants)
	return out
}
