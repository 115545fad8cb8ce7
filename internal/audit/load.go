package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// load makes the view from storage. The caller has the turn.
//
//  1. The fold object says how many entries are in tiles, and their frontier.
//  2. The journal objects from there on continue it without gap; each proves
//     itself by its own signed head.
//  3. What this process has acknowledged must be a prefix of the result.
//
// It writes nothing. A commit whose write had returned an error is for
// settlePending.
func (l *Log) load(ctx context.Context) error {
	fold, err := l.readFold(ctx)
	if err != nil {
		return err
	}
	peaks, err := upperFrontier(fold.Size, fold.Upper)
	if err != nil {
		return err
	}
	starts, err := l.listJournal(ctx)
	if err != nil {
		return err
	}
	v := &view{size: fold.Size, peaks: peaks, folded: fold.Size, upper: fold.Upper}
	if err := l.replay(ctx, v, starts); err != nil {
		return err
	}
	if v.head, err = l.resign(v); err != nil {
		return err
	}
	if err := l.checkAcked(ctx, v); err != nil {
		return err
	}
	l.starts, l.erase = starts, nil
	l.counts = maps.Clone(fold.Runs)
	if l.counts == nil {
		l.counts = map[string]int64{}
	}
	for _, e := range v.tail {
		l.account(e)
	}
	l.acked = acked{v.size, v.peaks.root()}
	l.view.Store(v)
	return nil
}

func (l *Log) readFold(ctx context.Context) (foldState, error) {
	data, err := l.storage.Get(ctx, foldKey)
	if err != nil {
		return foldState{}, fmt.Errorf("reading %s: %w", foldKey, err)
	}
	if data == nil {
		return foldState{V: storageVersion}, nil
	}
	var f foldState
	if err := decodeState(foldKey, data, &f); err != nil {
		return foldState{}, err
	}
	if f.V != storageVersion || f.Size <= 0 || f.Size > maxTree {
		return foldState{}, fmt.Errorf("%w: %s has version %d, size %d", ErrCorrupt, foldKey, f.V, f.Size)
	}
	return f, nil
}

// listJournal returns the starts of the journal objects, ascending.
func (l *Log) listJournal(ctx context.Context) ([]int64, error) {
	names, err := l.storage.List(ctx, journalPrefix)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", journalPrefix, err)
	}
	var starts []int64
	for _, name := range names {
		start, err := parseJournalKey(name)
		if err != nil {
			return nil, err
		}
		starts = append(starts, start)
	}
	slices.Sort(starts)
	return starts, nil
}

// replay adds the journal to v, which is the folded tree. The newest object is
// read even when it is folded, because it has the head.
func (l *Log) replay(ctx context.Context, v *view, starts []int64) error {
	first, _ := slices.BinarySearch(starts, v.folded)
	if first == len(starts) {
		if first == 0 {
			if v.folded != 0 {
				return fmt.Errorf("%w: the journal is missing", ErrCorrupt)
			}
			return nil
		}
		j, err := l.readJournal(ctx, starts[first-1])
		if err != nil {
			return err
		}
		if end := j.Start + int64(len(j.Entries)); end != v.size {
			return fmt.Errorf("%w: the journal ends at %d, the tiles at %d", ErrCorrupt, end, v.size)
		}
		leaf, err := ParseLeaf(j.Entries[len(j.Entries)-1].Leaf)
		if err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrCorrupt, v.size-1, err)
		}
		v.last = leaf.Time
		return v.finish(j)
	}
	for _, start := range starts[first:] {
		j, err := l.readJournal(ctx, start)
		if err != nil {
			return err
		}
		if err := v.extend(j); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) readJournal(ctx context.Context, start int64) (journal, error) {
	key := journalKey(start)
	data, err := getFull(ctx, l.storage, key)
	if err != nil {
		return journal{}, err
	}
	return parseJournal(start, data)
}

// parseJournal reads the journal object that begins with entry start. Its
// entries and its head are for extend and finish to check.
func parseJournal(start int64, data []byte) (journal, error) {
	key := journalKey(start)
	var j journal
	if err := decodeState(key, data, &j); err != nil {
		return journal{}, err
	}
	if j.V != storageVersion || j.Start != start || len(j.Entries) == 0 || len(j.Entries) > tileWidth {
		return journal{}, fmt.Errorf("%w: %s is not what its key says", ErrCorrupt, key)
	}
	return j, nil
}

// extend adds one journal object to v.
func (v *view) extend(j journal) error {
	if j.Start != v.size {
		return fmt.Errorf("%w: the journal goes on at %d, not at %d", ErrCorrupt, j.Start, v.size)
	}
	for _, je := range j.Entries {
		leaf, err := ParseLeaf(je.Leaf)
		if err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrCorrupt, v.size, err)
		}
		if leaf.Seq != uint64(v.size) || leaf.Time.Before(v.last) {
			return fmt.Errorf("%w: entry %d is out of order", ErrCorrupt, v.size)
		}
		if je.Side != nil && je.Side.Digest() != leaf.Body {
			return fmt.Errorf("%w: entry %d has another entry's body", ErrCorrupt, v.size)
		}
		if je.Attach != nil {
			if err := je.Attach.check(); err != nil {
				return fmt.Errorf("%w: entry %d: %w", ErrCorrupt, v.size, err)
			}
		}
		e := entry{leaf: leaf, raw: je.Leaf, hash: tlog.RecordHash(je.Leaf), side: je.Side, attach: je.Attach}
		v.peaks = v.peaks.add(v.size, e.hash)
		v.tail = append(v.tail, e)
		v.last = leaf.Time
		v.size++
	}
	return v.finish(j)
}

// finish compares v with the head and the frontier that j ends in.
func (v *view) finish(j journal) error {
	head, err := checkpointText(j.Head)
	if err != nil || head.Size != uint64(v.size) || head.Root != v.peaks.root() || !slices.Equal(j.Frontier, v.peaks) {
		return fmt.Errorf("%w: the head at %d entries does not fit them", ErrCorrupt, v.size)
	}
	v.head = j.Head
	return nil
}

// resign returns v's head, signed by the log's present key. Signing the same text
// with a new key makes no fork.
func (l *Log) resign(v *view) ([]byte, error) {
	if v.head != nil {
		head, err := checkpointText(v.head)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if head.Origin != l.signer.Name() {
			return nil, fmt.Errorf("%w: it is of the origin %q, not %q", ErrCorrupt, head.Origin, l.signer.Name())
		}
		if signedBy(v.head, l.signer) {
			return v.head, nil
		}
	}
	return signCheckpoint(l.signer, v.size, v.peaks.root())
}

// signedBy reports whether msg has a signature line of key. It does not verify.
func signedBy(msg []byte, key note.Signer) bool {
	_, err := note.Open(msg, nil)
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) {
		return false
	}
	return slices.ContainsFunc(unverified.Note.UnverifiedSigs, func(s note.Signature) bool {
		return s.Name == key.Name() && s.Hash == key.KeyHash()
	})
}

// checkAcked refuses a storage that has lost what was acknowledged.
func (l *Log) checkAcked(ctx context.Context, v *view) error {
	old := l.acked
	if old.size == 0 {
		return nil
	}
	if v.size < old.size {
		return fmt.Errorf("%w: it has %d entries, %d were acknowledged", ErrRollback, v.size, old.size)
	}
	root, err := tlog.TreeHash(old.size, newTreeReader(ctx, l.storage, v))
	if err != nil {
		return err
	}
	if root != old.root {
		return fmt.Errorf("%w: its first %d entries are not those that were acknowledged", ErrRollback, old.size)
	}
	return nil
}

// settlePending decides about a commit whose write had returned an error: it is
// there, or it is written again, byte for byte, or storage has moved on without
// it.
func (l *Log) settlePending(ctx context.Context) error {
	c, v := l.pending, l.view.Load()
	if c == nil || l.off.replay {
		return nil
	}
	if v.size != c.start || v.peaks.root() != c.before {
		l.pending = nil // it is there, or others have gone on
		return nil
	}
	// The lost write may still land. Writing the same bytes makes that harmless.
	return l.replayPending(ctx, c)
}

func (l *Log) replayPending(ctx context.Context, c *commit) error {
	if err := l.put(ctx, c); err != nil {
		return err
	}
	l.publish(c)
	return nil
}

// erasedSeq reads the body of an entry.erased entry.
func erasedSeq(body []byte) (uint64, error) {
	var in map[string]json.RawMessage
	var seq uint64
	if err := json.Unmarshal(body, &in); err != nil {
		return 0, errors.New("body is not an object")
	}
	if err := json.Unmarshal(in["seq"], &seq); err != nil || strings.TrimSpace(string(in["seq"])) == "null" {
		return 0, errors.New("body names no entry")
	}
	return seq, nil
}
