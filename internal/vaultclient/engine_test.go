package vaultclient

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// answering returns an engine at tenants/a/sealed whose every call is answered
// with data, and the requests that were made.
func answering(t *testing.T, data map[string]any) (*Engine, *[]*http.Request) {
	t.Helper()
	var got []*http.Request
	addr, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r)
		if data == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
	})
	c, err := New(addr, ca, "t")
	if err != nil {
		t.Fatal(err)
	}
	return c.Engine("/tenants/a/sealed/"), &got
}

// malformedIsFine is for answers that this server does not know how to give.
func malformedIsFine[T any](_ T, err error) error {
	if errors.Is(err, sealed.ErrInvalid) {
		return nil
	}
	return err
}

func TestEnginePaths(t *testing.T) {
	ctx := t.Context()
	const run = sealed.RunID("01JD0Z5X7RS3X7Q4K5M6N7P8Q9")
	for want, call := range map[string]func(*Engine) error{
		"GET runs?limit=2&list=true&state=claimed": func(e *Engine) error {
			_, err := e.Runs(ctx, RunFilter{State: "claimed", Limit: 2})
			return err
		},
		"GET runs?after=" + string(run) + "&agent=a&list=true&profile=p&requester=r&since=2026-01-02T03%3A04%3A05Z&tag=t&workflow=w": func(e *Engine) error {
			_, err := e.Runs(ctx, RunFilter{After: run, Agent: "a", Profile: "p", Requester: "r", Tag: "t", Workflow: "w", Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
			return err
		},
		"PUT runs/" + string(run) + "/replay":                                               func(e *Engine) error { return malformedIsFine(e.PreviewReplay(ctx, run, "current")) },
		"GET watch?watch=%7B%22runs%22%3Anull%2C%22epoch%22%3A0%2C%22wait%22%3A%220s%22%7D": func(e *Engine) error { return malformedIsFine(e.WatchHost(ctx, sealed.HostWatchRequest{})) },
		"PUT runs/" + string(run) + "/stop":                                                 func(e *Engine) error { return e.StopRun(ctx, run, "r") },
		"PUT runs/" + string(run) + "/close":                                                func(e *Engine) error { return e.CloseRun(ctx, run, "r") },
		"DELETE sources/kv?force=true":                                                      func(e *Engine) error { return e.DeleteSource(ctx, "kv", true) },
		"DELETE sources/kv":                                                                 func(e *Engine) error { return e.DeleteSource(ctx, "kv", false) },
		"DELETE profiles/user/a/b":                                                          func(e *Engine) error { return e.DeleteProfile(ctx, "user", "a/b", false) },
		"DELETE profiles/user/a/b?force=true":                                               func(e *Engine) error { return e.DeleteProfile(ctx, "user", "a/b", true) },
		"PATCH profiles/workflow/a/b": func(e *Engine) error {
			_, err := e.PatchProfile(ctx, "workflow", "a/b", 1, []byte(`{"owner":"me"}`))
			return err
		},
		"PUT profiles/preview":                                              func(e *Engine) error { return malformedIsFine(e.Preview(ctx, "", sealed.PreviewRequest{})) },
		"PUT profiles/preview-as":                                           func(e *Engine) error { return malformedIsFine(e.Preview(ctx, "e-1", sealed.PreviewRequest{})) },
		"GET profiles/user/e-1?list=true":                                   func(e *Engine) error { _, err := e.Profiles(ctx, "user", "e-1"); return err },
		"GET secrets/ci?list=true":                                          func(e *Engine) error { _, err := e.Secrets(ctx, "ci"); return err },
		"PUT revocations/X/lift":                                            func(e *Engine) error { return e.LiftRevocation(ctx, "X", "r") },
		"GET log/entries?from=7&run=" + string(run):                         func(e *Engine) error { _, _, err := e.LogEntries(ctx, LogFilter{From: 7, Run: run}); return err },
		"PUT sys/leases/revoke-prefix/tenants/a/sealed/runs/" + string(run): func(e *Engine) error { return e.RevokeLeases(ctx, run) },
	} {
		e, got := answering(t, map[string]any{"keys": []string{}, "next": "7"})
		if err := call(e); err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		r := (*got)[0]
		at := strings.TrimPrefix(strings.TrimPrefix(r.URL.RequestURI(), "/v1/"), "tenants/a/sealed/")
		if is := r.Method + " " + at; is != want {
			t.Errorf("called %s, want %s", is, want)
		}
	}
}

// TestNamesStayInTheirPath: a name that would lead to another path is refused
// before anything is sent.
func TestNamesStayInTheirPath(t *testing.T) {
	ctx := t.Context()
	for _, evil := range []string{"", "..", "../../sys/raw", "a/../b", "a?list=true", "a#b", "a%2fb", `a\b`} {
		e, got := answering(t, map[string]any{})
		for name, call := range map[string]func() error{
			"run":        func() error { _, err := e.Run(ctx, sealed.RunID(evil)); return err },
			"stop":       func() error { return e.StopRun(ctx, sealed.RunID(evil), "r") },
			"record":     func() error { _, err := e.Record(ctx, sealed.RunID(evil)); return err },
			"approval":   func() error { _, err := e.Approval(ctx, sealed.ApprovalID(evil)); return err },
			"approve":    func() error { _, err := e.Approve(ctx, sealed.ApprovalID(evil), ""); return err },
			"agent":      func() error { _, err := e.Agent(ctx, sealed.Name(evil)); return err },
			"source":     func() error { _, err := e.Source(ctx, sealed.Name(evil)); return err },
			"secret":     func() error { _, err := e.PutSecret(ctx, evil, []byte("x")); return err },
			"profile":    func() error { _, err := e.Profile(ctx, "user", sealed.ProfileName(evil), 0); return err },
			"level":      func() error { _, err := e.Profiles(ctx, evil); return err },
			"revocation": func() error { return e.LiftRevocation(ctx, evil, "r") },
			"leases":     func() error { return e.RevokeLeases(ctx, sealed.RunID(evil)) },
			"tile":       func() error { _, err := e.LogReader().ReadTile(ctx, evil); return err },
		} {
			if err := call(); !errors.Is(err, sealed.ErrInvalid) {
				t.Errorf("%s %q: %v", name, evil, err)
			}
		}
		if len(*got) != 0 {
			t.Errorf("%q: %s was called", evil, (*got)[0].URL)
		}
	}
}

// TestApprovalIsWhatItsDigestSays, E26: an object that does not have its digest, or
// is another approval's, never reaches a person. The control is accepted.
func TestApprovalIsWhatItsDigestSays(t *testing.T) {
	const id = sealed.ApprovalID("01JD0Z5X7RS3X7Q4K5M6N7P8Q9")
	object, digest, err := sealed.ApprovalObject{V: 1, ID: id, Key: "K"}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	other, otherDigest, err := sealed.ApprovalObject{V: 1, ID: "01JD0Z5X7RS3X7Q4K5M6N7P8Q8", Key: "K"}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		object []byte
		digest sealed.Digest
		ok     bool
	}{
		"the control":          {object, digest, true},
		"another object":       {other, digest, false},
		"another approval":     {other, otherDigest, false},
		"no digest":            {object, "", false},
		"a space more":         {append([]byte(" "), object...), digest, true}, // RawMessage starts at the value
		"a member more":        {[]byte(strings.Replace(string(object), `{`, `{"x":1,`, 1)), digest, false},
		"unknown but digested": {[]byte(`{"x":1}`), sealed.DigestOf(sealed.DomainApproval, []byte(`{"x":1}`)), false},
	} {
		view := `{"object":` + string(tc.object) + `,"digest":"` + string(tc.digest) + `","state":"pending","votes":[]}`
		e, _ := answering(t, map[string]any{"approval": view})
		a, err := e.Approval(t.Context(), id)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if tc.ok && a.Decoded.Key != "K" {
			t.Errorf("%s: %+v", name, a.Decoded)
		}
		if _, err := e.Approve(t.Context(), id, digest); (err == nil) != tc.ok {
			t.Errorf("%s: vote: %v", name, err)
		}
	}
}

// TestManifestIsWhatItsDigestSays is the same for a run and an agent.
func TestManifestIsWhatItsDigestSays(t *testing.T) {
	const run = sealed.RunID("01JD0Z5X7RS3X7Q4K5M6N7P8Q9")
	manifest, digest, err := sealed.MarshalManifest(sealed.Manifest{V: 1, Run: run})
	if err != nil {
		t.Fatal(err)
	}
	answer := map[string]any{"state": "enqueued", "manifest": string(manifest), "manifest_digest": string(digest), "history": "[]", "grants": "[]", "approvals": "{}"}
	e, _ := answering(t, answer)
	if r, err := e.Run(t.Context(), run); err != nil || r.Manifest.Run != run {
		t.Errorf("control: %v", err)
	}
	answer["manifest"] = strings.Replace(string(manifest), `"v":1`, `"v":2`, 1)
	if _, err := e.Run(t.Context(), run); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("changed manifest: %v", err)
	}
	doc := `{"name":"bot","version":1,"any_binary":true}`
	def := map[string]any{"agent": doc, "digest": string(sealed.DigestOf(sealed.DomainAgent, []byte(doc)))}
	e, _ = answering(t, def)
	if a, err := e.Agent(t.Context(), "bot"); err != nil || !a.AnyBinary {
		t.Errorf("control: %v", err)
	}
	def["agent"] = strings.Replace(doc, "1", "2", 1)
	if _, err := e.Agent(t.Context(), "bot"); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("changed definition: %v", err)
	}
}

// TestMalformedAnswers: fields of the wrong type are errors that name the field
// and quote nothing.
func TestMalformedAnswers(t *testing.T) {
	const canary = "answer-canary"
	bad := map[string]any{
		"keys": canary, "enqueued": 1, "version": canary, "versions": canary, "source": canary, "profile": canary, "sequence": canary,
		"entries": canary, "next": canary, "checkpoint": 1, "tile": "%" + canary, "salt": "%" + canary, "id": 1, "runs": []any{canary}, "decision": canary,
	}
	e, _ := answering(t, bad)
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"enqueue":    func() error { _, err := e.Enqueue(ctx, sealed.EnqueueRequest{}); return err },
		"runs":       func() error { _, err := e.Runs(ctx, RunFilter{}); return err },
		"run":        func() error { _, err := e.Run(ctx, "01JD0Z5X7RS3X7Q4K5M6N7P8Q9"); return err },
		"secret":     func() error { _, err := e.Secret(ctx, "a"); return err },
		"put":        func() error { _, err := e.PutSecret(ctx, "a", []byte("x")); return err },
		"source":     func() error { _, err := e.Source(ctx, "a"); return err },
		"profile":    func() error { _, err := e.Profile(ctx, "user", "a", 0); return err },
		"status":     func() error { _, err := e.PolicyStatus(ctx); return err },
		"decide":     func() error { _, err := e.Decide(ctx, sealed.Input{}); return err },
		"entries":    func() error { _, _, err := e.LogEntries(ctx, LogFilter{}); return err },
		"checkpoint": func() error { _, err := e.LogReader().Checkpoint(ctx); return err },
		"tile":       func() error { _, err := e.LogReader().ReadTile(ctx, "tile/0/000"); return err },
		"side":       func() error { _, err := e.LogReader().Side(ctx, 0); return err },
		"revoke":     func() error { _, err := e.Revoke(ctx, sealed.Revocation{}); return err },
		"preview":    func() error { _, err := e.PreviewRevocation(ctx, sealed.Revocation{}); return err },
	} {
		err := call()
		if !errors.Is(err, sealed.ErrInvalid) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLogReaderErased(t *testing.T) {
	e, _ := answering(t, map[string]any{"leaf": "x", "body": "", "salt": "", "erased": true})
	if _, err := e.LogReader().Side(t.Context(), 3); !errors.Is(err, audit.ErrErased) {
		t.Errorf("erased entry: %v", err)
	}
}

func TestPutSecretTravelsAsBase64(t *testing.T) {
	var body map[string]any
	addr, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&body)
		_, _ = io.WriteString(w, `{"data":{"version":4}}`)
	})
	c, err := New(addr, ca, "t")
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.Engine("sealed").PutSecret(t.Context(), "a/b", []byte{0, 0xff, '\n'})
	if err != nil || v != 4 {
		t.Errorf("version %d, %v", v, err)
	}
	if diff := cmp.Diff(map[string]any{"value": "AP8K", "encoding": "base64"}, body); diff != "" {
		t.Error(diff)
	}
}
