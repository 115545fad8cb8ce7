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
// freezes when the engine is out of reach, and ends the run when that lasts.
type contact struct {
	session *session
	freeze  func(bool)
	dead    func([]sealed.GrantID) // grants that were revoked
	abort   func(reason string)
	renewed func(sealed.KeyName) // a lease was; may be nil

	mu   sync.Mutex
	last time.Time // of the last answer
}

// run returns when ctx ends or after abort was called. The clock check runs
// beside the calls: a call that hangs must not delay the freeze.
func (c *contact) run(ctx context.Context) {
	c.touch()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go c.clock(ctx)
	epoch := c.session.answer.Epoch
	for ctx.Err() == nil {
		callCtx, done := context.WithTimeout(ctx, watchWait+2*time.Second)
		a, err := c.session.watch(callCtx, epoch, watchWait)
		done()
		switch {
		case err == nil:
			c.touch()
			epoch = a.Epoch
			if len(a.Dead) > 0 {
				c.dead(a.Dead)
			}
			if a.Order != sealed.OrderContinue {
				c.abort(a.Reason)
				return
			}
			pause(ctx, watchPause)
		case errors.Is(err, sealed.ErrDenied), errors.Is(err, sealed.ErrInvalid):
			// The engine answered, and no longer knows this run or its token.
			c.abort("the engine no longer accepts this run")
			return
		default:
			pause(ctx, 200*time.Millisecond)
		}
	}
}

func (c *contact) touch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
}

func (c *contact) silence() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.last)
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
		silent := c.silence()
		if want := silent > c.session.answer.FreezeAfter.Std(); want != frozen {
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
