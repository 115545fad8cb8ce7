package vaultplugin

import (
	"errors"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// TestApproverLost (E20): a yes of somebody who is no longer an approver when
// the credential is asked for does not count, and the log says whose.
func TestApproverLost(t *testing.T) {
	everybody := func(question string, input any) sealed.Decision { // a wrong policy: everybody may vote
		if question == sealed.QuestionApproval {
			return sealed.Decision{Effect: sealed.EffectAllow}
		}
		return defaultPolicy(question, input)
	}
	for name, tt := range map[string]struct {
		policy func(string, any) sealed.Decision
		change func(w *world) // after ann and bob said yes; the caller holds the lock
		lost   string
	}{
		"control: nothing changes":          {change: func(*world) {}},
		"control: another group besides":    {change: func(w *world) { w.sys.groups["ann"] = []string{"approvers", "cooks"} }},
		"disabled":                          {change: func(w *world) { w.sys.entities["ann"].Disabled = true }, lost: `["ann"]`},
		"deleted":                           {change: func(w *world) { delete(w.sys.entities, "ann") }, lost: `["ann"]`},
		"left the group":                    {change: func(w *world) { w.sys.groups["ann"] = []string{"cooks"} }, lost: `["ann"]`},
		"left the group, policy wrong":      {policy: everybody, change: func(w *world) { w.sys.groups["ann"] = []string{"cooks"} }, lost: `["ann"]`},
		"is another person now":             {change: func(w *world) { w.sys.entities["ann"].Metadata = map[string]string{"hr_id": "9"} }, lost: `["ann"]`},
		"is the requester now":              {change: func(w *world) { w.sys.entities["ann"].Metadata = map[string]string{"hr_id": "1"} }, lost: `["ann"]`},
		"nobody knows who that is any more": {change: func(w *world) { w.sys.entities["ann"].Metadata = nil }, lost: `["ann"]`},
		"both":                              {change: func(w *world) { w.sys.entities["ann"].Disabled, w.sys.groups["bob"] = true, nil }, lost: `["ann","bob"]`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.must("op", "config", map[string]any{"person_claim": "hr_id"})
			w.sys.person("op", map[string]string{"hr_id": "1"}, "release-eng")
			w.sys.person("ann", map[string]string{"hr_id": "2"}, "approvers")
			w.sys.person("bob", map[string]string{"hr_id": "3"}, "approvers")
			if tt.policy != nil {
				w.policies["bundle 2"] = tt.policy
				w.policy("bundle 2")
			}
			g := w.claimed(idem(1))
			id := g.pendingID("CRITICAL", idem(2))
			for _, voter := range []string{"ann", "bob"} {
				if err := w.vote(voter, id, "approve"); err != nil {
					t.Fatal(err)
				}
			}
			w.sys.mu.Lock()
			tt.change(w)
			w.sys.mu.Unlock()
			if tt.lost == "" {
				if a, _, err := g.creds("CRITICAL", idem(3)); err != nil || string(a.Grant) != string(id) {
					t.Fatalf("%+v, %v", a, err)
				}
				return
			}
			if next := g.pendingID("CRITICAL", idem(3)); next == id {
				t.Error("the approval waits on")
			}
			if v := w.view(id); v.State != sealed.ApprovalVoid {
				t.Errorf("state %s", v.State)
			}
			w.wantEntry("approval.void", `"what":"approvers"`, `"entities":`+tt.lost)
			wantCode(t, w.vote("bob", id, "approve"), 409)
		})
	}
}

// A voter who can't be looked up is no yes, and ends nothing: the approval is
// good again when Vault answers.
func TestVoterNotLookedUp(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	down := &deafSystem{fakeSystem: w.sys, deaf: "ann"}
	if err := w.b.Setup(t.Context(), &logical.BackendConfig{StorageView: w.s, System: down, Logger: hclog.NewNullLogger(), Config: map[string]string{}}); err != nil {
		t.Fatal(err)
	}
	_, _, err := g.creds("HIGH", idem(3))
	wantCode(t, err, 503)
	if v := w.view(id); v.State != sealed.ApprovalApproved {
		t.Errorf("state %s", v.State)
	}
	down.deaf = ""
	if a, _, err := g.creds("HIGH", idem(4)); err != nil || string(a.Grant) != string(id) {
		t.Errorf("%+v, %v", a, err)
	}
}

// deafSystem is a Vault that does not answer about one entity.
type deafSystem struct {
	*fakeSystem
	deaf string
}

func (d *deafSystem) EntityInfo(id string) (*logical.Entity, error) {
	if id == d.deaf {
		return nil, errors.New("no answer")
	}
	return d.fakeSystem.EntityInfo(id)
}
