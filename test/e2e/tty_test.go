package e2e

import (
	"strings"
	"testing"

	"sealed.dev/sealed/test/harness"
)

// TestTerminal: an interactive agent has a terminal that behaves.
func TestTerminal(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "ENV_TOKEN")
		p := s.StartTTY(t, l.caller(), 31, 97, "run", "--agent", "custom", "--profile", profile, "--", "sh")
		// What is written last may be held back by the redactor, so all that is
		// waited for has something after it.
		p.Await(t, "$ ")
		p.Type(t, "test -t 0 && test -t 1 && echo on a term''inal, both\n")
		p.Await(t, "on a terminal")
		p.Type(t, "stty size\n")
		p.Await(t, "31 9")
		p.Resize(t, 40, 120) // tells the foreground process by SIGWINCH, as a terminal does
		p.Type(t, "until test \"$(stty size)\" = '40 120'; do sleep 0.1; done; echo re''sized at last\n")
		p.Await(t, "resized")
		// The child says that it runs: a shell's own child, before it executes
		// anything, may still swallow the signal.
		p.Type(t, "sh -c 'echo go\"\"ing to sleep; exec sleep 600'; echo inter''rupted $?\n")
		p.Await(t, "going to sl")
		p.Type(t, "\x03") // Ctrl-C reaches the agent's foreground process, not sealedctl
		p.Type(t, "echo still h''ere, of course\n")
		p.Await(t, "still here")
		p.Type(t, "echo \"value <$ENV_TOKEN>\"\n")
		p.Await(t, "[sealed:ENV_TOKEN]")
		p.Type(t, "exit 6\n")
		r := p.Wait(t).Want(t, 6)
		wantClean(t, c, map[string]string{"terminal": r.Stdout})
		if strings.Contains(r.Stdout, "interrupted 0") {
			t.Errorf("Ctrl-C did not end sleep: %s", r.Stdout)
		}
		wantEntries(t, s.Entries(t, r.RunID(t)), "run.claimed", "run.finished")
	})
}
