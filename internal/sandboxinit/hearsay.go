package sandboxinit

import (
	"context"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// Second hand: what this run learns from the watch of its host, which one of the
// runs there makes for all. The answer comes by way of other supervisors, and any
// of them may keep it back, keep it for later, or invent one. So of an answer that
// is signed with the mount's key and names this run, two things are believed.
//
// It is a sign that the engine is there: for the moment at which the engine
// spoke, not for that of its arrival. With the run's own last call sent at s, by
// the clock of this process, and arrived when the engine's clock said e, and an
// answer in which the engine's clock says t,
//
//	the engine spoke at s + (t − e), or up to one way of that call later.
//
// The earlier bound counts: silence is thought to be longer than it is by at most
// the way of one call, never shorter. Kept for D, an answer is D old; given again,
// it says what it has said. Whoever repeats old answers for ever only lets the
// limits of the claim run out. Where the two clocks have come apart (the engine's
// was set, another node has taken over, this machine slept) an answer may seem to
// come from the future; then it does not count, and the run calls and compares them
// anew. It does that anyway within told.every; an answer counts for no longer
// than twice that after an own call.
//
// And it is a hint: the epoch, the mark of the run, or an order may be other than
// what the run knows. Then it is no contact, and the run calls at once. Only the
// answer to that call ends the run or drops a grant; whoever lets hints pass and
// keeps the calls back lets the limits run out. Meanwhile an order to stop
// freezes, which an answer to the run itself takes back.

const (
	// hostFresh is how old the newest word of the host's watch may be before the
	// run watches by itself again: the wait of a call and a half.
	hostFresh = 1500 * time.Millisecond
	// clockSlack is how far apart two clocks may run between two own calls: more
	// than 1,000 ppm of maxEvery of the engine, less than anybody waits.
	clockSlack = 50 * time.Millisecond
)

// told is what the run has from its own last call.
type told struct {
	sent  time.Time // this process's clock, before the call left
	came  time.Time // the engine's, as the call arrived
	epoch uint64
	mark  string
	every time.Duration // the next own call is due
}

// spoke is when, at the earliest and by this process's clock, the engine's
// clock showed t.
func (k told) spoke(t time.Time) time.Time { return k.sent.Add(t.Sub(k.came)) }

// hearsay is what the run has second hand. The zero value is nothing.
type hearsay struct {
	newest time.Time // the engine's clock in the newest answer to anybody
	heard  time.Time // when the engine gave the newest one of the host
	news   time.Time // when a hint arrived that no own call has followed; zero: none
	held   bool      // it was an order to stop
	wake   chan struct{}
}

// controls switches checks off, for the tests that show what each is for.
// Nothing but a test sets it.
type controls struct {
	named bool // that the answer is about this run
	age   bool // when the engine spoke, and that it was later than before
	hint  bool // that an answer with news is no contact
}

// learn notes the answer to an own call that left at sent.
func (c *contact) learn(sent time.Time, a sealed.WatchAnswer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = told{sent: sent, came: a.Came, epoch: a.Epoch, mark: a.Mark, every: a.Every.Std()}
	c.spoke(c.known.spoke(a.Time), time.Now())
	c.hearsay.newest = a.Time // also where the engine's clock was set back
	if !c.hearsay.news.After(sent) {
		c.hearsay.news, c.hearsay.held = time.Time{}, false
	}
}

// next says what to do: rest, or call and let the engine wait for so long.
func (c *contact) next(now time.Time) (rest, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, every := &c.hearsay, c.known.every
	if !h.news.IsZero() {
		return 0, 0
	}
	fresh, due := h.heard.Add(hostFresh).Sub(now), c.known.sent.Add(every).Sub(now)
	switch {
	case every <= 0:
		return 0, watchWait
	case fresh <= 0:
		return 0, min(watchWait, every)
	}
	return max(0, min(fresh, due)), 0
}

// rest waits until there may be something to do.
func (c *contact) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-c.woken():
	}
}

func (c *contact) woken() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wakeLocked()
}

func (c *contact) wakeLocked() chan struct{} {
	if c.hearsay.wake == nil {
		c.hearsay.wake = make(chan struct{}, 1)
	}
	return c.hearsay.wake
}

// hear takes an answer to the host's watch, from wherever it comes. What is not
// the engine's, not about this run or not newer than the last is dropped.
func (c *contact) hear(s sealed.Signed) {
	var a sealed.HostWatchAnswer
	if s.Open(sealed.DomainAnswer, c.session.answerKey, &a) != nil {
		return
	}
	mark, goesOn, named := a.Names(c.session.answer.Run)
	c.mu.Lock()
	defer c.mu.Unlock()
	now, k, h := time.Now(), c.known, &c.hearsay
	if c.off.named && !named {
		mark, goesOn, named = k.mark, true, true
	}
	if !named || k.mark == "" || !a.Time.After(h.newest) && !c.off.age {
		return
	}
	h.newest = a.Time
	at := k.spoke(a.Time)
	if c.off.age {
		at = now
	}
	same := goesOn && a.Epoch == k.epoch && mark == k.mark
	switch {
	case at.After(now.Add(clockSlack)):
		c.hint(now, false)
	case same && now.Sub(k.sent) < 2*k.every, c.off.hint:
		h.heard = at
		c.spoke(at, now)
	default:
		h.heard = at
		c.hint(now, !goesOn)
	}
}

// hint has the run make its own call at once. The caller holds mu.
func (c *contact) hint(now time.Time, held bool) {
	c.hearsay.news = now
	c.hearsay.held = c.hearsay.held || held
	select {
	case c.wakeLocked() <- struct{}{}:
	default:
	}
}
