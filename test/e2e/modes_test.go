package e2e

import (
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness"
)

// TestModes: only jit gives keys.
func TestModes(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "ENV_TOKEN")
		t.Run("identity", func(t *testing.T) {
			r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--mode", "identity", "--", "sh", "-c", "echo in; env").Want(t, 0)
			if !strings.HasPrefix(r.Stdout, "in\n") || strings.Contains(r.Stdout, "ENV_TOKEN") {
				t.Errorf("output: %s", r.Stdout)
			}
			wantEntries(t, s.Entries(t, r.RunID(t)), "run.enqueued", "run.claimed", "run.finished")
		})
		t.Run("sandboxed", func(t *testing.T) {
			r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--mode", "sandboxed", "--", "sh", "-c", "echo in; cat /proc/net/route | wc -l; exit 7").Want(t, 7)
			if r.Stdout != "in\n1\n" { // the heading
				t.Errorf("output: %s", r.Stdout)
			}
		})
		for _, mode := range []string{"identity", "sandboxed", "bare"} {
			t.Run(mode+" with a profile", func(t *testing.T) {
				r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--mode", mode, "--profile", profile, "--", "env")
				if wantClean(t, c, map[string]string{mode: r.Stdout}); strings.Contains(r.Stdout, "ENV_TOKEN") || mode != "bare" && r.Exit != sealed.ExitUsage {
					t.Errorf("exit %d: %s%s", r.Exit, r.Stdout, r.Stderr)
				}
			})
		}
		t.Run("bare", func(t *testing.T) {
			as := l.caller()
			as.Dir = s.Dir(t, l.uid)
			r := s.Ctl(t, as, "run", "--agent", "custom", "--mode", "bare", "--", "sh", "-c", "pwd; exit 7").Want(t, 7)
			if r.Stdout != as.Dir+"\n" {
				t.Errorf("it did not run here: %s", r.Stdout)
			}
			wantEntries(t, s.Entries(t, r.RunID(t)), "run.enqueued", "run.closed")
		})
	})
}

// TestTwoRuns: at the same time, of one agent, by one launcher.
func TestTwoRuns(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "API_TOKEN", bind("api.test"))
		path := "/" + s.Name("two")
		var ps []*harness.Process
		for _, n := range []string{"a", "b"} {
			ps = append(ps, s.Start(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c",
				`id -u; ls /proc | grep -c '^[0-9]'; echo "$API_TOKEN" | md5sum; curl -sSN -H "Authorization: Bearer $API_TOKEN" https://api.test`+path+n+`/hold`))
		}
		for _, p := range ps {
			p.Await(t, "held here") // both are in it now
		}
		one, two := ps[0].Status(t), ps[1].Status(t)
		if l.isolation == sealed.IsolationOwnUID && one.UID == two.UID {
			t.Errorf("both have uid %d", one.UID)
		}
		s.Upstream.Release(path + "a/")
		s.Upstream.Release(path + "b/")
		a, b := ps[0].Wait(t).Want(t, 0), ps[1].Wait(t).Want(t, 0)
		if strings.Split(a.Stdout, "\n")[2] == strings.Split(b.Stdout, "\n")[2] {
			t.Errorf("one placeholder for two runs: %s", a.Stdout)
		}
		for _, n := range []string{"a", "b"} {
			if seen := s.Upstream.Requests("api.test", path+n); len(seen) != 1 || seen[0].Header.Get("Authorization") != "Bearer "+c.Value {
				t.Errorf("run %s: %d requests", n, len(seen))
			}
		}
		if a.RunID(t) == b.RunID(t) {
			t.Error("one run for two")
		}
		wantCleanRun(t, s, l, a, c)
		wantCleanRun(t, s, l, b, c)
	})
}
