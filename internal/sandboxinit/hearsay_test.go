package sandboxinit

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

const otherRun = sealed.RunID("01JBBBBBBBBBBBBBBBBBBBBBBB")

// A host stands in for the supervisors and for the run that watches for this
// one: it asks the double every second and passes on what is then said.
type host struct {
	d      *engineDouble
	from   atomic.Int64  // when it began
	until  time.Duration // the engine answers no more; 0: never
	key    ed25519.PrivateKey
	answer func(at time.Duration, a *sealed.HostWatchAnswer)
	pass   func(at time.Duration, w *watched, s sealed.Signed) // nil: at once
}

func (h *host) run(ctx context.Context, w *watched) {
	h.from.Store(time.Now().UnixNano())
	for pause(ctx, time.Second) {
		at := h.since()
		if h.until > 0 && at > h.until {
			continue
		}
		a := sealed.HostWatchAnswer{
			Time: h.d.now(), Epoch: 1, State: "s", Continue: []sealed.HostRun{{Run: otherRun, Mark: "x"}, {Run: testRun, Mark: "m"}}, Orders: []sealed.HostOrder{},
		}
		if h.answer != nil {
			h.answer(at, &a)
		}
		key := h.key
		if key == nil {
			key = h.d.answerKey
		}
		s, err := sealed.Sign(sealed.DomainAnswer, a, key)
		if err != nil {
			h.d.t.Error(err)
		}
		if h.pass == nil {
			w.hear(s)
		} else {
			h.pass(at, w, s)
		}
	}
}

// since is the time since it began, 0 before.
func (h *host) since() time.Duration {
	if from := h.from.Load(); from != 0 {
		return time.Since(time.Unix(0, from))
	}
	return 0
}

// only lets the engine's own answers to watch through until a moment, and waits
// for news as the engine does.
func only(until time.Duration) func(http.ResponseWriter, *http.Request, string, int) bool {
	return silent(until, 24*time.Hour)
}

// waiting answers own calls as the engine does, and notes when they came.
type waiting struct {
	mu    sync.Mutex
	first time.Time
	at    []time.Duration
}

func (o *waiting) before(d *engineDouble) func(http.ResponseWriter, *http.Request, string, int) bool {
	return func(_ http.ResponseWriter, _ *http.Request, verb string, _ int) bool {
		if verb != "watch" {
			return false
		}
		calls := d.of("watch")
		o.mu.Lock()
		if o.first.IsZero() {
			o.first = time.Now()
		}
		o.at = append(o.at, time.Since(o.first))
		o.mu.Unlock()
		if !strings.Contains(calls[len(calls)-1].payload, `"wait":"0s"`) {
			time.Sleep(watchWait)
		}
		return false
	}
}

// While the host is watched for, a run calls only as often as it must, and no run
// is watched for twice.
func TestHearsay(t *testing.T) {
	d := newDouble(t)
	var own waiting
	d.before = own.before(d)
	if got := hearing(t, d, 10*time.Minute, controls{}, (&host{d: d}).run); got != nil {
		t.Errorf("deeds: %v", got)
	}
	if n, want := len(own.at), int(10*time.Minute/testEvery); n < want || n > want+3 {
		t.Errorf("%d own calls in ten minutes, want about %d", n, want)
	}
	t.Run("the host's watch ends and comes again", func(t *testing.T) {
		d := newDouble(t)
		var own waiting
		d.before = own.before(d)
		h := &host{d: d, pass: func(at time.Duration, w *watched, s sealed.Signed) {
			if at < 20*time.Second || at > 40*time.Second {
				w.hear(s)
			}
		}}
		if got := hearing(t, d, time.Minute, controls{}, h.run); got != nil {
			t.Errorf("deeds: %v", got)
		}
		count := func(from, to time.Duration) (n int) {
			for _, at := range own.at {
				if at >= from && at < to {
					n++
				}
			}
			return n
		}
		if a, b, c := count(4*time.Second, 20*time.Second), count(21*time.Second, 40*time.Second), count(42*time.Second, time.Minute); a > 5 || b < 17 || c > 5 {
			t.Errorf("own calls: %d while watched for, %d alone, %d again", a, b, c)
		}
	})
}

// News second hand makes the run call at once, and that call decides.
func TestHearsayNews(t *testing.T) {
	const at = 10 * time.Second // the host's tenth answer
	for name, change := range map[string]func(*sealed.HostWatchAnswer){
		"epoch": func(a *sealed.HostWatchAnswer) { a.Epoch = 2 },
		"mark":  func(a *sealed.HostWatchAnswer) { a.Continue[1].Mark = "n" },
		"order": func(a *sealed.HostWatchAnswer) {
			a.Continue, a.Orders = a.Continue[:1], []sealed.HostOrder{{Run: testRun, Order: sealed.OrderAbort, Reason: "second hand"}}
		},
	} {
		for _, order := range []string{sealed.OrderAbort, sealed.OrderContinue} {
			t.Run(name+", then "+order, func(t *testing.T) {
				d := newDouble(t)
				var own waiting
				d.before = own.before(d)
				h := &host{d: d, answer: func(now time.Duration, a *sealed.HostWatchAnswer) {
					if now == at || order == sealed.OrderAbort && now > at {
						change(a)
					}
				}}
				d.watch = func(a *sealed.WatchAnswer) {
					if h.since() >= at {
						a.Order, a.Reason = order, "first hand"
					}
				}
				got := slices.DeleteFunc(hearing(t, d, 30*time.Second, controls{}, h.run), func(d deed) bool {
					return name == "order" && d.What != "abort: first hand" // held for the moment of the call
				})
				var want []deed
				if order == sealed.OrderAbort {
					want = []deed{{at, "abort: first hand"}}
				}
				if diff := cmp.Diff(want, slices.Concat(got)); diff != "" { // none is nil
					t.Error(diff)
				}
				if !slices.Contains(own.at, at) {
					t.Errorf("own calls at %v, want one at %v", own.at, at)
				}
			})
		}
	}
}

// A hostile supervisor keeps the run's own calls back from the tenth second on,
// and does this and that with what it has from the host's watch. The run freezes
// five seconds after the engine spoke to it for the last time, and stops after a
// minute. Each check is switched off once, and then the run goes on.
func TestHostileSupervisor(t *testing.T) {
	const last = 10 * time.Second
	pub, foreign, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	trustForeign := func(w *watched) { w.session.answerKey = pub }
	for name, tt := range map[string]struct {
		host    func(*host)
		freeze  time.Duration
		off     controls
		trust   func(*watched) // instead of a control
		without time.Duration  // when it freezes with the check off; 0: not at all
	}{
		"withholds": {host: func(h *host) { h.until = last }, freeze: 15 * time.Second, without: 15 * time.Second},
		"repeats": {host: func(h *host) {
			var old sealed.Signed
			h.pass = func(at time.Duration, w *watched, s sealed.Signed) {
				if at <= last {
					old = s
				}
				w.hear(old)
			}
		}, freeze: 15 * time.Second, off: controls{age: true}},
		"keeps for later": {host: func(h *host) {
			h.until = last
			h.pass = func(at time.Duration, w *watched, s sealed.Signed) {
				time.AfterFunc(max(0, at-7*time.Second), func() { w.hear(s) })
			}
		}, freeze: 15 * time.Second, off: controls{age: true}, without: 18 * time.Second},
		"invents": {host: func(h *host) {
			h.answer = func(at time.Duration, _ *sealed.HostWatchAnswer) {
				if at > last {
					h.key = foreign
				}
			}
		}, freeze: 15 * time.Second, trust: trustForeign},
		"answers of another mount": {host: func(h *host) { h.key = foreign }, freeze: 15 * time.Second, trust: trustForeign},
		"answers about another run": {host: func(h *host) {
			h.answer = func(at time.Duration, a *sealed.HostWatchAnswer) {
				if at > last {
					a.Continue = a.Continue[:1]
				}
			}
		}, freeze: 15 * time.Second, off: controls{named: true}},
		"lets news pass": {host: func(h *host) {
			h.answer = func(at time.Duration, a *sealed.HostWatchAnswer) {
				if at > last {
					a.Epoch = 2
				}
			}
		}, freeze: 15 * time.Second, off: controls{hint: true}},
	} {
		run := func(t *testing.T, off controls, trust func(*watched)) []deed {
			d := newDouble(t)
			d.before = only(last)
			h := &host{d: d}
			tt.host(h)
			if trust != nil {
				h.pass = func(at time.Duration, w *watched, s sealed.Signed) {
					if at > last {
						trust(w)
					}
					w.hear(s)
				}
			}
			return hearing(t, d, 5*time.Minute, off, h.run)
		}
		t.Run(name, func(t *testing.T) {
			got := run(t, controls{}, nil)
			if len(got) != 2 || got[0].What != "freeze" || !strings.HasPrefix(got[1].What, "abort: no contact") {
				t.Fatalf("deeds: %v", got)
			}
			if at := got[0].At; at < tt.freeze-time.Second || at > tt.freeze+1200*time.Millisecond { // an own call may have waited
				t.Errorf("frozen at %v, want %v", at, tt.freeze)
			}
			if at := got[1].At; at > 71*time.Second+200*time.Millisecond {
				t.Errorf("stopped at %v", at)
			}
		})
		if tt.off == (controls{}) && tt.trust == nil {
			continue // keeping back can't be told from being cut off, and is treated so
		}
		t.Run(name+": control off", func(t *testing.T) {
			got := run(t, tt.off, tt.trust)
			switch {
			case tt.without == 0 && len(got) == 0:
			case tt.without > 0 && len(got) > 0 && got[0].At > tt.without-200*time.Millisecond:
			case tt.without == 0 && got[0].At > tt.freeze+3*time.Second:
				// It goes on until the own calls have been away for too long.
			default:
				t.Errorf("deeds: %v", got)
			}
		})
	}
}

// An order to stop that is second hand freezes, whatever becomes of the own call.
func TestHearsayHolds(t *testing.T) {
	const last = 10 * time.Second
	d := newDouble(t)
	d.before = only(last)
	h := &host{d: d, answer: func(at time.Duration, a *sealed.HostWatchAnswer) {
		if at > last {
			a.Continue, a.Orders = a.Continue[:1], []sealed.HostOrder{{Run: testRun, Order: sealed.OrderAbort, Reason: "second hand"}}
		}
	}}
	got := hearing(t, d, 5*time.Minute, controls{}, h.run)
	if len(got) != 2 || got[0].What != "freeze" || got[0].At > last+time.Second+200*time.Millisecond || !strings.HasPrefix(got[1].What, "abort: no contact") {
		t.Errorf("deeds: %v", got)
	}
}

// Whenever the engine's clock is set, or another node with another one takes over,
// a run that the engine speaks to goes on, and an answer from the future is none.
func TestClockIsSet(t *testing.T) {
	for name, step := range map[string]time.Duration{"forward": time.Hour, "a little forward": 3 * time.Second, "back": -time.Hour, "a little back": -3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			d := newDouble(t)
			h := &host{d: d}
			d.clock = func() time.Time {
				if h.since() > 30*time.Second {
					return time.Now().Add(step)
				}
				return time.Now()
			}
			var own waiting
			d.before = own.before(d)
			if got := hearing(t, d, 2*time.Minute, controls{}, h.run); got != nil {
				t.Errorf("deeds: %v", got)
			}
			if n := len(own.at); n > 45 {
				t.Errorf("%d own calls", n)
			}
		})
	}
	t.Run("from the future", func(t *testing.T) {
		d := newDouble(t)
		d.before = only(10 * time.Second)
		h := &host{d: d, answer: func(_ time.Duration, a *sealed.HostWatchAnswer) { a.Time = a.Time.Add(time.Hour) }}
		if got := hearing(t, d, 5*time.Minute, controls{}, h.run); len(got) != 2 || got[0].At > 15*time.Second+200*time.Millisecond {
			t.Errorf("deeds: %v", got)
		}
	})
}

// The arithmetic, with calls that take their time: silence is never thought to be
// shorter than it is, and longer by one way at most.
func TestSpoke(t *testing.T) {
	for _, way := range []time.Duration{0, 20 * time.Millisecond, time.Second} {
		for _, offset := range []time.Duration{0, time.Hour, -24 * time.Hour} {
			sent := time.Now()
			k := told{sent: sent, came: sent.Add(way + offset)}
			for _, later := range []time.Duration{0, time.Second, 9 * time.Second} {
				truly := sent.Add(way + later) // the engine spoke then
				got := k.spoke(truly.Add(offset))
				if early := truly.Sub(got); early < 0 || early > way {
					t.Errorf("way %v, offset %v: %v early", way, offset, early)
				}
			}
		}
	}
}

// The run that watches for the others: one call at a time, the first one about a
// list without a wait, and everything that the engine says is passed on.
func TestHostWatch(t *testing.T) {
	d := newDouble(t)
	s := d.session()
	requests := []sealed.HostWatchRequest{}
	d.before = func(w http.ResponseWriter, _ *http.Request, verb string, n int) bool {
		return verb == "sealed" && n == 3 && refuse(w, 503) // once
	}
	d.hostWatch = func(r sealed.HostWatchRequest) {
		requests = append(requests, r)
		time.Sleep(r.Wait.Std())
	}
	var passed []sealed.Signed
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		h := &hostWatch{session: s, answer: func(a sealed.Signed) { passed = append(passed, a) }}
		go h.run(ctx)
		h.watchFor([]sealed.RunID{testRun, otherRun})
		time.Sleep(2500 * time.Millisecond)
		h.watchFor([]sealed.RunID{testRun})
		time.Sleep(time.Second)
		h.watchFor([]sealed.RunID{"../x"})
		time.Sleep(1500 * time.Millisecond)
	})
	var waits []time.Duration
	for _, r := range requests {
		waits = append(waits, r.Wait.Std())
	}
	if diff := cmp.Diff([]time.Duration{0, time.Second, time.Second, time.Second, 0, time.Second}, waits); diff != "" {
		t.Error(diff)
	}
	if len(passed) != len(requests) || requests[1].State == "" || requests[1].Epoch != 1 || requests[4].State != "" || len(requests[4].Runs) != 1 {
		t.Errorf("%d passed on; asked %+v", len(passed), requests)
	}
	for _, c := range d.of("watch") {
		if c.token != tokenCanary {
			t.Errorf("called with token %q", c.token)
		}
	}
	t.Run("an answer that is not the engine's", func(t *testing.T) {
		d := newDouble(t)
		s := d.session()
		s.answerKey = unbase64(base64.StdEncoding.EncodeToString(make([]byte, ed25519.PublicKeySize)))
		if _, _, err := s.watchHost(t.Context(), sealed.HostWatchRequest{Runs: []sealed.RunID{testRun}}); err == nil {
			t.Error("taken")
		}
	})
}
