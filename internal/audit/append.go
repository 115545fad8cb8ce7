package audit

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A request is one call of Append. Whoever closes done has set the rest.
type request struct {
	events []draft
	done   chan struct{}

	receipts []Receipt
	err      error
}

// A draft is an event that has been checked, without its place in the log.
type draft struct {
	typ, run  string
	body      []byte
	essential bool
	attach    *Attachment
}

// Append logs events in order, next to each other, and returns when they are
// durable. Calls that arrive while one is being written share the next write, so
// an entry costs one Put or less. On any error nothing that depends on the events
// may happen; they may or may not be in the log. The error matches ErrEvent when
// an event is malformed, ErrBudget when a run is over its budget, and ErrGaveUp
// when ctx ended while the call waited for others; then none of the events is in
// the log. Once its write began the call waits for the outcome, at most
// Config.WriteTimeout. Attachments share the fate of their events.
func (l *Log) Append(ctx context.Context, events ...Event) ([]Receipt, error) {
	for _, e := range events {
		if e.Type == TypeErased {
			return nil, fmt.Errorf("%w: %s is for Erase", ErrEvent, TypeErased)
		}
	}
	return l.append(ctx, events)
}

func (l *Log) append(ctx context.Context, events []Event) ([]Receipt, error) {
	req := &request{done: make(chan struct{}), err: errUndone}
	if len(events) == 0 || len(events) > l.cfg.MaxBatch {
		return nil, fmt.Errorf("%w: %d events in one call, want 1 to %d", ErrEvent, len(events), l.cfg.MaxBatch)
	}
	for _, e := range events {
		d, err := l.newDraft(e)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrEvent, err)
		}
		req.events = append(req.events, d)
	}
	l.mu.Lock()
	l.queue = append(l.queue, req)
	l.mu.Unlock()
	select {
	case l.joined <- struct{}{}:
	default:
	}
	return l.await(ctx, req)
}

func (l *Log) newDraft(e Event) (draft, error) {
	if err := checkType(e.Type); err != nil {
		return draft{}, err
	}
	if err := checkRun(e.Run); err != nil {
		return draft{}, err
	}
	body, err := encodeBody(e.Body)
	if err != nil {
		return draft{}, fmt.Errorf("%s: %w", e.Type, err)
	}
	if e.Attach != nil {
		if l.cfg.Settle == nil {
			return draft{}, fmt.Errorf("%s: nobody settles attachments of this log", e.Type)
		}
		if err := e.Attach.check(); err != nil {
			return draft{}, fmt.Errorf("%s: %w", e.Type, err)
		}
	}
	return draft{typ: e.Type, run: e.Run, body: body, essential: e.Essential, attach: e.Attach.clone()}, nil
}

// await waits until req is done: by another caller, or by this one when the turn
// to write comes to it.
func (l *Log) await(ctx context.Context, req *request) ([]Receipt, error) {
	for {
		select {
		case <-req.done:
			return req.receipts, req.err
		default:
		}
		if ctx.Err() != nil && l.withdraw(req) {
			return nil, fmt.Errorf("%w: %w", ErrGaveUp, ctx.Err())
		}
		select {
		case <-req.done:
		case l.turn <- struct{}{}:
			l.lead(ctx)
			l.release()
		case <-ctx.Done():
			if !l.withdraw(req) {
				<-req.done // it is being written, and that has a time limit
				continue
			}
			return nil, fmt.Errorf("%w: %w", ErrGaveUp, ctx.Err())
		}
	}
}

// withdraw takes req out of the queue, and reports whether it was still there.
func (l *Log) withdraw(req *request) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.queue, req)
	if i < 0 {
		return false
	}
	l.queue = slices.Delete(l.queue, i, i+1)
	return true
}

// next takes requests from the queue, in order, up to MaxBatch entries.
func (l *Log) next() []*request {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n, entries int
	for n < len(l.queue) {
		if entries += len(l.queue[n].events); entries > l.cfg.MaxBatch {
			break
		}
		n++
	}
	batch := slices.Clone(l.queue[:n])
	l.queue = slices.Delete(l.queue, 0, n)
	return batch
}

// company is how many calls a batch has to have for the next one to wait for as many.
const company = 6

// gather lets appends that are on their way join the batch, at most
// Config.Linger: those that are announced, and, where the batch before had
// company, as many as that had, because who has just been answered soon asks
// again. A call that is alone waits for nobody.
func (l *Log) gather() {
	if l.cfg.Coming == nil {
		return
	}
	want := 0
	if l.last >= company {
		want = l.last
	}
	queued := l.queued()
	defer func() { l.last = queued }()
	if l.cfg.Coming() <= 0 && queued >= want {
		return
	}
	again := time.NewTicker(l.cfg.Linger / 8) // who was coming may have turned back
	defer again.Stop()
	for ticks := 0; ticks < 8 && (l.cfg.Coming() > 0 || queued < want) && queued < l.cfg.MaxBatch; queued = l.queued() {
		select {
		case <-l.joined:
		case <-again.C:
			ticks++
		}
	}
}

// queued is how many calls wait.
func (l *Log) queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// lead writes one batch and then keeps house. The caller has the turn.
func (l *Log) lead(ctx context.Context) {
	l.gather()
	batch := l.next()
	if len(batch) == 0 {
		return
	}
	ctx, cancel := l.writeContext(ctx)
	defer cancel()
	l.write(ctx, batch)
	for _, req := range batch {
		close(req.done)
	}
	l.tidy(ctx)
}

// write commits the batch in as few journal objects as their limits allow, and
// sets every request's outcome. A request succeeds when all its entries are
// committed.
func (l *Log) write(ctx context.Context, batch []*request) {
	fail := func(err error) {
		for _, req := range batch {
			if req.err == errUndone {
				req.receipts, req.err = nil, err
			}
		}
	}
	if err := l.ready(ctx); err != nil {
		fail(err)
		return
	}
	planned := map[string]int64{}
	var todo []slot
	for _, req := range batch {
		if err := l.admit(req, planned); err != nil {
			req.err = err
			continue
		}
		for i := range req.events {
			todo = append(todo, slot{req, i})
		}
	}
	for len(todo) > 0 {
		n, err := l.commitSome(ctx, todo)
		if err != nil {
			fail(err)
			return
		}
		todo = todo[n:]
	}
	for _, req := range batch {
		if req.err == errUndone {
			req.err = nil
		}
	}
}

// A slot is one event of a request.
type slot struct {
	req *request
	i   int
}

func (s slot) draft() draft { return s.req.events[s.i] }

// admit refuses a request that would take a run over its budget.
func (l *Log) admit(req *request, planned map[string]int64) error {
	mine := map[string]int64{}
	for _, d := range req.events {
		if d.run == "" {
			continue
		}
		mine[d.run]++
		total := l.counts[d.run] + planned[d.run] + mine[d.run]
		if total > int64(l.cfg.RunBudget) && !d.essential && !l.off.budget {
			return fmt.Errorf("appending %s of run %s: %w", d.typ, d.run, ErrBudget)
		}
	}
	for run, n := range mine {
		planned[run] += n
	}
	return nil
}
