package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// TestWorkspace: changes come back, and what could hurt the host or holds a
// value does not.
func TestWorkspace(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "ENV_TOKEN")
		as := l.caller()
		as.Dir = s.Dir(t, l.uid)
		write(t, l, as.Dir, "kept.txt", "as it was", 0o644)
		write(t, l, as.Dir, "edited.txt", "before", 0o644)
		write(t, l, as.Dir, "deleted.txt", "goes", 0o644)
		write(t, l, as.Dir, "sub/run.sh", "#!/bin/sh\n", 0o755)
		write(t, l, as.Dir, ".git/config", "[core]\n", 0o644)
		r := s.Ctl(t, as, "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c", `
			echo after > edited.txt; rm deleted.txt; mkdir -p new/deep; echo made > new/deep/file; ln -s file new/deep/link
			printf '#!/bin/sh\nexit 9\n' > tool; chmod 755 tool
			mkdir -p .git/hooks; printf '#!/bin/sh\n' > .git/hooks/post-checkout; chmod 755 .git/hooks/post-checkout
			printf '[core]\nfsmonitor = ./tool\n' > .git/config
			ln -s /etc/passwd outward; mkfifo pipe
			echo "$ENV_TOKEN" > stolen.txt; printf %s "$ENV_TOKEN" | base64 > stolen.b64`).Want(t, 0)
		for name, want := range map[string]string{
			"kept.txt": "as it was", "edited.txt": "after\n", "new/deep/file": "made\n", "new/deep/link": "made\n",
			"tool": "#!/bin/sh\nexit 9\n", "sub/run.sh": "#!/bin/sh\n", ".git/config": "[core]\n",
		} {
			if got, err := os.ReadFile(filepath.Join(as.Dir, name)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		for _, name := range []string{"deleted.txt", ".git/hooks/post-checkout", "outward", "pipe", "stolen.txt", "stolen.b64"} {
			if _, err := os.Lstat(filepath.Join(as.Dir, name)); !os.IsNotExist(err) {
				t.Errorf("%s is on the host: %v", name, err)
			}
		}
		for _, name := range []string{".git/hooks/post-checkout", ".git/config", "outward"} {
			if !strings.Contains(r.Stderr, "kept from the workspace: "+name) {
				t.Errorf("nobody is told about %s: %s", name, r.Stderr)
			}
		}
		if st, err := os.Stat(filepath.Join(as.Dir, "tool")); err != nil || st.Mode().Perm()&0o100 == 0 {
			t.Errorf("tool: %v, %v", st, err)
		}
		hits, err := canary.ScanTree(as.Dir, c)
		if err != nil || len(hits) > 0 {
			t.Errorf("workspace: %v, %v", hits, err)
		}
		wantCleanRun(t, s, l, r, c)
	})
}

// TestNoWorkspace: nothing is shown to the agent and nothing comes back.
func TestNoWorkspace(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		as := l.caller()
		as.Dir = s.Dir(t, l.uid)
		write(t, l, as.Dir, "private.txt", "mine", 0o644)
		r := s.Ctl(t, as, "run", "--agent", "custom", "--no-workspace", "--", "sh", "-c", "ls -A; echo x > made").Want(t, 0)
		if r.Stdout != "" {
			t.Errorf("the agent saw %q", r.Stdout)
		}
		if _, err := os.Stat(filepath.Join(as.Dir, "made")); !os.IsNotExist(err) {
			t.Errorf("made came back: %v", err)
		}
	})
}
