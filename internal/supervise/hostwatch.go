package supervise

import (
	"context"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sealed"
)

// A feed carries the watch of the host to init, one message at a time: the next
// one goes when init has read the last, and is the newest then. So a sandbox that
// stands still has nothing in its way when it goes on.
type feed struct {
	asks    newest[[]sealed.RunID]
	answers newest[sealed.Signed]
	heard   chan struct{} // holds one
}

func newFeed() *feed {
	return &feed{asks: newNewest[[]sealed.RunID](), answers: newNewest[sealed.Signed](), heard: make(chan struct{}, 1)}
}

// ack notes that init has read a message.
func (f *feed) ack() {
	select {
	case f.heard <- struct{}{}:
	default:
	}
}

// run sends until ctx ends or a message can't be sent.
func (f *feed) run(ctx context.Context, send func(sealed.RelayControl) error) error {
	for {
		var msg sealed.RelayControl
		select {
		case <-ctx.Done():
			return nil
		case runs := <-f.asks:
			msg = sealed.RelayControl{Type: relay.ControlWatch, Runs: runs}
		case a := <-f.answers:
			msg = sealed.RelayControl{Type: relay.ControlWatched, Answer: &a}
		}
		if err := send(msg); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.heard:
		}
	}
}

// meet takes part in the watch of the host from the claim to the end of the relay.
// Closed is a channel that is closed when nothing of it is left.
func (o *owner) meet(ctx context.Context) (closed <-chan struct{}) {
	done := make(chan struct{})
	if o.cfg.WatchDir == "" || !o.cfg.identity() {
		close(done)
		return done
	}
	o.bound, o.feed = make(chan *relay.Control, 1), newFeed()
	o.meeting = &meeting{
		dir: meetingPlace(o.cfg.WatchDir, o.trust), run: o.cfg.Run, log: o.cfg.Log, said: newNewest[sealed.Signed](),
		ask: o.feed.asks.put, pass: o.feed.answers.put,
	}
	go func() {
		defer close(done)
		select {
		case <-ctx.Done():
		case c := <-o.bound:
			go func() {
				if err := o.feed.run(ctx, c.Send); err != nil {
					o.cfg.Log.Debug("sharing the watch of this host", "run", string(o.cfg.Run), "error", err)
				}
			}()
			o.meeting.attend(ctx)
		}
	}()
	return done
}

// watchSays handles what init says about the watch of the host.
func (o *owner) watchSays(msg sealed.RelayControl) {
	switch {
	case o.meeting == nil:
	case msg.Type == relay.ControlHeard:
		o.feed.ack()
	case msg.Answer != nil && len(msg.Answer.Payload)+len(msg.Answer.Signature) <= sealed.MaxHostAnswer/2: // as JSON it is longer
		o.meeting.said.put(*msg.Answer)
	}
}
