package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// TestProxyDelivery is the nine steps of a run: the agent uses a key that it
// does not hold.
func TestProxyDelivery(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "API_TOKEN", bind("api.test"))
		path := "/" + s.Name("proxy") + "/echo"
		r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c",
			`echo "placeholder $API_TOKEN"; curl -sS -H "Authorization: Bearer $API_TOKEN" https://api.test`+path).Want(t, 0)
		seen := s.Upstream.Requests("api.test", path)
		if len(seen) != 1 || seen[0].Header.Get("Authorization") != "Bearer "+c.Value {
			t.Errorf("the upstream did not see the value: %d requests", len(seen))
		}
		if !strings.Contains(r.Stdout, "[sealed:API_TOKEN]") {
			t.Errorf("the answer is not redacted: %s", r.Stdout)
		}
		wantClean(t, c, map[string]string{"stdout": r.Stdout, "stderr": r.Stderr})
		wantCleanRun(t, s, l, r, c)
		wantEntries(t, s.Entries(t, r.RunID(t)), "run.enqueued", "run.claimed", "issue.intent", "issue.ok", "proxy.used", "run.finished")
	})
}

// TestEnvDelivery gives the value to the agent, says so, and still lets none
// of its forms out.
func TestEnvDelivery(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "ENV_TOKEN")
		r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c",
			`printf %s "$ENV_TOKEN" | sha256sum; echo "$ENV_TOKEN"; printf %s "$ENV_TOKEN" | base64; printf %s "$ENV_TOKEN" | od -An -tx1 | tr -d ' \n'; printf %s "$ENV_TOKEN" | rev >&2`).Want(t, 0)
		// Control: the agent holds the value, so there was something to redact.
		sum := sha256.Sum256([]byte(c.Value))
		if !strings.Contains(r.Stdout, hex.EncodeToString(sum[:])) {
			t.Errorf("the agent did not get the value: %s", r.Stdout)
		}
		if n := strings.Count(r.Stdout+r.Stderr, "[sealed:ENV_TOKEN]"); n != 4 {
			t.Errorf("%d redactions, want 4: %s%s", n, r.Stdout, r.Stderr)
		}
		wantClean(t, c, map[string]string{"stdout": r.Stdout, "stderr": r.Stderr})
		wantCleanRun(t, s, l, r, c)
		entries := s.Entries(t, r.RunID(t))
		wantEntries(t, entries, "run.claimed", "issue.ok", "env.injected", "run.finished")
		wantEntries(t, entries, "redact.hit")
	})
}

// wantCleanRun checks run directory and log, and that the run is finished and
// graded as its launcher deserves.
func wantCleanRun(t *testing.T, s *harness.Stack, l launcher, r harness.Result, canaries ...*canary.Canary) {
	t.Helper()
	hits, err := canary.ScanTree(r.RunDir(t), canaries...)
	if err != nil || len(hits) > 0 {
		t.Errorf("run directory: %v, %v", hits, err)
	}
	run, err := s.Engine(t, "operator").Run(t.Context(), r.RunID(t))
	if err != nil || run.State != sealed.RunFinished || run.Isolation != l.isolation {
		t.Errorf("run: state %s, isolation %s, %v", run.State, run.Isolation, err)
	}
	for _, e := range s.Entries(t, r.RunID(t)) {
		for _, hit := range canary.Scan("entry "+e.Type, e.Body, canaries...) {
			t.Error(hit)
		}
	}
}

// TestExitStatus: what the agent says is what sealedctl says.
func TestExitStatus(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		for _, c := range []struct {
			name string
			exit int
			argv []string
		}{
			{"success", 0, []string{"true"}},
			{"seven", 7, []string{"sh", "-c", "exit 7"}},
			{"three, which is also ours", 3, []string{"sh", "-c", "exit 3"}},
			{"killed by TERM", 128 + 15, []string{"sh", "-c", "kill -TERM $$"}},
			{"killed by KILL", 128 + 9, []string{"sh", "-c", "kill -KILL $$"}},
			{"no such command", sealed.ExitNotFound, []string{"no-such-command"}},
			{"no such file", sealed.ExitNotFound, []string{"./absent"}},
			{"not executable", sealed.ExitNotRunnable, []string{"./plain"}},
			{"a directory", sealed.ExitNotRunnable, []string{"/usr"}},
			{"a script of the workspace", 5, []string{"./script"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				as := l.caller()
				as.Dir = s.Dir(t, l.uid)
				write(t, l, as.Dir, "plain", "nothing to run", 0o644)
				write(t, l, as.Dir, "script", "#!/bin/sh\nexit 5\n", 0o755)
				r := s.Ctl(t, as, append([]string{"run", "--agent", "custom", "--"}, c.argv...)...).Want(t, c.exit)
				if c.exit >= 125 && c.exit < 128 && strings.Count(r.Stderr, "\n") > 4 {
					t.Errorf("more than a line or two: %s", r.Stderr)
				}
			})
		}
	})
}

// write writes a file of a workspace for a launcher.
func write(t *testing.T, l launcher, dir, name, text string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	if l.uid == 0 {
		return
	}
	for p := path; p != dir; p = filepath.Dir(p) {
		if err := os.Lchown(p, l.uid, l.uid); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLiveOutput: a line is shown while the agent still works.
func TestLiveOutput(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "API_TOKEN", bind("api.test"))
		path := "/" + s.Name("live") + "/hold"
		p := s.Start(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c",
			`echo first; curl -sSN -H "Authorization: Bearer $API_TOKEN" https://api.test`+path+`; echo last`)
		// A streamed answer, through the proxy, before its end. The redactor may
		// hold back its last characters.
		p.Await(t, "held here")
		if out := p.Stdout(); !strings.HasPrefix(out, "first\n") || strings.Contains(out, "last") {
			t.Errorf("output while it runs: %q", out)
		}
		s.Upstream.Release(path)
		r := p.Wait(t).Want(t, 0)
		if r.Stdout != "first\nheld here until released\nlast\n" {
			t.Errorf("output: %q", r.Stdout)
		}
		wantClean(t, c, map[string]string{"stdout": r.Stdout, "stderr": r.Stderr})
	})
}

// TestInput: standard input comes from a file or from sealedctl's own, is
// bound by its digest, and is redacted on the way out.
func TestInput(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "ENV_TOKEN")
		as := l.caller()
		as.Stdin = "say " + c.Value + " now\n"
		r := s.Ctl(t, as, "run", "--agent", "custom", "--profile", profile, "--input", "-", "--", "cat").Want(t, 0)
		if r.Stdout != "say [sealed:ENV_TOKEN] now\n" {
			t.Errorf("from standard input: %q", r.Stdout)
		}
		wantCleanRun(t, s, l, r, c)
		file := filepath.Join(s.Dir(t, l.uid), "input")
		write(t, l, filepath.Dir(file), "input", "from a file", 0o600)
		if r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--input", file, "--", "cat").Want(t, 0); r.Stdout != "from a file" {
			t.Errorf("from a file: %q", r.Stdout)
		}
		// Without --input there is nothing to read, whatever sealedctl has.
		if r := s.Ctl(t, as, "run", "--agent", "custom", "--", "cat").Want(t, 0); r.Stdout != "" {
			t.Errorf("without --input: %q", r.Stdout)
		}
	})
}

// TestNetwork: only what the run's terms name can be reached.
func TestNetwork(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		const ask = `curl -sS -o /dev/null -w "api %{http_code}\n" -H "Authorization: Bearer $API_TOKEN" https://api.test/x
			for h in other admin evil; do curl -sS -o /dev/null -w "$h %{http_code}\n" https://$h.test/x 2>/dev/null || echo "$h refused"; done`
		profile, _ := plant(t, s, "API_TOKEN", bind("api.test"))
		for _, c := range []struct {
			name, want string
			args       []string
		}{
			{"none", "api 200\nother 000\nother refused\nadmin 000\nadmin refused\nevil 000\nevil refused\n", nil},
			{"allowlist", "api 200\nother 200\nadmin 000\nadmin refused\nevil 000\nevil refused\n", []string{"--net", "allowlist", "--allow", "other.test"}},
			{"allowlist of all below", "api 200\nother 200\nadmin 200\nevil 000\nevil refused\n", []string{"--net", "allowlist", "--allow", "*.test"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				args := append([]string{"run", "--agent", "custom", "--profile", profile}, c.args...)
				r := s.Ctl(t, l.caller(), append(args, "--", "sh", "-c", ask+"; true")...).Want(t, 0)
				if r.Stdout != c.want {
					t.Errorf("reached:\n%swant:\n%s%s", r.Stdout, c.want, r.Stderr)
				}
				wantEntries(t, s.Entries(t, r.RunID(t)), "egress.denied")
			})
		}
		t.Run("no route", func(t *testing.T) {
			r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c",
				`curl --noproxy '*' -sS -m 5 https://`+s.Upstream.Addr+`/x`)
			if r.Exit != 7 { // curl: could not connect
				t.Errorf("the host's loopback from the sandbox: exit %d: %s", r.Exit, r.Stderr)
			}
		})
	})
}
