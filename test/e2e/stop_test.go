package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/harness"
)

// A watched process is held by a pidfd, so that another process with its
// number is not taken for it.
type watched struct {
	pid int
	fd  int
}

// watch takes hold of process 1 of a run's sandbox and of all below it.
func watch(t *testing.T, p *harness.Process) []watched {
	t.Helper()
	init := p.Status(t).InitPID
	var out []watched
	for _, pid := range append(below(t, init), init) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatalf("watching process %d: %v", pid, err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		out = append(out, watched{pid, fd})
	}
	if len(out) < 2 {
		t.Fatal("no agent below init")
	}
	return out
}

// below returns the descendants of a process.
func below(t *testing.T, pid int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	children := map[int][]int{}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		text := string(b)
		f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		id, err1 := strconv.Atoi(text[:strings.IndexByte(text, ' ')])
		parent, err2 := strconv.Atoi(f[1])
		if err1 != nil || err2 != nil {
			t.Fatalf("reading %s: %q", path, text)
		}
		children[parent] = append(children[parent], id)
	}
	out := slices.Clone(children[pid])
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	return out
}

// soon is when what has to end at once must have ended, on a busy machine too.
const soon = 10 * time.Second

// wantGone checks that all have ended within the limit from now.
func wantGone(t *testing.T, ps []watched, limit time.Duration) {
	t.Helper()
	begun := time.Now()
	for _, p := range ps {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(max(0, limit-time.Since(begun)).Milliseconds()))
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				t.Errorf("process %d lives after %v: %v", p.pid, limit, err)
			}
			break
		}
	}
	t.Logf("gone after %v", time.Since(begun).Round(time.Millisecond))
}

// awaitEntry waits until a run has an entry of a type.
func awaitEntry(t *testing.T, s *harness.Stack, run sealed.RunID, typ string, limit time.Duration) []vaultclient.LogEntry {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		entries := s.Entries(t, run)
		if slices.Contains(harness.Types(entries), typ) {
			return entries
		}
		if time.Since(begun) > limit {
			t.Fatalf("no %s after %v: %v", typ, limit, harness.Types(entries))
		}
	}
}

// sleeper is an agent that is ready and stays. Tests wait for the first word
// only: the redactor may hold back the end of what was written last.
var sleeper = []string{"sh", "-c", "echo ready and waiting; sleep 600 & sleep 600"}

// start starts a run of the sleeper and waits until it is ready.
func start(t *testing.T, s *harness.Stack, l launcher, args ...string) *harness.Process {
	t.Helper()
	p := s.Start(t, l.caller(), append(append([]string{"run", "--agent", "custom"}, args...), append([]string{"--"}, sleeper...)...)...)
	p.Await(t, "ready")
	return p
}

// TestRevocation: a hard one stops a run that holds the key; a soft one only what
// comes after it. Neither outlives its lift.
func TestRevocation(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, _ := plant(t, s, "API_TOKEN", bind("api.test"))
		revoke := func(t *testing.T, args ...string) {
			t.Helper()
			args = append([]string{"revoke", "key", profile + "#API_TOKEN", "--reason", "a test", "--yes", "-o", "json"}, args...)
			s.Ctl(t, harness.Caller{}, args...).Want(t, 0)
		}
		lift := func(t *testing.T) {
			t.Helper()
			e := s.Engine(t, "operator")
			list, err := e.Revocations(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				if r.Standing && r.Target == profile+"#API_TOKEN" {
					s.Ctl(t, harness.Caller{}, "revocations", "lift", r.ID, "--reason", "over").Want(t, 0)
				}
			}
		}
		t.Run("soft", func(t *testing.T) {
			path := "/" + s.Name("soft")
			p := s.Start(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c",
				`curl -sSN -H "Authorization: Bearer $API_TOKEN" https://api.test`+path+`/hold; curl -sS -H "Authorization: Bearer $API_TOKEN" https://api.test`+path+`/after`)
			p.Await(t, "held here")
			revoke(t)
			r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "true").Want(t, sealed.ExitDenied)
			if !strings.Contains(r.Stderr, sealed.ReasonRevoked) {
				t.Errorf("no reason: %s", r.Stderr)
			}
			s.Upstream.Release(path + "/")
			p.Wait(t).Want(t, 0)
			if n := len(s.Upstream.Requests("api.test", path+"/after")); n != 1 {
				t.Errorf("what was issued before a soft revocation: %d requests", n)
			}
			lift(t)
		})
		t.Run("hard", func(t *testing.T) {
			p := start(t, s, l, "--profile", profile)
			ps := watch(t, p)
			revoke(t, "--hard")
			wantGone(t, ps, soon)
			r := p.Wait(t).Want(t, sealed.ExitSealed)
			if !strings.Contains(r.Stderr, "aborted") {
				t.Errorf("nobody is told: %s", r.Stderr)
			}
			wantEntries(t, s.Entries(t, r.RunID(t)), "run.claimed", "issue.ok")
			run, err := s.Engine(t, "operator").Run(t.Context(), r.RunID(t))
			if err != nil || run.State != sealed.RunAborted && run.State != sealed.RunFinished {
				t.Errorf("run: %s, %v", run.State, err)
			}
			lift(t)
		})
		s.Ctl(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "true").Want(t, 0)
	})
}

// TestDetach: a run without a terminal to hold it, followed and stopped.
func TestDetach(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		as := l.caller()
		r := s.Ctl(t, as, append([]string{"run", "--agent", "custom", "--detach", "--"}, sleeper...)...).Want(t, 0)
		run := sealed.RunID(strings.TrimSpace(r.Stdout))
		if run != r.RunID(t) {
			t.Fatalf("standard output is %q", r.Stdout)
		}
		// Whatever happens, the sandbox ends with the test.
		t.Cleanup(func() { s.Ctl(t, as, "runs", "stop", string(run), "--reason", "end of the test") })
		follow := s.Start(t, as, "runs", "logs", "-f", string(run))
		follow.Await(t, "ready")
		select {
		case <-follow.Done():
			t.Error("logs -f ended before the run")
		default:
		}
		s.Ctl(t, as, "runs", "stop", string(run), "--reason", "enough").Want(t, 0)
		if out := follow.Wait(t).Want(t, 0); out.Stdout != "ready and waiting\n" {
			t.Errorf("followed: %q", out.Stdout)
		}
		if r := s.Ctl(t, as, "runs", "logs", string(run)).Want(t, 0); r.Stdout != "ready and waiting\n" {
			t.Errorf("logs: %q", r.Stdout)
		}
		got, err := s.Engine(t, "operator").Run(t.Context(), run)
		if err != nil || got.State != sealed.RunAborted && got.State != sealed.RunFinished {
			t.Errorf("run: %s, %v", got.State, err)
		}
	})
}

// TestCtlKilled: the sandbox does not outlive who started it, and the log says
// so although nobody was left to sign.
func TestCtlKilled(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, _ := plant(t, s, "API_TOKEN", bind("api.test"))
		p := start(t, s, l, "--profile", profile)
		run, ps := p.RunID(t), watch(t, p)
		p.Signal(t, syscall.SIGKILL)
		wantGone(t, ps, soon)
		entries := awaitEntry(t, s, run, "run.closed", 30*time.Second)
		if b := body(t, entries, "run.closed"); b["signed"] != false {
			t.Errorf("closing entry: %v", b)
		}
	})
}

// TestInitKilled: process 1, killed from outside, takes everything with it.
func TestInitKilled(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, _ := plant(t, s, "API_TOKEN", bind("api.test"))
		p := start(t, s, l, "--profile", profile)
		ps := watch(t, p)
		if err := unix.PidfdSendSignal(ps[len(ps)-1].fd, unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		wantGone(t, ps, soon)
		r := p.Wait(t).Want(t, sealed.ExitSealed)
		if !strings.Contains(r.Stderr, "without a record") {
			t.Errorf("nobody is told: %s", r.Stderr)
		}
		entries := awaitEntry(t, s, r.RunID(t), "run.closed", 30*time.Second)
		if b := body(t, entries, "run.closed"); b["signed"] != false {
			t.Errorf("closing entry: %v", b)
		}
	})
}

// TestSignals: asked to stop, sealedctl lets the agent end and the run sign
// its record.
func TestSignals(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(fmt.Sprint(sig), func(t *testing.T) {
				p := s.Start(t, l.caller(), "run", "--agent", "custom", "--", "sh", "-c",
					`trap 'echo asked; exit 9' TERM INT; echo ready and waiting; while :; do sleep 0.1; done`)
				p.Await(t, "ready")
				p.Signal(t, sig)
				r := p.Wait(t).Want(t, 9)
				if !strings.HasSuffix(r.Stdout, "asked\n") {
					t.Errorf("output: %q", r.Stdout)
				}
				wantEntries(t, s.Entries(t, r.RunID(t)), "run.claimed", "run.finished")
			})
		}
	})
}
