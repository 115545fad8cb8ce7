package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sealed"
)

const (
	// lostGrace is the time between the end of the relay and that of init,
	// which an orderly exit needs.
	lostGrace = time.Second
	// drainGrace bounds the handling of what init sent before it ended.
	drainGrace = 5 * time.Second
)

// converse serves the control stream until init closes it. It must go on after
// ctx has ended: the last message arrives with the end of init.
func (o *owner) converse(_ context.Context, c *relay.Control) {
	o.mu.Lock()
	o.control = c
	early := o.early
	o.early = nil
	o.mu.Unlock()
	for _, msg := range early {
		o.tell(msg)
	}
	for {
		msg, err := c.Receive()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				o.cfg.Log.Warn("control stream ended", "run", string(o.cfg.Run), "error", err)
			}
			return
		}
		switch msg.Type {
		case relay.ControlClaimed:
			o.claimed()
			select {
			case o.bound <- c:
			default: // there is no meeting, or it knows
			}
		case relay.ControlWatched, relay.ControlHeard:
			o.watchSays(msg)
		case relay.ControlFailed:
			o.mu.Lock()
			o.failure = &msg
			o.mu.Unlock()
		case relay.ControlFinished:
			o.mu.Lock()
			if o.last == nil { // the first word counts
				o.last = &msg
			}
			o.mu.Unlock()
		}
	}
}

// claimed closes the attestation window. If that fails the attestor closes it
// by time.
func (o *owner) claimed() {
	o.mu.Lock()
	reg := o.reg
	o.mu.Unlock()
	if reg == nil {
		return
	}
	if err := reg.Claimed(); err != nil {
		o.cfg.Log.Warn("closing attestation window", "run", string(o.cfg.Run), "error", err)
	}
}

// tell sends a control message without waiting; init may be stuck. What comes
// before init has opened the control stream waits for that: a request to stop
// must not be lost. attend sends only a few such messages.
func (o *owner) tell(msg sealed.RelayControl) {
	o.mu.Lock()
	c := o.control
	if c == nil {
		o.early = append(o.early, msg)
	}
	o.mu.Unlock()
	if c == nil {
		return
	}
	go func() {
		if err := c.Send(msg); err != nil {
			o.cfg.Log.Warn("control message lost", "run", string(o.cfg.Run), "type", msg.Type, "error", err)
		}
	}()
}

// attend waits for the end, or brings it about, and returns its reason. When
// it returns, every process of the sandbox is gone and its output is written.
func (o *owner) attend(ctx context.Context, signals <-chan os.Signal) (string, error) {
	parent, forget := o.watchParent()
	defer forget()
	reason, outputs, logErr := o.await(ctx, signals, parent)
	var errs []error
	if reason != ReasonDied {
		errs = append(errs, o.box.Kill())
	}
	<-o.exited
	for ; outputs > 0; outputs-- {
		logErr = errors.Join(logErr, <-o.outputs)
	}
	o.hearOut()
	errs = append(errs, o.waitErr, logErr)
	if err := errors.Join(errs...); err != nil {
		return reason, fmt.Errorf("running sandbox: %w", err)
	}
	return reason, nil
}

// hearOut lets the relay of a sandbox that has ended hand over what is left in
// the socket, and ends it.
func (o *owner) hearOut() {
	select {
	case <-o.lost:
	case <-time.After(drainGrace):
	}
	o.stop()
	<-o.lost
	<-o.met
}

// await returns the reason of the end and how many copiers of output are still
// at work.
func (o *owner) await(ctx context.Context, signals <-chan os.Signal, parent <-chan struct{}) (string, int, error) {
	wall := time.NewTimer(o.cfg.Sandbox.WallTime.Std())
	defer wall.Stop()
	var deadline <-chan time.Time // set once init was asked to stop
	lost := o.lost
	asked := ReasonDied
	outputs := 2
	for {
		select {
		case <-o.exited:
			return ReasonDied, outputs, nil
		case <-ctx.Done():
			return ReasonCanceled, outputs, nil
		case <-parent:
			return ReasonParent, outputs, nil
		case err := <-o.outputs:
			if outputs--; err != nil {
				return ReasonLog, outputs, err
			}
		case <-deadline:
			return asked, outputs, nil
		case <-lost:
			lost, deadline, asked = nil, time.After(lostGrace), ReasonRelayLost
		case <-wall.C:
			deadline, asked = o.ask(deadline, syscall.SIGTERM), ReasonWallTime
		case s := <-signals:
			if deadline != nil {
				return ReasonStopped, outputs, nil // asked twice
			}
			deadline, asked = o.ask(deadline, s), ReasonStopped
		case size, ok := <-o.cfg.Resize:
			if !ok {
				o.cfg.Resize = nil
			}
			if size.Rows > 0 && size.Cols > 0 {
				o.tell(sealed.RelayControl{Type: relay.ControlResize, Rows: size.Rows, Cols: size.Cols})
			}
		}
	}
}

// ask tells init to end the agent, and starts the clock unless it runs.
func (o *owner) ask(deadline <-chan time.Time, s os.Signal) <-chan time.Time {
	n := syscall.SIGTERM
	if sig, ok := s.(syscall.Signal); ok {
		n = sig
	}
	o.tell(sealed.RelayControl{Type: relay.ControlSignal, Signal: int(n)})
	if deadline != nil {
		return deadline
	}
	return time.After(o.cfg.Grace)
}

func (o *owner) signals() (<-chan os.Signal, func()) {
	if o.cfg.Signals != nil {
		return o.cfg.Signals, func() {}
	}
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}

// watchParent returns a channel that is closed when the parent is gone, by
// either of two signs: the end of a pipe that the parent holds, and the
// kernel's parent-death signal, here SIGURG, which means nothing else to us.
func (o *owner) watchParent() (<-chan struct{}, func()) {
	gone, quit := make(chan struct{}), make(chan struct{})
	if o.cfg.Detached {
		return gone, func() {}
	}
	signs := make(chan struct{}, 2)
	if o.cfg.Parent != nil {
		go func() {
			_, _ = io.Copy(io.Discard, o.cfg.Parent)
			signs <- struct{}{}
		}()
	}
	go awaitParentDeath(os.Getppid(), signs, quit)
	go func() {
		select {
		case <-signs:
			close(gone)
		case <-quit:
		}
	}()
	return gone, func() { close(quit) }
}

// awaitParentDeath holds a thread: the kernel sends the signal on behalf of
// threads that asked for it and still live.
func awaitParentDeath(parent int, signs chan<- struct{}, quit <-chan struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGURG)
	defer signal.Stop(c)
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGURG), 0, 0, 0); err != nil {
		return // the pipe is left
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0) }()
	for {
		if os.Getppid() != parent { // at once, too: it may have gone before
			signs <- struct{}{}
			return
		}
		select {
		case <-c: // the Go runtime uses SIGURG as well
		case <-quit:
			return
		}
	}
}
