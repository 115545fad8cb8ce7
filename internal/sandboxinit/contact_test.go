package sandboxinit

import (
	"context"
	"crypto/ed25519"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

// A deed is something that contact did, and when.
type deed struct {
	At   time.Duration
	What string
}

// watched is a contact whose deeds are written down.
type watched struct {
	*contact
	mu    sync.Mutex
	start time.Time
	deeds []deed
}

func (w *watched) did(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deeds = append(w.deeds, deed{time.Since(w.start), what})
}

func (w *watched) all() []deed {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.deeds)
}

// inContact runs a contact against a double for d, under a fake clock.
func inContact(t *testing.T, d *engineDouble, limit time.Duration) []deed {
	t.Helper()
	return hearing(t, d, limit, controls{}, nil)
}

// hearing is inContact for a run whose supervisor tells it things.
func hearing(t *testing.T, d *engineDouble, limit time.Duration, off controls, supervisor func(context.Context, *watched)) []deed {
	t.Helper()
	var out []deed
	s := d.session()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{start: time.Now()}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		w.contact = &contact{
			session: s, off: off,
			freeze: func(on bool) {
				w.did(map[bool]string{true: "freeze", false: "thaw"}[on])
			},
			dead: func(ids []sealed.GrantID) { w.did("dead " + string(ids[0])) },
			abort: func(reason string) {
				w.did("abort: " + reason)
				cancel()
			},
		}
		if supervisor != nil {
			go supervisor(ctx, w)
		}
		w.run(ctx)
		<-ctx.Done()
		synctest.Wait()
		out = w.all()
	})
	return out
}

// silent makes the engine not answer watch between two moments after the
// first call.
func silent(from, to time.Duration) func(http.ResponseWriter, *http.Request, string, int) bool {
	var first time.Time
	return func(_ http.ResponseWriter, r *http.Request, verb string, n int) bool {
		if verb != "watch" {
			return false
		}
		if n == 1 {
			first = time.Now()
		}
		if at := time.Since(first); at >= from && at < to {
			<-r.Context().Done()
			return true
		}
		time.Sleep(watchWait) // the engine waits for news
		return false
	}
}

func TestContact(t *testing.T) {
	d := newDouble(t)
	d.before = silent(0, 0)
	if got := inContact(t, d, 10*time.Minute); got != nil {
		t.Errorf("in contact: %v", got)
	}
	if n := len(d.of("watch")); n < 580 || n > 600 {
		t.Errorf("%d calls of watch in ten minutes", n)
	}
	t.Run("an engine that does not wait", func(t *testing.T) {
		d := newDouble(t)
		if got := inContact(t, d, 10*time.Second); got != nil || len(d.of("watch")) > 510 {
			t.Errorf("deeds %v, %d calls", got, len(d.of("watch")))
		}
	})
}

// Out of contact: the proxy freezes after FreezeAfter, and thaws on the next
// answer; the run is stopped after StopAfter.
func TestFreezeAndThaw(t *testing.T) {
	d := newDouble(t)
	d.before = silent(10*time.Second, 30*time.Second)
	got := inContact(t, d, 2*time.Minute)
	if len(got) != 2 || got[0].What != "freeze" || got[1].What != "thaw" {
		t.Fatalf("deeds: %v", got)
	}
	// The last answer came at 10 s.
	if at := got[0].At; at < 15*time.Second || at > 15*time.Second+200*time.Millisecond {
		t.Errorf("frozen at %v", at)
	}
	if at := got[1].At; at < 30*time.Second || at > 36*time.Second {
		t.Errorf("thawed at %v", at)
	}
}

func TestStopOutOfContact(t *testing.T) {
	d := newDouble(t)
	d.before = silent(0, time.Hour)
	got := inContact(t, d, 10*time.Minute)
	if len(got) != 2 || got[0].What != "freeze" || !strings.HasPrefix(got[1].What, "abort: no contact") {
		t.Fatalf("deeds: %v", got)
	}
	if at := got[1].At; at < time.Minute || at > time.Minute+200*time.Millisecond {
		t.Errorf("stopped at %v", at)
	}
	t.Run("error answers are no contact", func(t *testing.T) {
		d := newDouble(t)
		d.before = onVerb("watch", 503)
		if got := inContact(t, d, 10*time.Minute); len(got) != 2 || !strings.HasPrefix(got[1].What, "abort: no contact") {
			t.Errorf("deeds: %v", got)
		}
	})
	t.Run("no limits in the answer", func(t *testing.T) { // fail closed
		d := newDouble(t)
		d.claimed = func(a *sealed.ClaimAnswer) { a.FreezeAfter, a.StopAfter = 0, 0 }
		d.before = silent(0, time.Hour)
		if got := inContact(t, d, time.Minute); len(got) != 2 || got[1].At > time.Second {
			t.Errorf("deeds: %v", got)
		}
	})
}

func TestOrders(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*engineDouble)
		want   []deed
	}{
		"abort": {func(d *engineDouble) {
			d.watch = func(a *sealed.WatchAnswer) { a.Order, a.Reason = sealed.OrderAbort, "revoked" }
		}, []deed{{0, "abort: revoked"}}},
		"unknown order": {func(d *engineDouble) {
			d.watch = func(a *sealed.WatchAnswer) { a.Order, a.Reason = "dance", "?" }
		}, []deed{{0, "abort: ?"}}},
		"dead grants, then abort": {func(d *engineDouble) {
			d.watch = func(a *sealed.WatchAnswer) {
				a.Order, a.Reason, a.Dead = sealed.OrderAbort, "revoked", []sealed.GrantID{"G"}
			}
		}, []deed{{0, "dead G"}, {0, "abort: revoked"}}},
		"signed by another": {func(d *engineDouble) { // whatever it orders: no answer of the engine
			d.watch = func(*sealed.WatchAnswer) { d.answerKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) }
		}, []deed{{0, "abort: the engine no longer accepts this run"}}},
		"denied":    {func(d *engineDouble) { d.before = onVerb("watch", 403) }, []deed{{0, "abort: the engine no longer accepts this run"}}},
		"unknown":   {func(d *engineDouble) { d.before = onVerb("watch", 404) }, []deed{{0, "abort: the engine no longer accepts this run"}}},
		"malformed": {func(d *engineDouble) { d.before = body("watch", `{"data":{"answer":"{"}}`) }, []deed{{0, "abort: the engine no longer accepts this run"}}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDouble(t)
			tt.change(d)
			if diff := cmp.Diff(tt.want, inContact(t, d, time.Minute)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A lease that can't be renewed ends the use of its grant when it ends, not
// later, whatever the engine does instead of answering.
func TestKeepLease(t *testing.T) {
	for name, tt := range map[string]struct {
		ttl    time.Duration
		before func(http.ResponseWriter, *http.Request, string, int) bool
		dead   time.Duration // 0: never
	}{
		"renewed":             {time.Minute, nil, 0},
		"denied":              {time.Minute, onVerb("renew", 403), time.Minute},
		"gone":                {time.Minute, onVerb("renew", 400), time.Minute},
		"down":                {time.Minute, onVerb("renew", 503), time.Minute},
		"hangs":               {time.Minute, hang, time.Minute},
		"one second":          {time.Second, onVerb("renew", 403), time.Second},
		"three seconds, down": {3 * time.Second, onVerb("renew", 503), 3 * time.Second},
		"none":                {0, onVerb("renew", 403), 0},
		"no time given":       {time.Minute, body("renew", `{"lease_duration":0}`), time.Minute},
		"down for a while": {time.Minute, func(w http.ResponseWriter, _ *http.Request, _ string, n int) bool {
			return n < 4 && refuse(w, 503)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDouble(t)
			s := d.session()
			d.before = tt.before
			synctest.Test(t, func(t *testing.T) {
				w := &watched{start: time.Now()}
				w.contact = &contact{session: s, dead: func(ids []sealed.GrantID) { w.did("dead " + string(ids[0])) }}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				w.keepLease(ctx, &grant{id: "G", lease: "L", ttl: tt.ttl})
				var want []deed
				if tt.dead > 0 || tt.ttl == 0 {
					want = []deed{{tt.dead, "dead G"}}
				}
				got := w.all()
				if ctx.Err() != nil { // the run has ended, and its grants with it
					got = slices.DeleteFunc(got, func(d deed) bool { return d.At >= 10*time.Minute })
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func hang(_ http.ResponseWriter, r *http.Request, _ string, _ int) bool {
	<-r.Context().Done()
	return true
}

func TestKeepToken(t *testing.T) {
	d := newDouble(t)
	s := d.session()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour+time.Second)
		defer cancel()
		(&contact{session: s}).keepToken(ctx)
	})
	if n := len(d.of("renew-self")); n != 18 { // every 200 s
		t.Errorf("the token was renewed %d times in an hour", n)
	}
	s.tokenTTL = 0
	(&contact{session: s}).keepToken(t.Context()) // returns
}
