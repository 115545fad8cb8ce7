package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// TestRedactedInput: a value in the command and in the input is masked in what
// the engine keeps of them, in the log, in the record and in what is shown.
func TestRedactedInput(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "ENV_TOKEN")
		as := l.caller()
		as.Stdin = "say " + c.Value + " now\n"
		r := s.Ctl(t, as, "run", "--agent", "custom", "--profile", profile, "--input", "-", "--",
			"sh", "-c", "cat; echo "+c.Value, "sh", base64.StdEncoding.EncodeToString([]byte(c.Value))).Want(t, 0)
		wantCleanRun(t, s, l, r, c)

		run, err := s.Engine(t, "operator").Run(t.Context(), r.RunID(t))
		if err != nil || run.Input == nil {
			t.Fatalf("nothing is kept: %+v, %v", run.Input, err)
		}
		want := []string{"sh", "-c", "cat; echo [sealed:ENV_TOKEN]", "sh", "[sealed:ENV_TOKEN]"}
		if got := *run.Input; !slices.Equal(trimmed(got.Argv), want) || got.Input != "say [sealed:ENV_TOKEN] now\n" {
			t.Errorf("kept %q, %q", got.Argv, got.Input)
		}
		kept, err := json.Marshal(run)
		if err != nil {
			t.Fatal(err)
		}
		shown := s.Ctl(t, harness.Caller{}, "runs", "show", string(run.ID)).Want(t, 0)
		if !strings.Contains(shown.Stdout, "say [sealed:ENV_TOKEN] now") || !strings.Contains(shown.Stdout, "echo [sealed:ENV_TOKEN]") {
			t.Errorf("runs show: %s", shown.Stdout)
		}
		wantClean(t, c, map[string]string{"stdout": r.Stdout, "stderr": r.Stderr, "runs/<id>": string(kept), "runs show": shown.Stdout})

		entries := s.Entries(t, run.ID)
		wantEntries(t, entries, "run.claimed", "issue.ok", "input.redacted", "run.finished")
		if b := body(t, entries, "input.redacted"); b["digest"] != string(run.InputDigest) {
			t.Errorf("the log names %v, kept is %s", b["digest"], run.InputDigest)
		}
		if p := predicate(t, r); p.RedactedInput != string(run.InputDigest) {
			t.Errorf("the record names %q, kept is %s", p.RedactedInput, run.InputDigest)
		}

		// Control: a value that no key of the run has is not known, and is kept.
		other := newCanary(t, "OTHER")
		as.Stdin = "say " + other.Value
		r = s.Ctl(t, as, "run", "--agent", "custom", "--profile", profile, "--input", "-", "--", "true").Want(t, 0)
		run, err = s.Engine(t, "operator").Run(t.Context(), r.RunID(t))
		if err != nil || run.Input == nil || len(canary.Scan("runs/<id>", []byte(run.Input.Input), other)) == 0 {
			t.Errorf("control: the oracle does not find what is there: %+v, %v", run.Input, err)
		}
	})
}

// trimmed drops the padding that base64 may leave behind a mask.
func trimmed(argv []string) []string {
	out := slices.Clone(argv)
	for i := range out {
		if at := strings.Index(out[i], "[sealed:ENV_TOKEN]"); at >= 0 {
			out[i] = out[i][:at] + "[sealed:ENV_TOKEN]"
		}
	}
	return out
}

// predicate reads a run's record without verifying it; Verify does that.
func predicate(t *testing.T, r harness.Result) audit.Predicate {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.RunDir(t), "record.dsse.json"))
	if err != nil {
		t.Fatal(err)
	}
	var env struct{ Payload []byte }
	var stmt audit.Statement
	if err := json.Unmarshal(b, &env); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(env.Payload, &stmt); err != nil {
		t.Fatal(err)
	}
	return stmt.Predicate
}

// TestInputMustBeStored: where the engine does not take the redacted input, the
// agent never starts.
func TestInputMustBeStored(t *testing.T) {
	s := harness.Get(t)
	profile, _ := plant(t, s, "API_TOKEN", bind("api.test"))
	s.Agent(t, "custom")
	try := func(t *testing.T) (r harness.Result, started bool) {
		as := harness.Caller{Dir: s.Dir(t, 0)}
		r = s.Ctl(t, as, "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c", "echo started; touch started")
		_, err := os.Stat(filepath.Join(as.Dir, "started"))
		return r, err == nil || strings.Contains(r.Stdout, "started")
	}
	root, err := s.Root()
	if err != nil {
		t.Fatal(err)
	}
	const path = "sys/policies/acl/sealed-agent"
	got, err := root.Sys(t.Context(), "GET", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := got["data"].(map[string]any)
	policy, _ := data["policy"].(string)
	const events = "/runs/+/events\" {\n  capabilities = [\"update\"]"
	if !strings.Contains(policy, events) {
		t.Fatalf("the policy of agents: %s", policy)
	}
	set := func(text string) {
		if _, err := root.Sys(context.Background(), "PUT", path, map[string]any{"policy": text}); err != nil {
			t.Fatal(err)
		}
	}
	set(strings.Replace(policy, events, strings.Replace(events, "update", "deny", 1), 1))
	defer set(policy)
	r, started := try(t)
	if started || r.Exit != sealed.ExitSealed || !strings.Contains(r.Stderr, "storing the redacted input") {
		t.Errorf("started: %t, exit %d: %s", started, r.Exit, r.Stderr)
	}
	entries := s.Entries(t, r.RunID(t))
	wantEntries(t, entries, "run.claimed", "issue.ok", "run.finished")
	if slices.Contains(harness.Types(entries), "input.redacted") {
		t.Errorf("entries: %v", harness.Types(entries))
	}
	set(policy)
	if r, started := try(t); !started || r.Exit != 0 {
		t.Errorf("control: started: %t, exit %d: %s", started, r.Exit, r.Stderr)
	}
}
