package fault

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/supervise"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/harness"
)

// A moment is where a credential is when a process is killed: how far its run
// has come, and which call to the upstream is under way.
type moment struct {
	name string
	made int    // credentials that the upstream has made by then
	upto int    // steps that the run makes by itself
	call string // end of the path of the upstream call that is held; empty: none
	done bool   // it is held after the upstream has carried it out
	live int    // credentials that must be left upstream
}

const (
	claimed   = iota // the run is claimed, and asks for nothing
	asking           // it has asked for a credential
	returned         // it has got one
	confirmed        // it has confirmed it
	revoking         // an operator takes it back
)

// moments are those of a credential that another Vault makes, in their order.
var moments = []moment{
	{name: "nothing asked yet", upto: claimed},
	{name: "a token for it is asked for", upto: asking, call: "auth/token/create"},
	{name: "the token is made, and nobody told", upto: asking, call: "auth/token/create", done: true},
	{name: "the credential is asked for", upto: asking, call: "issue/ci"},
	{name: "the credential is made, and nobody told", made: 1, upto: asking, call: "issue/ci", done: true},
	{name: "answered, not confirmed", made: 1, upto: returned},
	{name: "confirmed", made: 1, upto: confirmed, live: 1},
	{name: "its revocation is asked for", made: 1, upto: revoking, call: "auth/token/revoke-accessor"},
	{name: "it is revoked, and nobody told", upto: revoking, call: "auth/token/revoke-accessor", done: true},
}

// A gate stands before an upstream and holds one call, until the caller goes.
type gate struct {
	moment
	mu   sync.Mutex
	held chan struct{} // closed once the call is held
	left chan struct{} // closed once it is no more, or was not in time
	gone sync.Once
}

func (g *gate) leave() { g.gone.Do(func() { close(g.left) }) }

// hold holds the call if it is the one. PKI refuses to be read before it is
// written to, so only writes count.
func (g *gate) hold(r *http.Request, done bool) {
	if g.call == "" || done != g.done || !strings.HasSuffix(r.URL.Path, g.call) || r.Method == http.MethodGet {
		return
	}
	g.mu.Lock()
	select {
	case <-g.held:
		g.mu.Unlock()
		return // once
	default:
		close(g.held)
	}
	g.mu.Unlock()
	defer g.leave()
	select {
	case <-r.Context().Done():
	case <-time.After(30 * time.Second):
	}
}

// over reports whether the caller has given up.
func (g *gate) over() bool {
	select {
	case <-g.left:
		return true
	default:
		return false
	}
}

// A scene is one run at its moment.
type scene struct {
	*gate
	up      *upstream
	run     *guest.Guest
	profile string
}

// stage makes a run, with an upstream of its own, and brings it to its moment.
// A call that is held goes on in the background, and fails with the engine.
func (w *world) stage(t *testing.T, m moment) *scene {
	t.Helper()
	s := &scene{gate: &gate{moment: m, held: make(chan struct{}), left: make(chan struct{})}, up: w.upstream(t)}
	addr, ca := front(t, w.forge.Trust.VaultAddr, w.forge.Trust.VaultCA,
		func(r *http.Request) { s.hold(r, false) }, func(r *http.Response) { s.hold(r.Request, true) })
	s.profile = w.source(t, s.up, addr, ca)
	s.run = w.guest(t, s.profile)
	return s
}

// advance takes the steps of the run that nobody holds.
func (s *scene) advance(t *testing.T) {
	t.Helper()
	if s.upto < returned {
		return
	}
	grant, err := s.run.Creds(t.Context(), "KEY", momentIdem)
	harness.Must(t, err)
	if s.upto >= confirmed {
		harness.Must(t, s.run.Confirm(t.Context(), grant))
	}
}

// momentIdem is the idempotency key of every first request.
const momentIdem = "at-its-moment-001"

// block makes the call that is held, and returns once it is, or too late. The
// call itself goes on, and fails with the engine.
func (s *scene) block(ctx context.Context, operator *vaultclient.Engine) {
	go func() {
		if s.upto == asking {
			_, _ = s.run.Creds(ctx, "KEY", momentIdem)
			return
		}
		_, _ = operator.Revoke(ctx, sealed.Revocation{Kind: sealed.RevokeProfile, Target: s.profile, Hard: true, Reason: "a test"})
	}()
	select {
	case <-s.held:
	case <-time.After(20 * time.Second):
	}
}

// wantMade is the control: the call is held, and there is something that could
// be lost.
func (s *scene) wantMade(t *testing.T) {
	t.Helper()
	if s.over() {
		return // it is done again
	}
	select {
	case <-s.held:
	default:
		if s.call != "" { // what came before it took longer than the engine waits
			t.Logf("%s: the call %s did not come", s.name, s.call)
			s.leave()
			return
		}
	}
	// Vault revokes the leases of a token after it has answered.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		n := len(s.up.leases(t))
		if n == s.made || s.over() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("control: %s: %d credentials upstream, want %d", s.name, n, s.made)
		}
	}
}

// G13, F14: the engine's process, and then Vault with it, is killed while one
// run is at each moment of an issue. Afterwards nothing lives upstream that the
// engine does not know of, the log verifies, and every row can be read.
func TestG13KilledAtEveryMoment(t *testing.T) { // beside no other: the sources wait for 3 s
	for _, victim := range []string{"engine", "vault"} {
		t.Run(victim, func(t *testing.T) {
			w := get(t)
			head := w.verify(t, nil)
			scenes := w.stageAll(t)
			if victim == "engine" {
				kill(t, w.pluginPID(t))
			} else {
				w.crash(t, "vault")
				w.repair(t)
			}
			w.settle(t, scenes)
			w.readable(t, scenes)
			w.verify(t, head)
			for _, s := range scenes {
				if s.upto == revoking {
					continue // its profile stays revoked
				}
				t.Run("control: later "+s.name, func(t *testing.T) {
					if _, err := s.run.Creds(t.Context(), "KEY", "another-request-1"); err != nil {
						t.Errorf("a new request: %v", err)
					}
				})
			}
		})
	}
}

// stageAll brings a run to each moment. The calls that are held have to be at
// the same time, and a source waits for 3 s only: so they come last, at once.
// Where that took too long, all of it is done again.
func (w *world) stageAll(t *testing.T) []*scene {
	t.Helper()
	for range 10 {
		scenes := make([]*scene, len(moments))
		for i, m := range moments {
			scenes[i] = w.stage(t, m)
		}
		for _, s := range scenes {
			s.advance(t)
		}
		ctx, operator := context.WithoutCancel(t.Context()), w.Engine(t, "operator")
		var all sync.WaitGroup
		for _, s := range scenes {
			if s.call != "" {
				all.Go(func() { s.block(ctx, operator) })
			}
		}
		all.Wait()
		for _, s := range scenes {
			s.wantMade(t)
		}
		if !slices.ContainsFunc(scenes, func(s *scene) bool { return s.over() }) {
			return scenes
		}
		t.Log("a source did not wait long enough")
	}
	t.Fatal("control: the calls could not be held at the same time")
	return nil
}

// settle waits until what is left upstream is what has to be left, and known.
// Meanwhile the runs say that they are alive.
func (w *world) settle(t *testing.T, scenes []*scene) {
	t.Helper()
	var wrong []string
	ok := func() bool {
		wrong = nil
		for _, s := range scenes {
			_, _ = s.run.Watch(t.Context(), 0, 0)
			run, err := w.Engine(t, "operator").Run(t.Context(), s.run.Run)
			if err != nil {
				wrong = append(wrong, s.name+": "+err.Error()) // the engine is being started
				continue
			}
			known := 0
			for _, g := range run.Grants {
				if g.State != "dead" {
					known++
				}
			}
			if left := len(s.up.leases(t)); left != s.live || known != s.live {
				wrong = append(wrong, fmt.Sprintf("%s: %d upstream, %d known to the engine, want %d", s.name, left, known, s.live))
			}
		}
		return len(wrong) == 0
	}
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a minute after the kill:\n%s", strings.Join(wrong, "\n"))
		}
	}
}

// readable reads every row that a half-done write could have spoiled.
func (w *world) readable(t *testing.T, scenes []*scene) {
	t.Helper()
	e := w.Engine(t, "operator")
	var runs []vaultclient.RunSummary
	for after := sealed.RunID(""); ; {
		page, err := e.Runs(t.Context(), vaultclient.RunFilter{After: after, Limit: 100})
		harness.Must(t, err)
		runs = append(runs, page...)
		if len(page) < 100 {
			break
		}
		after = page[len(page)-1].ID
	}
	for _, s := range scenes {
		if !slices.ContainsFunc(runs, func(r vaultclient.RunSummary) bool { return r.ID == s.run.Run }) {
			t.Errorf("%s: run %s is not in the list", s.name, s.run.Run)
		}
	}
	for _, r := range runs {
		if _, err := e.Run(t.Context(), r.ID); err != nil {
			t.Errorf("run %s: %v", r.ID, err)
		}
	}
	_, err := e.Approvals(t.Context(), "")
	harness.Must(t, err)
	_, err = e.Revocations(t.Context())
	harness.Must(t, err)
}

// G13, C21, C22: a process of the run itself is killed, while its credential is
// made or while the agent uses it: sealedctl, its supervisor, init. The
// credential does not outlive the run, and the log says how the run ended.
func TestG13RunKilled(t *testing.T) {
	w := get(t)
	victims := map[string]func(p *harness.Process, st supervise.Status) int{
		"sealedctl":      func(p *harness.Process, _ supervise.Status) int { return p.PID() },
		"the supervisor": func(_ *harness.Process, st supervise.Status) int { return st.PID },
		"sealed-init":    func(_ *harness.Process, st supervise.Status) int { return st.InitPID },
	}
	type ending struct {
		name string
		id   sealed.RunID
		up   *upstream
	}
	var endings []ending
	for name, pid := range victims {
		for _, m := range []moment{{name: "while its credential is made", call: "issue/ci", done: true}, {name: "while the agent has it"}} {
			s := w.stage(t, m)
			p := w.Start(t, harness.Caller{}, "run", "--agent", string(agentName), "--profile", s.profile, "--no-workspace", "--", "/bin/sh", "-c", "echo the agent is at work; sleep 600")
			if m.call == "" {
				p.Await(t, "the agent is at")
			} else {
				select {
				case <-s.held:
				case <-time.After(20 * time.Second):
					t.Fatalf("%s: no credential was made\n%s", m.name, p.Stderr())
				}
			}
			if n := len(s.up.leases(t)); n != 1 {
				t.Errorf("control: %s, %s: %d credentials upstream at the kill", name, m.name, n)
			}
			victim := pid(p, p.Status(t))
			kill(t, victim)
			harness.Eventually(t, 10*time.Second, name+" has gone", func() bool { return gone(victim) })
			endings = append(endings, ending{name + ", " + m.name, p.RunID(t), s.up})
		}
	}
	for _, e := range endings {
		harness.Eventually(t, 90*time.Second, e.name+": nothing is left upstream", func() bool { return len(e.up.leases(t)) == 0 })
		w.ended(t, e.id)
		if closed := harness.Types(w.Entries(t, e.id)); !slices.Contains(closed, "run.closed") && !slices.Contains(closed, "run.finished") {
			t.Errorf("%s: the log does not know its end: %v", e.name, closed)
		}
	}
	w.readable(t, nil)
	w.verify(t, nil)
}

// gone reports whether a process has ended, even if nobody has waited for it.
func gone(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return len(f) > 0 && f[0] == "Z"
}
