package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/test/harness/require"
)

// TestWrongInputs: whatever is missing or wrong, a person gets at most three
// lines that say what, and a status that says whose fault it is.
func TestWrongInputs(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, _ := plant(t, s, "ENV_TOKEN")
		trust := changedTrust(t, s, func(f *sealed.TrustFile) { f.SPIFFESocket = filepath.Join(s.Base, "absent.sock") })
		junk := filepath.Join(s.Dir(t, 0), "trust.json")
		if err := os.WriteFile(junk, []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name, says string
			exit       int
			as         harness.Caller
			args       []string
		}{
			{"no agent", "agent", sealed.ExitUsage, harness.Caller{}, []string{"--", "true"}},
			{"no command", "arg", sealed.ExitUsage, harness.Caller{}, []string{"--agent", "custom"}},
			{"an unknown flag", "--nett", sealed.ExitUsage, harness.Caller{}, []string{"--agent", "custom", "--nett", "none", "--", "true"}},
			{"an unknown network", "network", sealed.ExitUsage, harness.Caller{}, []string{"--agent", "custom", "--net", "host", "--", "true"}},
			{"an unknown mode", "mode", sealed.ExitUsage, harness.Caller{}, []string{"--agent", "custom", "--mode", "root", "--", "true"}},
			{"input and terminal", "--tty", sealed.ExitUsage, harness.Caller{}, []string{"--agent", "custom", "--tty", "--input", "-", "--", "true"}},
			{"an agent that nobody defined", "no such agent definition", sealed.ExitSealed, harness.Caller{}, []string{"--agent", "nobody", "--", "true"}},
			{"a profile that is not there", "no such profile", sealed.ExitSealed, harness.Caller{}, []string{"--agent", "custom", "--profile", "team/absent", "--", "true"}},
			{"an agent that the profile does not name", "agent_not_allowed", sealed.ExitDenied, harness.Caller{}, []string{"--agent", "demo", "--profile", profile, "--", "true"}},
			{"a workspace that is not there", "absent", sealed.ExitSealed, harness.Caller{}, []string{"--agent", "custom", "--workspace", "absent", "--", "true"}},
			{"an input that is not there", "absent", sealed.ExitSealed, harness.Caller{}, []string{"--agent", "custom", "--input", "absent", "--", "true"}},
			{"no Vault address", "address", sealed.ExitSealed, harness.Caller{Env: []string{"VAULT_ADDR="}}, nil},
			{"nobody at the address", "refused", sealed.ExitSealed, harness.Caller{Env: []string{"VAULT_ADDR=https://127.0.0.1:1"}}, nil},
			{"another CA", "certificate", sealed.ExitSealed, harness.Caller{Env: []string{"VAULT_CACERT="}}, nil},
			{"no token", "token", sealed.ExitSealed, harness.Caller{User: "-"}, nil},
			{"a wrong token", "denied", sealed.ExitDenied, harness.Caller{User: "-", Env: []string{"VAULT_TOKEN=hvs.wrong"}}, nil},
			{"a user who may not", "denied", sealed.ExitDenied, harness.Caller{User: "auditor"}, nil},
			{"no engine at the mount", "denied", sealed.ExitDenied, harness.Caller{Env: []string{"SEALED_MOUNT=absent"}}, nil},
			{"no trust file", "trust file", sealed.ExitSealed, harness.Caller{Env: []string{"SEALED_TRUST_FILE=/absent"}}, nil},
			{"a broken trust file", "trust file", sealed.ExitSealed, harness.Caller{Env: []string{"SEALED_TRUST_FILE=" + junk}}, nil},
			{"no SPIRE", "absent.sock", sealed.ExitSealed, harness.Caller{Env: []string{"SEALED_TRUST_FILE=" + trust}}, nil},
			{"no sealed-init", "/absent", sealed.ExitSealed, harness.Caller{Env: []string{"SEALED_LIBEXEC=/absent"}}, nil},
			{"no bubblewrap", "bubblewrap", sealed.ExitSealed, harness.Caller{Via: withoutBubblewrap()}, nil},
		} {
			if c.as.Via != nil && l.uid != 0 {
				continue // only root can hide it
			}
			t.Run(c.name, func(t *testing.T) {
				if c.as.Via != nil {
					require.Root(t, "only root can hide it")
				}
				c.as.UID = l.uid
				if c.args == nil {
					c.args = []string{"--agent", "custom", "--profile", profile, "--", "true"}
				}
				if c.args[1] == "demo" {
					s.Agent(t, "demo")
				}
				r := s.Ctl(t, c.as, append([]string{"run"}, c.args...)...)
				if r.Exit != c.exit {
					t.Errorf("exit %d, want %d", r.Exit, c.exit)
				}
				talk := withoutDecisions(r.Stderr)
				if !strings.Contains(strings.ToLower(talk), strings.ToLower(c.says)) || strings.Count(talk, "\n") > 3 || r.Stdout != "" {
					t.Errorf("exit %d; it says:\n%s%s", r.Exit, r.Stdout, r.Stderr)
				}
			})
		}
	})
}

// withoutDecisions drops what is said about the run before it fails.
func withoutDecisions(stderr string) string {
	var out strings.Builder
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "sealed: run ") || !strings.Contains(line, ", agent ") {
			if !strings.HasPrefix(line, "sealed:   ") {
				out.WriteString(line)
			}
		}
	}
	return out.String()
}

// withoutBubblewrap runs a command in a mount namespace where bwrap is hidden.
func withoutBubblewrap() []string {
	return []string{"unshare", "--mount", "sh", "-c",
		`for p in /usr/bin/bwrap /bin/bwrap /usr/local/bin/bwrap; do test -e $p && mount --bind /dev/null $p; done; exec "$@"`, "sh"}
}

// changedTrust writes a copy of the trust file.
func changedTrust(t *testing.T, s *harness.Stack, change func(*sealed.TrustFile)) string {
	t.Helper()
	b, err := os.ReadFile(s.Status.TrustFile)
	if err != nil {
		t.Fatal(err)
	}
	f, err := sealed.ParseTrustFile(b)
	if err != nil {
		t.Fatal(err)
	}
	change(&f)
	if b, err = json.Marshal(f); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.Dir(t, 0), "trust.json")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
