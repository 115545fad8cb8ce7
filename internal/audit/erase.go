package audit

import (
	"context"
	"fmt"
	"slices"
)

// Erase removes body and salt of entry seq for good, after it has logged that it
// does, in an entry of type entry.erased. The leaf stays, and so does every
// proof. If it fails after it has logged, the log finishes the work when it next
// loads; calling Erase again is safe. It refuses the entries that verification
// reads (run.claimed, run.finished, entry.erased) with ErrEvent.
func (l *Log) Erase(ctx context.Context, seq uint64) error {
	e, err := l.Entry(ctx, seq)
	if err != nil {
		return fmt.Errorf("erasing entry %d: %w", seq, err)
	}
	switch e.Leaf.Type {
	case TypeClaimed, TypeFinished, TypeErased:
		return fmt.Errorf("%w: entry %d is a %s, which verification needs", ErrEvent, seq, e.Leaf.Type)
	}
	body := struct {
		Seq uint64 `json:"seq"`
	}{seq}
	if _, err := l.append(ctx, []Event{{Type: TypeErased, Body: body, Essential: true}}); err != nil {
		return fmt.Errorf("logging that entry %d is erased: %w", seq, err)
	}
	// Whoever wrote the batch is erasing, or has failed at it.
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.release()
	if err := l.ready(ctx); err != nil {
		return err
	}
	return l.keepHouse(ctx, lazyDeletes)
}

// eraseSide removes the side of entry seq wherever storage has it: in a journal
// object, folded or not, and in a side object, also one that an unfinished fold
// has left. It is idempotent. The caller has the turn.
func (l *Log) eraseSide(ctx context.Context, seq uint64) error {
	if err := l.eraseInJournal(ctx, int64(seq)); err != nil {
		return err
	}
	key, first, chunk, err := readChunk(ctx, l.storage, int64(seq))
	if err != nil {
		return err
	}
	if i := int64(seq) - first; key != "" && i < int64(len(chunk.Sides)) && chunk.Sides[i] != nil {
		chunk.Sides[i] = nil
		if err := l.putChunk(ctx, key, chunk); err != nil {
			return err
		}
	}
	v := *l.view.Load()
	if i := int64(seq) - v.folded; i >= 0 {
		v.tail = slices.Clone(v.tail)
		v.tail[i].side = nil
		l.view.Store(&v)
	}
	return nil
}

// eraseInJournal rewrites the journal object that has the side of entry seq. The
// leaves, and so the head, stay as they are.
func (l *Log) eraseInJournal(ctx context.Context, seq int64) error {
	at, found := slices.BinarySearch(l.starts, seq)
	if !found {
		at--
	}
	if at < 0 {
		return nil
	}
	j, err := l.readJournal(ctx, l.starts[at])
	if err != nil {
		return err
	}
	i := seq - j.Start
	if i >= int64(len(j.Entries)) || j.Entries[i].Side == nil {
		return nil
	}
	j.Entries[i].Side = nil
	key := journalKey(j.Start)
	value, err := encodeState(key, j)
	if err != nil {
		return err
	}
	if err := l.storage.Put(ctx, key, value); err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	return nil
}
