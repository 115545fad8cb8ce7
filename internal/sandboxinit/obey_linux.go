package sandboxinit

import (
	"context"
	"time"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sealed"
)

// watchHost starts what a supervisor may ask for beside the run's own watch.
func (r *runner) watchHost(ctx context.Context, c *contact) {
	r.contact = c
	r.host = &hostWatch{session: r.session, answer: func(a sealed.Signed) {
		c.hear(a)
		_ = r.control.Send(sealed.RelayControl{Type: relay.ControlWatched, Answer: &a}) // a host that has gone shows in obey
	}}
	go r.host.run(ctx)
}

// obey follows the host's control messages: resize, signals, and the watch of
// the host. The host can make the run stop, and nothing else. Losing the host
// ends the run.
func (r *runner) obey() {
	for {
		m, err := r.control.Receive()
		if err != nil {
			r.abort("the supervisor has gone")
			return
		}
		switch m.Type {
		case relay.ControlResize:
			r.agent.resize(m.Rows, m.Cols)
		case relay.ControlSignal:
			r.agent.signal(m.Signal)
			time.AfterFunc(graceLimit, func() { r.abort("stopped by the operator") })
		case relay.ControlWatch:
			r.host.watchFor(m.Runs)
			r.heard()
		case relay.ControlWatched:
			if m.Answer != nil {
				r.contact.hear(*m.Answer)
			}
			r.heard()
		}
	}
}

// heard asks for the next message of the host's watch.
func (r *runner) heard() { _ = r.control.Send(sealed.RelayControl{Type: relay.ControlHeard}) }
