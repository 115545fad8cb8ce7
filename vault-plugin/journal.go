package vaultplugin

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// journal holds the mount's one log. There is never a second audit.Log over
// the same storage in this process, not even after Invalidate: two writers
// could fork the log.
type journal struct {
	opening sync.Mutex // one opener; held across the log's own storage only
	mu      sync.Mutex
	log     *audit.Log

	coming atomic.Int64 // arrivals
}

// An arrival is an entry that a call announces, so that the log lets it share a
// write with others that are ready before it. One goroutine uses it.
type arrival struct {
	j      *journal
	coming bool
}

func (j *journal) expect() *arrival {
	a := &arrival{j: j}
	a.comes()
	return a
}

// comes says that the entry will be appended soon.
func (a *arrival) comes() {
	if !a.coming {
		a.coming = true
		a.j.coming.Add(1)
	}
}

// over says that it is being appended, does not come, or has to wait first.
func (a *arrival) over() {
	if a.coming {
		a.coming = false
		a.j.coming.Add(-1)
	}
}

func (j *journal) opened() *audit.Log {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.log
}

// invalidate makes the log read its storage again before its next use.
func (j *journal) invalidate(ctx context.Context) {
	if l := j.opened(); l != nil {
		l.Reload(ctx)
	}
}

// auditLog returns the mount's log, opened on first use.
func (b *backend) auditLog(ctx context.Context, s logical.Storage) (*audit.Log, error) {
	if l := b.journal.opened(); l != nil {
		return l, nil
	}
	b.journal.opening.Lock()
	defer b.journal.opening.Unlock()
	if l := b.journal.opened(); l != nil {
		return l, nil
	}
	keys, err := b.engineKeys(ctx, s)
	if err != nil {
		return nil, err
	}
	if b.storage != nil {
		s = b.storage // outlives the request
	}
	l, err := audit.Open(ctx, logStorage{s}, keys.logSigner, audit.Config{
		Clock: b.now, Rand: b.rand, Later: b.worker.soon, Settle: b.settleIntents,
		Coming: func() int { return int(b.journal.coming.Load()) },
	})
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w: %w", sealed.ErrUnavailable, err)
	}
	b.journal.mu.Lock()
	defer b.journal.mu.Unlock()
	b.journal.log = l
	return l, nil
}

// record appends events in one commit. When it fails nothing was logged as far
// as the caller may assume, and nothing may be issued or changed: the error is
// sealed.ErrUnavailable.
func (b *backend) record(ctx context.Context, s logical.Storage, events ...audit.Event) ([]audit.Receipt, error) {
	l, err := b.auditLog(ctx, s)
	if err != nil {
		return nil, err
	}
	receipts, err := l.Append(ctx, events...)
	if err != nil {
		return nil, fmt.Errorf("appending to the log: %w: %w", sealed.ErrUnavailable, err)
	}
	return receipts, nil
}

// change logs one change of configuration, before it takes effect. body holds
// names only.
func (b *backend) change(ctx context.Context, req *logical.Request, typ string, body map[string]any) error {
	body["by"] = b.actor(req)
	_, err := b.record(ctx, req.Storage, audit.Event{Type: typ, Body: body, Essential: true})
	return err
}
