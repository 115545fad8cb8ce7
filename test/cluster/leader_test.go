package cluster

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/internal/workspace"
	"sealed.dev/sealed/test/harness"
)

const agentName = sealed.Name("custom")

// TestCluster has its tests in one order: they share the cluster, and each leaves
// it whole. The restore comes last, because it takes back what the others did.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	w := open(t)
	w.Agent(t, string(agentName))
	t.Run("leader killed", func(t *testing.T) { w.survives(t, w.killLeader) })
	t.Run("leader cut off", func(t *testing.T) { w.survives(t, w.cutLeader) })
	t.Run("hard revocation after a change", w.revokes)
	t.Run("nothing is minted twice", w.mints)
	t.Run("snapshot restored", w.restores)
}

// loop is an agent that uses its key until it is told to end.
const loop = `while [ ! -e over ]; do
  curl -sS -m 5 -o /dev/null -w '%{http_code}\n' -H "Authorization: Bearer $KEY" https://api.test/v1/x 2>/dev/null
  sleep 0.1
done`

func (w *world) profile(t *testing.T, change func(*sealed.KeySpec)) string {
	t.Helper()
	name, path := w.Name("cluster/p"), "cluster/"+w.Name("secret")
	w.Secret(t, path, "a value that only the proxy knows, 0123456789")
	spec := harness.Key(path, []string{string(agentName)}, sealed.Binding{Host: "api.test", Methods: []string{"GET"}, Paths: []string{"/v1/**"}})
	if change != nil {
		change(&spec)
	}
	w.Profile(t, harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{"KEY": spec}))
	return name
}

// start starts a run that uses its key, with a lease of ten seconds.
func (w *world) start(t *testing.T) (p *harness.Process, profile string) {
	t.Helper()
	profile = w.profile(t, func(k *sealed.KeySpec) { k.TTL = sealed.Duration(10 * time.Second) })
	p = w.Start(t, harness.Caller{Timeout: 3 * time.Minute}, "run", "--agent", string(agentName), "--profile", profile, "--no-workspace", "--", "/bin/sh", "-c", loop)
	p.Await(t, "200")
	return p, profile
}

// tell makes a file that the agent waits for.
func tell(t *testing.T, p *harness.Process, what string) {
	t.Helper()
	harness.Must(t, os.WriteFile(filepath.Join(p.RunDir(t), "workspace", what), nil, 0o644))
}

// survives takes the leader away under a run that uses a key, while runs are
// enqueued from several sides. The run goes on with its key, renews its lease and
// ends with a record; the log has one history and everything that was acknowledged.
func (w *world) survives(t *testing.T, take func(*testing.T) (int, func())) {
	p, profile := w.start(t)
	load := w.enqueueAll(t, profile)
	harness.Eventually(t, 20*time.Second, "runs are enqueued", func() bool { return load.count() > 8 })
	before := load.count()
	old, back := take(t)
	w.newLeader(t, old)
	changed := time.Now()
	used := strings.Count(p.Stdout(), "200")
	harness.Eventually(t, 20*time.Second, "the key is used with the new leader", func() bool { return strings.Count(p.Stdout(), "200") > used+5 })
	harness.Eventually(t, 30*time.Second, "the lease is renewed by the new leader", func() bool {
		return w.renewed(t, p.RunID(t)).After(changed)
	})
	harness.Eventually(t, 20*time.Second, "runs are enqueued again", func() bool { return load.count() > before+8 })
	back()
	load.end()
	tell(t, p, "over")
	r := p.Wait(t).Want(t, 0)
	if run, err := w.Engine(t, "operator").Run(t.Context(), r.RunID(t)); err != nil || run.State != sealed.RunFinished {
		t.Errorf("the run is %s: %v", run.State, err)
	}
	w.wantAll(t, load)
}

// A load is runs that are enqueued all the time, and the heads of the log that are
// read meanwhile.
type load struct {
	mu    sync.Mutex
	acked map[sealed.RunID]bool
	heads [][]byte
	end   func() // once nothing more is to be asked for
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

func (w *world) enqueueAll(t *testing.T, profile string) *load {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &load{acked: map[sealed.RunID]bool{}}
	var all sync.WaitGroup
	operator, auditor := w.Engine(t, "operator"), w.Engine(t, "auditor")
	for range 3 {
		all.Go(func() {
			for ctx.Err() == nil {
				q, err := operator.Enqueue(ctx, request(t, profile))
				if err == nil {
					l.mu.Lock()
					l.acked[q.Run] = true
					l.mu.Unlock()
				}
				pause(ctx, 50*time.Millisecond)
			}
		})
	}
	all.Go(func() {
		for ctx.Err() == nil {
			if head, err := auditor.LogReader().Checkpoint(ctx); err == nil {
				l.mu.Lock()
				l.heads = append(l.heads, head)
				l.mu.Unlock()
			}
			pause(ctx, 250*time.Millisecond)
		}
	})
	l.end = func() { stop(); all.Wait() }
	t.Cleanup(l.end)
	return l
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// wantAll looks for every acknowledged run in the verified log, and has the engine
// and the log's key prove of every head that was read that it is a part of it.
func (w *world) wantAll(t *testing.T, l *load) {
	t.Helper()
	for _, head := range l.heads {
		if _, _, err := w.Engine(t, "operator").Seen(t.Context(), head); err != nil {
			t.Fatalf("a head that was read is not one of the log's: %v", err)
		}
	}
	if _, err := audit.VerifyDir(w.Pull(t), audit.Options{VerifierKey: w.LogKey(t), Pinned: l.heads[0]}); err != nil {
		t.Errorf("verifying: %v", err)
	}
	logged := map[sealed.RunID]bool{}
	for f := (vaultclient.LogFilter{Type: "run.enqueued", Limit: 1000}); ; {
		page, next, err := w.Engine(t, "auditor").LogEntries(t.Context(), f)
		harness.Must(t, err)
		for _, e := range page {
			if logged[e.Run] {
				t.Errorf("run %s is enqueued twice", e.Run)
			}
			logged[e.Run] = true
		}
		if next <= f.From {
			break
		}
		f.From = next
	}
	for id := range l.acked {
		if !logged[id] {
			t.Errorf("run %s was acknowledged and is not in the log", id)
		}
	}
	t.Logf("%d runs acknowledged, %d heads read", len(l.acked), len(l.heads))
}

// renewed is when the one lease of a run was renewed last.
func (w *world) renewed(t *testing.T, run sealed.RunID) time.Time {
	t.Helper()
	prefix := w.Status.Mount + "/runs/" + string(run) + "/creds/KEY/"
	ids, err := w.rootClient(t).List(t.Context(), "sys/leases/lookup/"+prefix)
	if err != nil || len(ids) != 1 {
		t.Fatalf("leases of the run: %v, %v", ids, err)
	}
	out, err := w.rootClient(t).Sys(t.Context(), http.MethodPut, "sys/leases/lookup", map[string]any{"lease_id": prefix + ids[0]})
	harness.Must(t, err)
	data, _ := out["data"].(map[string]any)
	text, _ := data["last_renewal"].(string)
	at, _ := time.Parse(time.RFC3339Nano, text) // null before the first
	return at
}

// request is what a run is enqueued by that nothing starts.
func request(t testing.TB, profile string) sealed.EnqueueRequest {
	t.Helper()
	id, err := sealed.NewULID(time.Now(), nil)
	harness.Must(t, err)
	return sealed.EnqueueRequest{
		IdempotencyKey: id, Agent: agentName, Mode: sealed.ModeJIT, Profile: sealed.ProfileName(profile),
		CommandDigest: sealed.CommandDigest([]string{"/bin/true"}), WorkspaceDigest: workspace.EmptyDigest(),
		Sandbox: sealed.SandboxSpec{Backend: sealed.BackendLocal, Isolation: sealed.IsolationOwnUID, Network: sealed.NetworkNone, WallTime: sealed.Duration(time.Hour)},
	}
}

// revokes sends a hard revocation as soon as there is a new leader: the run that
// holds the key ends at once, and the key is not used again.
func (w *world) revokes(t *testing.T) {
	p, profile := w.start(t)
	old, back := w.killLeader(t)
	w.newLeader(t, old)
	began := time.Now()
	var done vaultclient.Revoked
	for {
		var err error
		done, err = w.Engine(t, "operator").Revoke(t.Context(), sealed.Revocation{Kind: sealed.RevokeKey, Target: profile + "#KEY", Hard: true, Reason: "leaked"})
		if err == nil {
			break
		}
		if !errors.Is(err, sealed.ErrUnavailable) || time.Since(began) > 10*time.Second {
			t.Fatal(err)
		}
	}
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Errorf("the run goes on")
	}
	t.Logf("ended %v after the revocation was sent", time.Since(began).Round(time.Millisecond))
	if !done.Logged || !done.Enforced || len(done.Runs) != 1 || done.Runs[0] != p.RunID(t) {
		t.Errorf("revoked: %+v", done)
	}
	uses := len(w.Upstream.Requests("api.test", "/v1/x"))
	if r := p.Wait(t); r.Exit == 0 {
		t.Errorf("exit %d", r.Exit)
	}
	back()
	if n := len(w.Upstream.Requests("api.test", "/v1/x")); n != uses {
		t.Errorf("the key was used %d times after the run's end", n-uses)
	}
	w.Verify(t)
}
