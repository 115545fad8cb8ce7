package e2e

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/agent"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/test/harness/require"
)

// modelHost is where the model double answers.
const modelHost = "api.anthropic.test"

// claude returns a directory, open to every uid, with Claude Code's program in
// it: that of SEALED_CLAUDE, or the one in the cache.
func claude(t *testing.T, s *harness.Stack) string {
	t.Helper()
	path := os.Getenv("SEALED_CLAUDE")
	if path == "" {
		path = filepath.Join(os.Getenv("HOME"), ".cache/sealed/npm/claude-code-2.1.197/node_modules/.bin/claude")
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		require.Missing(t, "claude", err.Error())
	}
	dir := s.Dir(t, 0)
	to := filepath.Join(dir, "claude")
	if os.Link(real, to) == nil {
		return dir
	}
	in, err := os.Open(real)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestClaudeCode runs the real Claude Code, headless, against a double of its
// model that makes it look for its key. The key reaches the model's API and
// nothing else.
func TestClaudeCode(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		dir := claude(t, s)
		program := filepath.Join(dir, "claude")
		env, _ := agent.Preset(agent.ClaudeCode)
		s.AgentWithEnv(t, string(agent.ClaudeCode), env, program)
		c := newCanary(t, "ANTHROPIC_API_KEY")
		profile := s.Name("team/claude")
		s.Secret(t, profile, c.Value)
		s.Profile(t, harness.Profile1(profile, map[sealed.KeyName]sealed.KeySpec{
			"ANTHROPIC_API_KEY": harness.Key(profile, []string{string(agent.ClaudeCode)},
				sealed.Binding{Host: modelHost, Methods: []string{"POST"}, Paths: []string{"/v1/**"}, Header: "X-Api-Key", Format: "{}"}),
		}))
		model := &modelDouble{gate: make(chan struct{}), commands: []string{"env", "echo $ANTHROPIC_API_KEY | base64; echo $ANTHROPIC_API_KEY | rev", "printf done > out.txt"}}
		s.Upstream.Handle(t, modelHost, model)
		as := l.caller()
		as.Dir, as.Timeout = s.Dir(t, l.uid), 2*time.Minute
		write(t, l, as.Dir, "README.md", "a project", 0o644)
		p := s.Start(t, as, "run", "--agent", string(agent.ClaudeCode), "--profile", profile, "--read-only", dir, "--",
			program, "-p", "look around, then write out.txt", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions")
		p.Await(t, "printf done")
		if os.Geteuid() == 0 {
			scanMemory(t, p, c)
		}
		close(model.gate)
		r := p.Wait(t).Want(t, 0)

		keys, requests := model.seen()
		if len(requests) < len(model.commands)+1 {
			t.Errorf("%d requests", len(requests))
		}
		for _, key := range keys {
			if key != c.Value {
				t.Error("the model was sent another key than the real one")
			}
		}
		wantClean(t, c, map[string]string{"stdout": r.Stdout, "stderr": r.Stderr, "what the agent told the model": strings.Join(requests, "\n")})
		if !strings.Contains(strings.Join(requests, "\n"), "SEALED_RUN="+string(r.RunID(t))) {
			t.Error("the agent's environment did not reach the model: nothing was looked at")
		}
		if b, err := os.ReadFile(filepath.Join(as.Dir, "out.txt")); err != nil || string(b) != "done" {
			t.Errorf("the agent's file: %q, %v", b, err)
		}
		wantCleanRun(t, s, l, r, c)
		scanHost(t, s, as.Dir, c)
	})
}

// seen returns the credentials and bodies of all requests.
func (m *modelDouble) seen() (keys, requests []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append(keys, m.keys...), append(requests, m.requests...)
}

var _ http.Handler = (*modelDouble)(nil)

// scanMemory looks into the processes of the operator, and of the agent, while
// the value is in use. Control: the same scan finds it in process 1 of the sandbox.
func scanMemory(t *testing.T, p *harness.Process, c *canary.Canary) {
	t.Helper()
	st := p.Status(t)
	if hits, err := canary.ScanProcess(st.InitPID, c); err != nil || len(hits) == 0 {
		t.Errorf("the scan does not find the value in init: %v", err)
	}
	for _, pid := range append(below(t, p.PID()), p.PID()) {
		if pid == st.InitPID {
			continue
		}
		hits, err := canary.ScanProcess(pid, c)
		if err != nil && (pid == p.PID() || pid == st.PID) { // the agent's come and go
			t.Error(err)
		}
		for _, hit := range hits {
			t.Error(hit)
		}
	}
}

// scanHost looks through everything that the stack has written.
func scanHost(t *testing.T, s *harness.Stack, workspace string, c *canary.Canary) {
	t.Helper()
	for _, dir := range []string{"log", "raft", "spire", "authority"} {
		hits, err := canary.ScanTree(filepath.Join(s.Status.Dir, "private", dir), c)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // raft and sockets come and go
			t.Error(err)
		}
		for _, hit := range hits {
			t.Error(hit)
		}
	}
	hits, err := canary.ScanTree(workspace, c)
	if err != nil || len(hits) > 0 {
		t.Errorf("workspace: %v, %v", hits, err)
	}
	root, err := s.Root()
	if err != nil {
		t.Fatal(err)
	}
	var snapshot bytes.Buffer
	if err := root.Snapshot(t.Context(), &snapshot); err != nil || snapshot.Len() == 0 {
		t.Fatalf("snapshot of %d bytes: %v", snapshot.Len(), err)
	}
	for _, hit := range canary.Scan("snapshot", snapshot.Bytes(), c) {
		t.Error(hit)
	}
}
