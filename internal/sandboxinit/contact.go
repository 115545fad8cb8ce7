package sandboxinit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// watchWait is how long one watch call may wait in the engine, watchPause
// the least time between two calls, should the engine not wait.
const (
	watchWait  = time.Second
	watchPause = 20 * time.Millisecond
)

// A contact keeps the run in touch with the engine: it watches for orders,
// freezes when the engine is out of reach, and ends the run when that lasts. While
// it hears of the engine second hand (see hear), it makes its own call only when
// there is news, and now and then as a sign of life.
type contact struct {
	session *session
	freeze  func(bool)
	dead    func([]sealed.GrantID) // grants that were revoked
	abort   func(reason string)
	renewed func(sealed.KeyName) // a lease was; may be nil

	mu      sync.Mutex
	last    time.Time // the engine has spoken to this run then, or later
	known   told      // by the last own call; zero: there was none
	hearsay hearsay
	off     controls
}

// run returns when ctx ends or after abort was called. The clock check runs
// beside the calls: a call that hangs must not delay the freeze.
func (c *contact) run(ctx context.Context) {
	c.touch(time.Now())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go c.clock(ctx)
	for ctx.Err() == nil {
		rest, wait := c.next(time.Now())
		if rest > 0 {
			c.rest(ctx, rest)
		} else if !c.call(ctx, wait) {
			return
		}
	}
}

// call asks the engine itself. It reports false when the run has to end.
func (c *contact) call(ctx context.Context, wait time.Duration) bool {
	ctx, done := context.WithTimeout(ctx, watchWait+2*time.Second)
	defer done()
	sent := time.Now()
	a, err := c.session.watch(ctx, c.epoch(), wait)
	switch {
	case err == nil:
		c.learn(sent, a)
		if len(a.Dead) > 0 {
			c.dead(a.Dead)
		}
		if a.Order != sealed.OrderContinue {
			c.abort(a.Reason)
			return false
		}
		pause(ctx, watchPause)
	case errors.Is(err, sealed.ErrDenied), errors.Is(err, sealed.ErrInvalid):
		// The engine answered, and no longer knows this run or its token.
		c.abort("the engine no longer accepts this run")
		return false
	default:
		pause(ctx, 200*time.Millisecond)
	}
	return true
}

// epoch is the newest that the run has acted on.
func (c *contact) epoch() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known.mark == "" {
		return c.session.answer.Epoch
	}
	return c.known.epoch
}

// touch notes that the engine spoke at a moment, which is never in the future.
func (c *contact) touch(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spoke(at, time.Now())
}

// spoke is touch for a caller that holds mu.
func (c *contact) spoke(at, now time.Time) {
	if at.After(now) {
		at = now
	}
	if at.After(c.last) {
		c.last = at
	}
}

// silence is the time since the engine spoke, and whether the run is held.
func (c *contact) silence() (silent time.Duration, held bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.last), c.hearsay.held
}

// clock freezes and stops by the limits of the engine's answer. Monotonic
// time is used throughout, so a changed wall clock or a suspended sandbox
// (SIGSTOP, then SIGCONT) freezes too, before anything else is let out.
func (c *contact) clock(ctx context.Context) {
	frozen := false
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		silent, held := c.silence()
		if want := held || silent > c.session.answer.FreezeAfter.Std(); want != frozen {
			frozen = want
			c.freeze(frozen)
		}
		if silent > c.session.answer.StopAfter.Std() {
			c.abort(fmt.Sprintf("no contact with the engine for %s", silent.Round(time.Second)))
			return
		}
	}
}

// keepToken renews the run's periodic token at a third of its period.
func (c *contact) keepToken(ctx context.Context) {
	every := c.session.tokenTTL / 3
	if every <= 0 {
		return
	}
	for pause(ctx, every) {
		_ = c.session.engine.renewToken(ctx) // a lost token shows in watch
	}
}

// keepLease renews one lease while it lives. When renewal is refused the
// grant is given up: its value must not be used past the lease.
func (c *contact) keepLease(ctx context.Context, g *grant) {
	ends := time.Now().Add(g.ttl)
	for pause(ctx, min(time.Until(ends), max(time.Until(ends)/2, time.Second))) {
		asked := time.Now()
		callCtx, done := context.WithDeadline(ctx, ends) // a call that hangs must not outlast the lease
		got, err := c.session.engine.renewLease(callCtx, g.lease, g.ttl)
		done()
		switch {
		case err == nil && got > 0:
			ends = asked.Add(got)
			if c.renewed != nil {
				c.renewed(g.key)
			}
		case errors.Is(err, sealed.ErrUnavailable) && time.Until(ends) > 2*time.Second:
		default:
			pause(ctx, time.Until(ends))
			c.dead([]sealed.GrantID{g.id})
			return
		}
	}
}

// pause waits and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
