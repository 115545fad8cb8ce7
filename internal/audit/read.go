package audit

import (
	"context"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// An Entry is one entry of the log as it is stored. Side is the zero value when
// Erased.
type Entry struct {
	Leaf   Leaf
	Raw    []byte // canonical bytes of Leaf, which the tree holds
	Side   Side
	Erased bool
}

// maxEntries is the most that one call of Entries returns.
const maxEntries = 4 * tileWidth

// Checkpoint returns the newest signed checkpoint. All that it covers is durable.
func (l *Log) Checkpoint(ctx context.Context) ([]byte, error) {
	v, err := l.current(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading checkpoint: %w", err)
	}
	return append([]byte(nil), v.head...), nil
}

// ReadTile returns the file of the published tree at a C2SP tlog-tiles path. A
// path that no checkpoint so far calls for matches ErrNotFound.
func (l *Log) ReadTile(ctx context.Context, path string) ([]byte, error) {
	if path == checkpointPath {
		return l.Checkpoint(ctx)
	}
	t, err := parseTilePath(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	v, err := l.current(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading tile: %w", err)
	}
	return v.tile(ctx, l.storage, t)
}

// Side returns body and salt of an entry. The error matches ErrErased or
// ErrNotFound when there are none.
func (l *Log) Side(ctx context.Context, seq uint64) (Side, error) {
	e, err := l.Entry(ctx, seq)
	if err != nil {
		return Side{}, err
	}
	if e.Erased {
		return Side{}, fmt.Errorf("reading entry %d: %w", seq, ErrErased)
	}
	return e.Side, nil
}

// Entry returns one entry. An erased entry is no error.
func (l *Log) Entry(ctx context.Context, seq uint64) (Entry, error) {
	entries, err := l.Entries(ctx, seq, 1)
	if err != nil {
		return Entry{}, err
	}
	if len(entries) == 0 {
		return Entry{}, fmt.Errorf("reading entry %d: %w", seq, ErrNotFound)
	}
	return entries[0], nil
}

// Entries returns up to n entries from number from on, at most 1,024, fewer at
// the end of the log. It reads one state of the log.
func (l *Log) Entries(ctx context.Context, from uint64, n int) ([]Entry, error) {
	v, err := l.current(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading entries: %w", err)
	}
	if from >= uint64(v.size) || n <= 0 {
		return nil, nil
	}
	end := min(int64(from)+int64(min(n, maxEntries)), v.size)
	r := entryReader{storage: l.storage, view: v}
	var out []Entry
	for seq := int64(from); seq < end; seq++ {
		e, err := r.read(ctx, seq)
		if err != nil {
			return nil, fmt.Errorf("reading entry %d: %w", seq, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// An entryReader reads entries in ascending order and keeps the objects that the
// next entry is likely to be in.
type entryReader struct {
	storage Storage
	view    *view

	bundle int64 // number of leaves' bundle, valid if leaves is set
	leaves [][]byte
	first  int64 // number of the first entry of chunk
	chunk  sideChunk
}

func (r *entryReader) read(ctx context.Context, seq int64) (Entry, error) {
	if i := seq - r.view.folded; i >= 0 {
		e := r.view.tail[i]
		return newEntry(e.leaf, e.raw, e.side)
	}
	var err error
	if r.leaves == nil || r.bundle != seq/tileWidth {
		r.bundle = seq / tileWidth
		if r.leaves, err = r.view.leaves(ctx, r.storage, r.bundle); err != nil {
			return Entry{}, err
		}
	}
	if i := seq - r.first; i < 0 || i >= int64(len(r.chunk.Sides)) {
		if _, r.first, r.chunk, err = readChunk(ctx, r.storage, seq); err != nil {
			return Entry{}, err
		}
	}
	i := seq - r.first
	if i >= int64(len(r.chunk.Sides)) {
		return Entry{}, fmt.Errorf("%w: its side object is missing", ErrCorrupt)
	}
	raw := r.leaves[seq%tileWidth]
	leaf, err := ParseLeaf(raw)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return newEntry(leaf, raw, r.chunk.Sides[i])
}

func newEntry(leaf Leaf, raw []byte, side *Side) (Entry, error) {
	e := Entry{Leaf: leaf, Raw: raw, Erased: side == nil}
	if side == nil {
		return e, nil
	}
	if side.Digest() != leaf.Body {
		return Entry{}, fmt.Errorf("%w: body does not match its leaf", ErrCorrupt)
	}
	e.Side = *side
	return e, nil
}

// ConsistencyProof returns the proof for CheckConsistency that the tree of old
// entries is a prefix of the tree of new entries.
func (l *Log) ConsistencyProof(ctx context.Context, old, new uint64) ([]Hash, error) {
	v, err := l.current(ctx)
	if err != nil {
		return nil, fmt.Errorf("proving consistency: %w", err)
	}
	if old > new || new > uint64(v.size) {
		return nil, fmt.Errorf("proving consistency of %d and %d: %w", old, new, ErrNotFound)
	}
	if old == 0 || old == new {
		return []Hash{}, nil
	}
	proof, err := tlog.ProveTree(int64(new), int64(old), newTreeReader(ctx, l.storage, v))
	if err != nil {
		return nil, fmt.Errorf("proving consistency of %d and %d: %w", old, new, err)
	}
	return proof, nil
}

// InclusionProof returns the proof for CheckInclusion that entry seq is in the
// tree of size entries.
func (l *Log) InclusionProof(ctx context.Context, seq, size uint64) ([]Hash, error) {
	v, err := l.current(ctx)
	if err != nil {
		return nil, fmt.Errorf("proving inclusion: %w", err)
	}
	if seq >= size || size > uint64(v.size) {
		return nil, fmt.Errorf("proving inclusion of %d in %d: %w", seq, size, ErrNotFound)
	}
	proof, err := tlog.ProveRecord(int64(size), int64(seq), newTreeReader(ctx, l.storage, v))
	if err != nil {
		return nil, fmt.Errorf("proving inclusion of %d in %d: %w", seq, size, err)
	}
	return proof, nil
}
