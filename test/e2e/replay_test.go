package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness"
)

// TestReplay: a run is run again from what the engine has, as far as that is
// what it was; what is not the same is said, and not used as recorded.
func TestReplay(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "API_TOKEN", bind("api.test"))
		path := "/" + s.Name("replay") + "/echo"
		as := l.caller()
		as.Stdin = "some input\n"
		command := []string{"sh", "-c", `cat; curl -sS -o /dev/null -w '%{http_code}\n' -H "Authorization: Bearer $API_TOKEN" https://api.test` + path}
		first := s.Ctl(t, as, append([]string{"run", "--agent", "custom", "--profile", profile, "--no-workspace", "--input", "-", "--"}, command...)...).Want(t, 0)
		id := string(first.RunID(t))
		replay := func(exit int, more ...string) harness.Result {
			t.Helper()
			return s.Ctl(t, l.caller(), append([]string{"runs", "replay", id}, more...)...).Want(t, exit)
		}

		dry := replay(0, "--dry-run", "-o", "json")
		var told sealed.Replay
		if err := json.Unmarshal([]byte(dry.Stdout), &told); err != nil || len(told.Keys) != 1 || len(told.Keys[0].Differs) != 0 || told.Keys[0].Recorded != "1" {
			t.Fatalf("%+v, %v", told, err)
		}
		again := replay(0)
		if again.Stdout != first.Stdout || again.RunID(t) == first.RunID(t) {
			t.Errorf("run again: %q\n%s", again.Stdout, again.Stderr)
		}
		run, err := s.Engine(t, "operator").Run(t.Context(), again.RunID(t))
		if err != nil || run.Manifest.ReplayOf != first.RunID(t) || run.Manifest.ReplayAs != sealed.ReplayRecorded || run.State != sealed.RunFinished {
			t.Errorf("%+v, %v", run.Manifest, err)
		}

		// Not the same command, input, workspace: not a replay.
		for what, args := range map[string][]string{
			"the command":   {"--", "echo", "other"},
			"the input":     append([]string{"--input", "/etc/hostname", "--"}, command...),
			"no such field": {"--as", "guess"},
		} {
			r := replay(map[bool]int{true: 2, false: 1}[what == "no such field"], args...)
			if what != "no such field" && (!strings.Contains(r.Stderr, what+" differs") || r.Stdout != "") {
				t.Errorf("%s: %s", what, r.Stderr)
			}
		}

		s.Secret(t, profile+"/value", newCanary(t, "API_TOKEN").Value) // rotated
		if r := replay(3); !strings.Contains(r.Stderr, "rotated") {
			t.Errorf("a rotated value, as recorded: %s", r.Stderr)
		}
		seen := len(s.Upstream.Requests("api.test", path))
		if r := replay(0, "--as", "current"); !strings.Contains(r.Stderr, "rotated") || !strings.Contains(r.Stdout, "200") {
			t.Errorf("a rotated value, as current: %s%s", r.Stdout, r.Stderr)
		}
		reqs := s.Upstream.Requests("api.test", path)
		if len(reqs) != seen+1 || reqs[seen].Header.Get("Authorization") == "Bearer "+c.Value {
			t.Errorf("%d requests; the old value was used", len(reqs)-seen)
		}
		rev, err := s.Engine(t, "operator").Revoke(t.Context(), sealed.Revocation{Kind: sealed.RevokeKey, Target: profile + "#API_TOKEN", Reason: "a test"})
		harness.Must(t, err)
		if r := replay(3, "--as", "current"); !strings.Contains(r.Stderr, "revoked") {
			t.Errorf("a revoked key: %s", r.Stderr)
		}
		harness.Must(t, s.Engine(t, "operator").LiftRevocation(t.Context(), rev.ID, "a test"))
		wantClean(t, c, map[string]string{"dry": dry.Stdout, "again": again.Stdout + again.Stderr})
	})
}

// A command that held a value is kept redacted, which is not what it was: the
// caller has to give it.
func TestReplayOfRedactedCommand(t *testing.T) {
	t.Parallel()
	s := harness.Get(t)
	s.Agent(t, "custom")
	profile, c := plant(t, s, "ENV_TOKEN")
	first := s.Ctl(t, harness.Caller{}, "run", "--agent", "custom", "--profile", profile, "--no-workspace", "--", "echo", c.Value).Want(t, 0)
	id := string(first.RunID(t))
	r := s.Ctl(t, harness.Caller{}, "runs", "replay", id).Want(t, 1)
	if !strings.Contains(r.Stderr, "does not have the command") || !strings.Contains(r.Stderr, `"[sealed:ENV_TOKEN]"`) {
		t.Errorf("%s", r.Stderr)
	}
	wantClean(t, c, map[string]string{"stderr": r.Stderr})
	if r := s.Ctl(t, harness.Caller{}, "runs", "replay", id, "--", "echo", c.Value).Want(t, 0); r.Stdout != first.Stdout {
		t.Errorf("control: with the command: %q", r.Stdout)
	}
}
