package fault

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// steps is a script of an agent: it uses its key, waits to be told, uses it
// again, and says what came of it.
const steps = `use() { echo "$1: $(curl -sS -m 5 -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $KEY" https://api.test/v1/x 2>/dev/null) done"; }
use first
while [ ! -e on ]; do sleep 0.05; done
use second
while [ ! -e over ]; do sleep 0.05; done
use third`

func (w *world) start(t *testing.T) (*harness.Process, *canary.Canary) {
	t.Helper()
	c, err := canary.New("KEY")
	harness.Must(t, err)
	profile := w.static(t, c.Value)
	p := w.Start(t, harness.Caller{}, "run", "--agent", string(agentName), "--profile", profile, "--no-workspace", "--", "/bin/sh", "-c", steps)
	p.Await(t, "first: 200")
	return p, c
}

// ended waits until the engine holds a run for over, with every grant dead.
func (w *world) ended(t *testing.T, id sealed.RunID) {
	t.Helper()
	harness.Eventually(t, time.Minute, "the run is over in the engine", func() bool {
		run, err := w.Engine(t, "operator").Run(t.Context(), id)
		if err != nil {
			return false
		}
		for _, g := range run.Grants {
			if g.State != "dead" {
				return false
			}
		}
		return run.State == sealed.RunFinished || run.State == sealed.RunClosed || run.State == sealed.RunAborted
	})
}

// The process of the engine is killed while a run goes on. Vault starts
// another, and the run does not notice, or ends like any that failed; either
// way it is in the log.
func TestPluginKilledMidRun(t *testing.T) {
	w := get(t)
	p, c := w.start(t)
	pid := w.pluginPID(t)
	kill(t, pid)
	w.tell(t, p, "on")
	p.Await(t, "second: ")
	w.tell(t, p, "over")
	r := p.Wait(t)
	if r.Exit != 0 && r.Exit != sealed.ExitSealed {
		t.Errorf("exit %d: %s", r.Exit, r.Stderr)
	}
	t.Logf("exit %d, %q %s", r.Exit, r.Stdout, r.Stderr)
	if hits := canary.Scan("streams", []byte(r.Stdout+r.Stderr), c); len(hits) > 0 {
		t.Error(hits)
	}
	if again := w.pluginPID(t); again == pid {
		t.Error("control: the engine's process is the same")
	}
	w.ended(t, r.RunID(t))
	w.verify(t, nil)
}

// Vault is gone for a while. The key can't be used then (DESIGN §11: after 5 s
// out of contact the proxy freezes); when Vault is back, the run goes on.
func TestVaultGoneMidRun(t *testing.T) {
	w := get(t)
	p, c := w.start(t)
	before := len(w.Upstream.Requests("api.test", "/v1/x"))
	w.crash(t, "vault")
	time.Sleep(7 * time.Second) // the limit is the thing under test
	w.tell(t, p, "on")
	p.Await(t, "second: ")
	if n := len(w.Upstream.Requests("api.test", "/v1/x")); n != before {
		t.Errorf("the key was used %d times out of contact", n-before)
	}
	w.repair(t)
	harness.Eventually(t, 30*time.Second, "the engine answers", func() bool {
		_, err := w.Engine(t, "operator").Run(t.Context(), p.RunID(t))
		return err == nil
	})
	time.Sleep(2 * time.Second) // one watch
	w.tell(t, p, "over")
	r := p.Wait(t)
	if !strings.Contains(r.Stdout, "third: 200") || r.Exit != 0 {
		t.Errorf("control: in contact again, the key should work: exit %d, %q\n%s", r.Exit, r.Stdout, r.Stderr)
	}
	if hits := canary.Scan("streams", []byte(r.Stdout+r.Stderr), c); len(hits) > 0 {
		t.Error(hits)
	}
	w.ended(t, r.RunID(t))
	w.verify(t, nil)
}

// G13: Vault is killed again and again while runs are enqueued. Every run that
// was acknowledged is in the log, and the log only ever grows.
func TestG13KilledDuringAppends(t *testing.T) {
	w := get(t)
	profile := w.static(t, "a value of no importance, 0123456789")
	acked := map[sealed.RunID]bool{}
	var head []byte
	for round := 0; round < 4 || len(acked) < 8 && round < 12; round++ { // more on a busy machine
		for id := range w.enqueueUntilDead(t, profile) {
			acked[id] = true
		}
		w.repair(t)
		head = w.verify(t, head)
	}
	if len(acked) < 8 {
		t.Errorf("control: only %d runs were acknowledged", len(acked))
	}
	logged := w.enqueuedRuns(t)
	for id := range acked {
		if !logged[id] {
			t.Errorf("run %s was acknowledged and is not in the log", id)
		}
		if _, err := w.Engine(t, "operator").Run(t.Context(), id); err != nil {
			t.Errorf("run %s was acknowledged and is lost: %v", id, err)
		}
	}
	t.Logf("%d acknowledged, %d logged", len(acked), len(logged))
}

// enqueueUntilDead enqueues from several sides and kills Vault meanwhile. It
// returns what was acknowledged.
func (w *world) enqueueUntilDead(t *testing.T, profile string) map[sealed.RunID]bool {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	e := w.Engine(t, "operator")
	var (
		all sync.WaitGroup
		mu  sync.Mutex
		out = map[sealed.RunID]bool{}
	)
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				q, err := e.Enqueue(ctx, harness.Enqueue(t, agentName, profile))
				if err != nil {
					return
				}
				mu.Lock()
				out[q.Run] = true
				mu.Unlock()
			}
		})
	}
	time.Sleep(200*time.Millisecond + rand.N(200*time.Millisecond))
	w.crash(t, "vault")
	stop()
	all.Wait()
	return out
}

func (w *world) enqueuedRuns(t *testing.T) map[sealed.RunID]bool {
	t.Helper()
	out := map[sealed.RunID]bool{}
	e := w.Engine(t, "auditor")
	for f := (vaultclient.LogFilter{Type: "run.enqueued", Limit: 1000}); ; {
		page, next, err := e.LogEntries(t.Context(), f)
		harness.Must(t, err)
		for _, entry := range page {
			out[entry.Run] = true
			if !json.Valid(entry.Body) {
				t.Errorf("entry %d has no body", entry.Seq)
			}
		}
		if next <= f.From {
			return out
		}
		f.From = next
	}
}

// SPIRE is gone: a new run gets no identity, says so in a line and leaves no
// grant; a run that has its identity goes on.
func TestSPIREGone(t *testing.T) {
	w := get(t)
	p, c := w.start(t)
	w.crash(t, "spire-agent")
	r := w.Ctl(t, harness.Caller{}, "run", "--agent", string(agentName), "--no-workspace", "--", "/bin/echo", "no").Want(t, sealed.ExitSealed)
	if r.Stdout != "" {
		t.Errorf("stdout: %s", r.Stdout)
	}
	w.tell(t, p, "on")
	p.Await(t, "second: 200")
	w.repair(t)
	w.tell(t, p, "over")
	r = p.Wait(t).Want(t, 0)
	if hits := canary.Scan("streams", []byte(r.Stdout+r.Stderr), c); len(hits) > 0 {
		t.Error(hits)
	}
	w.Ctl(t, harness.Caller{}, "run", "--agent", string(agentName), "--no-workspace", "--", "/bin/echo", "yes").Want(t, 0) // the control
	w.verify(t, nil)
}
