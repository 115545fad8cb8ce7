package e2e

import (
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// TestHalvesOnTwoStreams: a value whose halves alternate between output and
// error is not put together again where both are shown in one place (A11).
func TestHalvesOnTwoStreams(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "ENV_TOKEN")
		const halves = `a=$(printf %s "$ENV_TOKEN" | cut -c1-22); b=$(printf %s "$ENV_TOKEN" | cut -c23-)
			for i in 1 2 3; do printf %s "$a"; sleep 0.05; printf '%s.\n' "$b" >&2; sleep 0.05; done; echo done`
		run := func(as harness.Caller) harness.Result {
			return s.Ctl(t, as, "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c", halves).Want(t, 0)
		}
		as := l.caller()
		as.Via = []string{"sh", "-c", `exec "$@" 2>&1`, "sh"}
		r := run(as)
		if n := strings.Count(r.Stdout, "[sealed:ENV_TOKEN].\n"); n != 3 || !strings.Contains(r.Stdout, "done\n") {
			t.Errorf("%d masks: %s", n, r.Stdout)
		}
		wantClean(t, c, map[string]string{"output": r.Stdout})
		logs := s.Ctl(t, as, "runs", "logs", string(idIn(t, r.Stdout))).Want(t, 0)
		wantClean(t, c, map[string]string{"logs": logs.Stdout})
		if !strings.Contains(logs.Stdout, "[sealed:ENV_TOKEN]") {
			t.Errorf("logs: %s", logs.Stdout)
		}
		// Control: two sinks, two streams. A half on each is there, and it is
		// not our secret that half a value on its own is not found.
		r = run(l.caller())
		if len(canary.Scan("both", []byte(r.Stdout+r.Stderr), c)) == 0 {
			t.Errorf("control: no half is found: %s%s", r.Stdout, r.Stderr)
		}
	})
}

// idIn finds the run that sealedctl has named among the agent's output.
func idIn(t *testing.T, text string) sealed.RunID {
	t.Helper()
	return harness.Result{Stderr: text}.RunID(t)
}
