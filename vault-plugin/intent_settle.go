package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// attached returns the rows of grants that the log's journal holds, in their
// order. known is false for a mount without keys, which has no log yet.
func (b *backend) attached(ctx context.Context, s logical.Storage) (rows []grantRow, known bool, err error) {
	if b.journal.opened() == nil {
		keys, err := s.Get(ctx, storeKeys)
		if err != nil || keys == nil {
			return nil, false, err
		}
	}
	l, err := b.auditLog(ctx, s)
	if err != nil {
		return nil, false, err
	}
	attached, err := l.Attached(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("reading the log: %w", err)
	}
	for _, a := range attached {
		g, err := attachedGrant(a)
		if err != nil {
			return nil, false, err
		}
		rows = append(rows, g)
	}
	return rows, true, nil
}

// attachedGrant reads a row that an entry has attached.
func attachedGrant(a audit.Attachment) (g grantRow, err error) {
	if err := json.Unmarshal(a.Value, &g); err != nil || g.storageKey() != a.Key {
		return g, fmt.Errorf("reading %s in the log: malformed", a.Key)
	}
	return g, nil
}

// settleInParallel bounds the runs whose rows are written at a time.
const settleInParallel = 16

// settleIntents gives the intents that only the log's journal holds a row of
// their own, before the log folds that journal away. Most have one by then:
// whatever changed a grant has stored it. It is called without any lock of the
// log, on which those who hold a run's lock wait; and by the log only.
func (b *backend) settleIntents(ctx context.Context, attached []audit.Attachment) error {
	var (
		mu     sync.Mutex
		failed error
		all    sync.WaitGroup
		slots  = make(chan struct{}, settleInParallel)
	)
	for run, rows := range byRun(attached) {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if err := b.settleRun(ctx, b.storage, run, rows); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = err
			}
		})
	}
	all.Wait()
	if failed != nil {
		b.Logger().Warn("intents have no rows yet; the log keeps them, until it is full and issues nothing any more", "intents", len(attached), "error", failed)
	}
	return failed
}

// byRun groups rows by the run in their keys: its lock is waited for once, while
// issuing goes on in other runs.
func byRun(attached []audit.Attachment) map[sealed.RunID][]audit.Attachment {
	out := map[sealed.RunID][]audit.Attachment{}
	for _, a := range attached {
		run := sealed.RunID(path.Base(path.Dir(a.Key)))
		out[run] = append(out[run], a)
	}
	return out
}

// settleRun settles the rows of one run.
func (b *backend) settleRun(ctx context.Context, s logical.Storage, run sealed.RunID, rows []audit.Attachment) error {
	defer b.lockRun(run)()
	for _, a := range rows {
		if err := b.settleIntent(ctx, s, a); err != nil {
			return err
		}
	}
	return nil
}

// settleIntent stores one row, unless there is one, which is newer, or the run
// has been archived, and its grants with it. A grant that was returned in memory
// only is stored as the intent that it is after a crash; see keepReturned. The
// caller holds the run's lock.
func (b *backend) settleIntent(ctx context.Context, s logical.Storage, a audit.Attachment) error {
	g, err := attachedGrant(a)
	if err != nil {
		return err
	}
	x, err := b.index(ctx, s)
	if err != nil {
		return err
	}
	if !x.bare(g) {
		return nil
	}
	there, err := s.Get(ctx, a.Key)
	if err != nil {
		return unavailable(err)
	}
	if there == nil {
		if err := s.Put(ctx, &logical.StorageEntry{Key: a.Key, Value: a.Value}); err != nil {
			b.dropIndex()
			return unavailable(err)
		}
	}
	b.note(func(x *grantIndex) { x.stored(g) })
	return nil
}
