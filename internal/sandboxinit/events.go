package sandboxinit

import (
	"context"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// eventLog aggregates what happens in the sandbox by type, key, detail and
// stream, and reports it once a second: a loop that prints a value a million
// times is one event with a count (R23).
type eventLog struct {
	session *session
	mu      sync.Mutex
	pending map[sealed.RunEvent]int // Count is zero in the key
}

// maxPending bounds the distinct events between two reports: beyond it details
// are dropped, beyond twice as many keys and streams too. Counts are not.
const maxPending = 100

func newEventLog(s *session) *eventLog {
	return &eventLog{session: s, pending: map[sealed.RunEvent]int{}}
}

func (l *eventLog) add(e sealed.RunEvent) {
	n := max(e.Count, 1)
	e.Count = 0
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.pending[e]; !ok && len(l.pending) >= maxPending {
		e.Detail = ""
		if _, ok := l.pending[e]; !ok && len(l.pending) >= 2*maxPending {
			e = sealed.RunEvent{Type: e.Type}
		}
	}
	l.pending[e] += n
}

// flush reports what is pending. What could not be reported stays pending.
func (l *eventLog) flush(ctx context.Context) error {
	l.mu.Lock()
	taken := l.pending
	l.pending = map[sealed.RunEvent]int{}
	l.mu.Unlock()
	var batch []sealed.RunEvent
	for e, n := range taken {
		e.Count = n
		batch = append(batch, e)
	}
	for len(batch) > 0 {
		n := min(len(batch), maxPending)
		if err := l.session.report(ctx, batch[:n]); err != nil {
			for _, e := range batch {
				l.add(e)
			}
			return err
		}
		batch = batch[n:]
	}
	return nil
}

func (l *eventLog) run(ctx context.Context) {
	for pause(ctx, time.Second) {
		_ = l.flush(ctx) // kept pending; the last flush is at finish
	}
}
