package vaultplugin

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

const (
	// keepRuns is how long rows of ended runs are kept unless the
	// configuration says otherwise.
	keepRuns = 90 * 24 * time.Hour
	// prunePerTick bounds the runs that are deleted at a time; one of them
	// costs a handful of storage operations.
	prunePerTick = 100
)

// pruneRuns deletes what is shown of runs that ended longer ago than the
// configuration keeps them: row, approvals, redacted input, idempotency key.
// The log and the signed record stay: what a run did can be verified for ever.
// It works oldest first and in bounded batches, each announced by one entry;
// whatever a crash leaves is deleted with the next batch.
func (b *backend) pruneRuns(ctx context.Context, s logical.Storage) error {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return err
	}
	old, err := b.prunable(ctx, s, b.now().Add(-cfg.keepFor()))
	if err != nil || len(old) == 0 {
		return err
	}
	if _, err := b.record(ctx, s, audit.Event{Type: "runs.pruned", Essential: true, Body: map[string]any{
		"count": len(old), "first": old[0].ID, "last": old[len(old)-1].ID, "kept_for": cfg.keepFor().String(),
	}}); err != nil {
		return err
	}
	for _, r := range old {
		if err := b.pruneRun(ctx, s, r); err != nil {
			return err
		}
	}
	return nil
}

// prunable returns the oldest ended runs that ended before a time. Ids are in
// the order of the enqueue, so that younger ones are not even read.
func (b *backend) prunable(ctx context.Context, s logical.Storage, ended time.Time) ([]runRow, error) {
	bound, err := sealed.NewULID(ended, bytes.NewReader(make([]byte, 10)))
	if err != nil {
		return nil, err
	}
	ids, err := s.List(ctx, storeRunsDone)
	if err != nil {
		return nil, unavailable(err)
	}
	slices.Sort(ids)
	x, err := b.index(ctx, s)
	if err != nil {
		return nil, err
	}
	var out []runRow
	for _, id := range ids {
		if id >= bound || len(out) == prunePerTick {
			break
		}
		if _, live := x.run(sealed.RunID(id)); live {
			continue // being archived
		}
		r, err := readRun(ctx, s, sealed.RunID(id))
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r.over() && r.endedAt().Before(ended) {
			out = append(out, r)
		}
	}
	return out, nil
}

// pruneRun deletes one run, its own row last, because that names the rest. The
// idempotency key goes before the row: while the key names a run that is not
// there, the same request would make it again under its old id. A record
// without an entry, of a finish that failed, goes too.
func (b *backend) pruneRun(ctx context.Context, s logical.Storage, r runRow) error {
	if err := b.pruneIdempotency(ctx, s, r); err != nil {
		return err
	}
	defer b.lockRun(r.ID)()
	var keys []string
	for id := range r.Approvals {
		keys = append(keys, storeApprovalsDone+string(id))
	}
	keys = append(keys, storeInputs+string(r.ID))
	if r.State != sealed.RunFinished {
		keys = append(keys, storeRecords+string(r.ID))
	}
	for _, key := range append(keys, storeRunsDone+string(r.ID)) {
		if err := s.Delete(ctx, key); err != nil {
			return unavailable(err)
		}
	}
	b.ended.drop(r.ID)
	return nil
}

// pruneIdempotency takes the lock of whoever enqueues with the key.
func (b *backend) pruneIdempotency(ctx context.Context, s logical.Storage, r runRow) error {
	if r.Idempotency == "" {
		return nil // of a run enqueued by an older version
	}
	defer b.locks.lock(r.Idempotency)()
	if err := s.Delete(ctx, r.Idempotency); err != nil {
		return unavailable(err)
	}
	return nil
}
