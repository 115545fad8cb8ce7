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
	rare    map[sealed.RunEvent]int // not reported before settle
}

// maxPending bounds the distinct events between two reports: beyond it details
// are dropped, beyond twice as many keys and streams too. Counts are not.
const maxPending = 100

// settleEvery is how often what is routine is reported: it must not use up the
// run's entries in the log.
const settleEvery = time.Hour

func newEventLog(s *session) *eventLog {
	return &eventLog{session: s, pending: map[sealed.RunEvent]int{}, rare: map[sealed.RunEvent]int{}}
}

// addRare counts something routine. It is reported with its count once an hour,
// and at the end.
func (l *eventLog) addRare(e sealed.RunEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rare[e]++
}

// settle makes what is routine pending.
func (l *eventLog) settle() {
	l.mu.Lock()
	rare := l.rare
	l.rare = map[sealed.RunEvent]int{}
	l.mu.Unlock()
	for e, n := range rare {
		e.Count = n
		l.add(e)
	}
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
	settled := time.Now()
	for pause(ctx, time.Second) {
		if time.Since(settled) >= settleEvery {
			settled = time.Now()
			l.settle()
		}
		_ = l.flush(ctx) // kept pending; the last flush is at finish
	}
}
