package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness"
)

// audited counts the calls that Vault's audit file has had since an offset: of the
// host's watch, and by run of its own.
func audited(t *testing.T, s *harness.Stack, from int64) (host int, own map[sealed.RunID]int, to int64) {
	t.Helper()
	b, err := os.ReadFile(s.Status.AuditFile)
	harness.Must(t, err)
	own = map[sealed.RunID]int{}
	for lines := bufio.NewScanner(bytes.NewReader(b[from:])); lines.Scan(); {
		var e struct {
			Type    string
			Request struct{ Path string }
		}
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Type != "request" {
			continue
		}
		path, _ := strings.CutPrefix(e.Request.Path, s.Status.Mount+"/")
		run, ofRun := strings.CutPrefix(strings.TrimSuffix(path, "/watch"), "runs/")
		switch {
		case path == "watch":
			host++
		case ofRun && strings.HasSuffix(path, "/watch"):
			own[sealed.RunID(run)]++
		}
	}
	return host, own, int64(len(b))
}

// A member is a run with what it holds on to.
type member struct {
	p       *harness.Process
	profile string
	run     sealed.RunID
	ps      []watched
}

func enlist(t *testing.T, s *harness.Stack, l launcher) *member {
	t.Helper()
	m := &member{}
	m.profile, _ = plant(t, s, "API_TOKEN", bind("api.test"))
	m.p = start(t, s, l, "--profile", m.profile)
	m.run, m.ps = m.p.RunID(t), watch(t, m.p)
	return m
}

// wantAlive checks that every process is there.
func wantAlive(t *testing.T, ms ...*member) {
	t.Helper()
	for _, m := range ms {
		for _, p := range m.ps {
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 0); n != 0 || err != nil {
				t.Errorf("process %d of run %s has ended, %v", p.pid, m.run, err)
			}
		}
	}
}

// TestHostWatch: runs of one user on one host share one watch, whose calls are in
// Vault's audit file. What stops one of them stops it at once, and no other. When
// the run that watches is killed another one does.
func TestHostWatch(t *testing.T) {
	t.Parallel()
	s := harness.Open(t, harness.Options{}) // calls are counted, and servers are this test's
	s.Agent(t, "custom")
	for _, l := range launchers() {
		t.Run(l.name, func(t *testing.T) {
			a, b, c := enlist(t, s, l), enlist(t, s, l), enlist(t, s, l)
			counted := func(t *testing.T, window time.Duration, ms ...*member) {
				t.Helper()
				settled(t, s)
				_, _, from := audited(t, s, 0)
				time.Sleep(window) // calls in this time are what the test is about
				host, own, _ := audited(t, s, from)
				t.Logf("in %v: %d calls for the host, %v by runs", window, host, own)
				seconds := int(window / time.Second)
				if host < seconds/2 || host > seconds+2 {
					t.Errorf("%d calls for the host in %v", host, window)
				}
				for _, m := range ms {
					// Every 3.75 seconds; one more for a moment in which the host's came late.
					if n := own[m.run]; n < seconds/4 || n > seconds/3+2 {
						t.Errorf("%d calls of run %s in %v", n, m.run, window)
					}
				}
			}
			counted(t, 10*time.Second, a, b, c)

			// The first one has the chair. Its sandbox goes with its supervisor.
			harness.Must(t, syscall.Kill(a.p.Status(t).PID, syscall.SIGKILL))
			wantGone(t, a.ps, soon)
			wantAlive(t, b, c)
			counted(t, 5*time.Second, b, c)

			d := enlist(t, s, l)
			begun := time.Now()
			s.Ctl(t, l.caller(), "runs", "stop", string(d.run), "--reason", "enough").Want(t, 0)
			wantGone(t, d.ps, 2*time.Second-min(time.Second, time.Since(begun)))
			e := enlist(t, s, l)
			rev := sealed.Revocation{Kind: sealed.RevokeKey, Target: e.profile + "#API_TOKEN", Hard: true, Reason: "a test"}
			operator := s.Engine(t, "operator")
			begun = time.Now()
			_, err := operator.Revoke(t.Context(), rev)
			harness.Must(t, err)
			wantGone(t, e.ps, 2*time.Second-min(time.Second, time.Since(begun)))
			t.Logf("a hard revocation: gone %v after it was sent", time.Since(begun).Round(time.Millisecond))
			wantAlive(t, b, c)
			for _, m := range []*member{b, c} {
				m.p.Signal(t, syscall.SIGTERM)
				m.p.Wait(t)
			}
		})
	}
}

// settled waits until the host is watched for: two calls in a row, and no run's
// own between them.
func settled(t *testing.T, s *harness.Stack) {
	t.Helper()
	_, _, from := audited(t, s, 0)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		host, own, to := audited(t, s, from)
		if host >= 2 && len(own) == 0 {
			return
		}
		if host >= 2 || len(own) > 0 {
			from = to
		}
	}
	t.Fatal("nobody watches for the host")
}
