package vaultplugin

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// glass is the default policy with a review of every use, within an hour.
func glass(question string, in any) sealed.Decision {
	d := defaultPolicy(question, in)
	if question == sealed.QuestionAuthz && d.Effect != sealed.EffectDeny {
		d.Obligations.Review = sealed.ReviewObligation{Within: 3600, Groups: []string{"reviewers"}}
		d.Reasons = append(d.Reasons, sealed.Reason{Code: "break_glass"})
	}
	return d
}

func glassWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.sys.person("op", nil, "release-eng", "reviewers")
	w.sys.person("ann", nil, "approvers", "reviewers")
	w.sys.person("rex", nil, "reviewers")
	w.policies["bundle 2"] = glass
	w.policy("bundle 2")
	return w
}

func (w *world) openReviews() []sealed.Review {
	w.t.Helper()
	resp, err := w.do("rex", "", logical.ListOperation, "reviews/", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []sealed.Review
	keys, _ := resp.Data["keys"].([]string)
	for _, id := range keys {
		resp, err := w.do("rex", "", logical.ReadOperation, "reviews/"+id, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		var v sealed.Review
		if err := json.Unmarshal([]byte(resp.Data["review"].(string)), &v); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

func (w *world) closeReview(entity string, id sealed.GrantID) error {
	_, err := w.do(entity, "", logical.UpdateOperation, "reviews/"+string(id)+"/close", map[string]any{"finding": "justified", "note": "the site was down"})
	return err
}

// A use that owes a review is reviewed by a second party, also after its run and
// after a restart, and the finding is in the log.
func TestReview(t *testing.T) {
	w := glassWorld(t)
	g := w.claimed(idem(1))
	id := g.pendingID("HIGH", idem(2))
	if got := w.openReviews(); len(got) > 0 {
		t.Fatalf("asking alone owes %+v", got)
	}
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	a, _, err := g.creds("HIGH", idem(3))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.creds("HIGH", idem(3)); err != nil { // the same use
		t.Fatal(err)
	}
	open := w.openReviews()
	if len(open) != 1 || open[0].ID != a.Grant || open[0].RequesterID != "op" || len(open[0].Votes) != 1 || open[0].DueAt.Sub(open[0].OpenedAt) != time.Hour {
		t.Fatalf("open: %+v", open)
	}
	w.wantEntry("issue.intent", `"review_due":"2026-03-01T13:00:00Z"`)
	w.must("op", "runs/"+string(g.run)+"/stop", map[string]any{"reason": "done"})
	w.open()
	for entity, what := range map[string]string{"op": "self", "ann": "approver", "bob": "group"} {
		wantCode(t, w.closeReview(entity, a.Grant), 403)
		w.wantEntry("review.refused", `"entity":"`+entity+`"`, `"what":"`+what+`"`)
	}
	if err := w.closeReview("rex", a.Grant); err != nil {
		t.Fatal(err)
	}
	w.wantEntry("review.closed", `"finding":"justified"`, `"note":"the site was down"`, `"person":"rex"`, `"overdue":false`, string(a.Grant))
	if open := w.openReviews(); len(open) > 0 {
		t.Errorf("still open: %+v", open)
	}
	wantCode(t, w.closeReview("rex", a.Grant), 403)
	if n := slices.ContainsFunc(w.logged(), func(l string) bool { return strings.Contains(l, canary) }); n {
		t.Error("the value is in the log")
	}
	t.Run("control: without the check", func(t *testing.T) {
		w.b.mem.off.review = true
		a, _, err := w.claimed(idem(9)).creds("LOW", idem(10))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.closeReview("op", a.Grant); err != nil {
			t.Errorf("the test would not notice who closes: %v", err)
		}
	})
}

// Whoever owes an overdue review gets nothing more that owes one, in any run;
// others do, and so does everybody whom the policy asks for none.
func TestReviewOverdue(t *testing.T) {
	w := glassWorld(t)
	first, _, err := w.claimed(idem(1)).creds("LOW", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	w.clock.add(59 * time.Minute)
	again := w.claimed(idem(3))
	if _, _, err := again.creds("LOW", idem(4)); err != nil {
		t.Fatalf("in time: %v", err)
	}
	w.clock.add(time.Minute)
	_, _, err = again.creds("LOW", idem(5))
	wantCode(t, err, 403)
	w.wantEntry("policy.denied", "review_overdue")
	_, _, err = again.creds("HIGH", idem(6))
	wantCode(t, err, 403) // and nobody is asked in vain
	if err := w.closeReview("rex", first.Grant); err != nil {
		t.Fatal(err)
	}
	w.wantEntry("review.closed", `"overdue":true`)
	if _, _, err := again.creds("LOW", idem(7)); err != nil {
		t.Errorf("after the review: %v", err)
	}
}

// A use never comes without its review: the row is there before the intent, and
// one whose row can't be stored is none.
func TestReviewBeforeIntent(t *testing.T) {
	w := glassWorld(t)
	g := w.claimed(idem(1))
	w.s.setFail(func(_ int, key string) (before, after bool) { return strings.HasPrefix(key, storeReviews), false })
	_, _, err := g.creds("LOW", idem(2))
	wantCode(t, err, 503)
	w.s.setFail(nil)
	if slices.ContainsFunc(w.logged(), func(l string) bool { return strings.HasPrefix(l, "issue.intent") }) {
		t.Error("an intent without its review")
	}
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Errorf("control: %v", err)
	}
}

func TestReviewBadInput(t *testing.T) {
	w := glassWorld(t)
	a, _, err := w.claimed(idem(1)).creds("LOW", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]map[string]any{
		"no finding":      {"note": "x"},
		"another finding": {"finding": "fine", "note": "x"},
		"no note":         {"finding": "justified"},
		"blank note":      {"finding": "justified", "note": " \u200b\n"},
	} {
		_, err := w.do("rex", "", logical.UpdateOperation, "reviews/"+string(a.Grant)+"/close", data)
		if code(err) != 400 {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = w.do("rex", "", logical.ReadOperation, "reviews/01ARZ3NDEKTSV4RRFFQ69G5FAV", nil)
	wantCode(t, err, 403)
	if err := w.s.InmemStorage.Put(t.Context(), &logical.StorageEntry{Key: storeReviews + string(a.Grant), Value: []byte(`{"id":"other"}`)}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.claimed(idem(3)).creds("LOW", idem(4)); code(err) < 500 {
		t.Errorf("with a malformed review: %v", err)
	}
}
