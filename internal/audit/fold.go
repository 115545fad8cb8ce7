package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	maxTail     = 4 * tileWidth // entries in the journal, from which on an append fails unless it can fold some
	lazyDeletes = 4             // folded journal objects that one append removes
)

// Fold moves full tiles out of the journal and removes what is then folded. The
// log does so by itself after appends; an idle log may be folded by a worker. It
// is safe at any time and does nothing when there is nothing to do. The caller
// holds nothing that Config.Settle waits for.
func (l *Log) Fold(ctx context.Context) error {
	for {
		if err := l.settleOwed(ctx); err != nil {
			return err
		}
		if done, err := l.foldSettled(ctx); done || err != nil {
			return err
		}
	}
}

// foldSettled does what can be done without Config.Settle. done is false if
// there is then something for it.
func (l *Log) foldSettled(ctx context.Context) (done bool, err error) {
	if err := l.take(ctx); err != nil {
		return false, err
	}
	defer l.release()
	if err := l.ready(ctx); err != nil {
		return false, err
	}
	if err := l.keepHouse(ctx, len(l.starts)); err != nil {
		return false, err
	}
	return len(l.owed(l.view.Load())) == 0, nil
}

// keepHouse finishes erasures, folds full bundles, and then removes up to deletes
// folded journal objects. The order matters: nothing is folded that should be
// erased, or that has attachments which are nowhere else. The caller has the
// turn.
func (l *Log) keepHouse(ctx context.Context, deletes int) error {
	if l.dirty || l.view.Load() == nil {
		return nil // load comes first, and then the next append
	}
	for len(l.erase) > 0 {
		if err := l.eraseSide(ctx, l.erase[0]); err != nil {
			return l.failed(fmt.Sprintf("erasing entry %d", l.erase[0]), err)
		}
		l.erase = l.erase[1:]
	}
	for v := l.view.Load(); v.size-v.folded >= tileWidth && len(l.owed(v)) == 0; v = l.view.Load() {
		if err := l.foldBundle(ctx, v); err != nil {
			return l.failed("folding", err)
		}
	}
	// The newest object stays: it has the head.
	for ; deletes > 0 && len(l.starts) > 1 && l.starts[1] <= l.view.Load().folded; deletes-- {
		if err := l.storage.Delete(ctx, journalKey(l.starts[0])); err != nil {
			return l.failed("removing folded journal object", err)
		}
		l.starts = l.starts[1:]
	}
	return nil
}

// tidy keeps house after a commit: here, or through Config.Later. The caller has
// the turn.
func (l *Log) tidy(ctx context.Context) {
	if l.cfg.Later == nil {
		l.warn(ctx, l.keepHouse(ctx, lazyDeletes))
		return
	}
	if l.untidy() && !l.tidying.Swap(true) {
		l.cfg.Later(l.tidyLater)
	}
}

// tidyLater is what Config.Later does.
func (l *Log) tidyLater() {
	ok := l.tidySome()
	l.tidying.Store(false)
	if ok {
		l.tellFold() // whoever waits for more begins again
	}
}

// tidySome takes the turn for a step at a time, so that an append waits for one
// step at most. Attachments are settled between the steps. ok is false if trying
// again at once would be no better.
func (l *Log) tidySome() (ok bool) {
	ctx, cancel := l.writeContext(context.Background())
	defer cancel()
	for range lazyDeletes {
		owing := l.settleOwed(ctx)
		l.warn(ctx, owing)
		if l.take(ctx) != nil {
			return false
		}
		err := l.keepHouse(ctx, 1)
		ok = err == nil && owing == nil && !l.dirty
		more := ok && l.untidy()
		l.release()
		l.warn(ctx, err)
		if !more {
			return ok
		}
	}
	return true
}

// untidy reports whether keepHouse has something to do. The caller has the turn.
func (l *Log) untidy() bool {
	v := l.view.Load()
	if l.dirty || v == nil {
		return false
	}
	return len(l.erase) > 0 || v.size-v.folded >= tileWidth || (len(l.starts) > 1 && l.starts[1] <= v.folded)
}

func (l *Log) warn(ctx context.Context, err error) {
	if err != nil {
		l.cfg.Logger.WarnContext(ctx, "keeping the log's house failed; it is tried again after the next append", "error", err)
	}
}

// makeRoom keeps the journal bounded even when housekeeping keeps failing. It
// can't settle attachments, because the caller has the turn; housekeeping, which
// comes after this append whatever becomes of it, tries that again.
func (l *Log) makeRoom(ctx context.Context) error {
	if v := l.view.Load(); v.size-v.folded < maxTail {
		return nil
	}
	if err := l.keepHouse(ctx, lazyDeletes); err != nil {
		return err
	}
	if v := l.view.Load(); v.size-v.folded >= maxTail {
		return errFull
	}
	return nil
}

// Room waits until less than three quarters of the journal are taken, so that
// folding keeps up with those who append, and at most for patience: afterwards
// Append decides. The caller holds nothing that Config.Settle waits for; that is
// why Append itself can't wait.
func (l *Log) Room(ctx context.Context, patience time.Duration) {
	if l.cfg.Later == nil {
		return // every append keeps house itself
	}
	var limit <-chan time.Time
	for {
		folded := l.nextFold()
		if v := l.view.Load(); v == nil || v.size-v.folded < maxTail*3/4 {
			return
		}
		if !l.tidying.Swap(true) {
			l.cfg.Later(l.tidyLater)
		}
		if limit == nil {
			timer := time.NewTimer(patience)
			defer timer.Stop()
			limit = timer.C
		}
		select {
		case <-folded:
		case <-limit:
			return
		case <-ctx.Done():
			return
		}
	}
}

// nextFold is closed at the next fold.
func (l *Log) nextFold() <-chan struct{} {
	l.room.Lock()
	defer l.room.Unlock()
	if l.folded == nil {
		l.folded = make(chan struct{})
	}
	return l.folded
}

func (l *Log) tellFold() {
	l.room.Lock()
	defer l.room.Unlock()
	if l.folded != nil {
		close(l.folded)
		l.folded = nil
	}
}

// errFull is the error of an append for which there is no room.
var errFull = errors.New("the journal is full: attachments can't be settled")

// foldBundle moves the 256 oldest entries of the journal into tiles. Everything
// it writes before the fold object is a function of the journal, and nobody reads
// it until that object is there. So it can fail anywhere and be done again.
func (l *Log) foldBundle(ctx context.Context, v *view) error {
	n := v.folded / tileWidth
	moved := v.tail[:tileWidth]
	raw := make([][]byte, tileWidth)
	hashes := make([]Hash, tileWidth)
	for i, e := range moved {
		raw[i], hashes[i] = e.raw, e.hash
	}
	bundle := tlog.Tile{H: tileHeight, L: -1, N: n, W: tileWidth}
	if err := l.storage.Put(ctx, tilePath(bundle), marshalBundle(raw)); err != nil {
		return fmt.Errorf("writing %s: %w", tilePath(bundle), err)
	}
	if err := l.foldSides(ctx, n, moved); err != nil {
		return err
	}
	upper, err := l.foldTiles(ctx, v, n, hashes)
	if err != nil {
		return err
	}
	next := *v
	next.folded, next.upper, next.tail = v.folded+tileWidth, upper, slices.Clone(v.tail[tileWidth:])
	l.counts = openRuns(l.counts)
	state := foldState{V: storageVersion, Size: next.folded, Upper: upper, Runs: l.runsAt(&next)}
	value, err := encodeState(foldKey, state)
	if err != nil {
		return err
	}
	if err := l.storage.Put(ctx, foldKey, value); err != nil {
		return fmt.Errorf("writing %s: %w", foldKey, err)
	}
	l.view.Store(&next)
	l.tellFold()
	return nil
}

// runsAt returns the counts without the entries that are still in the journal,
// which load will count again.
func (l *Log) runsAt(v *view) map[string]int64 {
	in := map[string]int64{}
	for _, e := range v.tail {
		in[e.leaf.Run]++
	}
	runs := map[string]int64{}
	for run, n := range l.counts {
		if n -= in[run]; n > 0 {
			runs[run] = n
		}
	}
	return runs
}

// foldTiles writes the level-0 tile and every tile above that it completes. It
// returns the new right-most partial tiles.
func (l *Log) foldTiles(ctx context.Context, v *view, n int64, hashes []Hash) ([][]Hash, error) {
	upper := slices.Clone(v.upper)
	for level := 0; ; level++ {
		path := tilePath(tlog.Tile{H: tileHeight, L: level, N: n, W: tileWidth})
		if err := l.storage.Put(ctx, path, marshalHashes(hashes)); err != nil {
			return nil, fmt.Errorf("writing %s: %w", path, err)
		}
		if level == len(upper) {
			upper = append(upper, nil)
		}
		row := append(slices.Clone(upper[level]), perfect(hashes))
		if len(row) < tileWidth {
			upper[level] = row
			return upper, nil
		}
		upper[level] = []Hash{}
		hashes, n = row, n>>tileHeight
	}
}

// foldSides writes the sides of bundle n in as few objects as their limit allows.
// An earlier attempt may have cut them differently, before an erasure; its
// objects go first.
func (l *Log) foldSides(ctx context.Context, n int64, moved []entry) error {
	prefix := sidePrefix(n)
	old, err := l.storage.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("listing %s: %w", prefix, err)
	}
	for _, name := range old {
		if err := l.storage.Delete(ctx, prefix+name); err != nil {
			return fmt.Errorf("removing %s: %w", prefix+name, err)
		}
	}
	for first := 0; first < len(moved); {
		chunk, total := sideChunk{V: storageVersion}, 0
		for _, e := range moved[first:] {
			if e.side != nil {
				total += len(e.side.Body) + 2*SaltSize
			}
			if total > maxSideChunk && len(chunk.Sides) > 0 {
				break
			}
			chunk.Sides = append(chunk.Sides, e.side)
		}
		if err := l.putChunk(ctx, sideKey(prefix, first), chunk); err != nil {
			return err
		}
		first += len(chunk.Sides)
	}
	return nil
}

func sideKey(prefix string, first int) string { return fmt.Sprintf("%s%03d", prefix, first) }

func (l *Log) putChunk(ctx context.Context, key string, chunk sideChunk) error {
	value, err := encodeState(key, chunk)
	if err != nil {
		return err
	}
	if err := l.storage.Put(ctx, key, value); err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	return nil
}

// readChunk returns the side object that holds entry seq, with its key and the
// number of its first entry. It is empty when there is none.
func readChunk(ctx context.Context, s Storage, seq int64) (key string, first int64, chunk sideChunk, err error) {
	bundle := seq / tileWidth
	prefix := sidePrefix(bundle)
	names, err := s.List(ctx, prefix)
	if err != nil {
		return "", 0, sideChunk{}, fmt.Errorf("listing %s: %w", prefix, err)
	}
	best := -1
	for _, name := range names {
		at, err := strconv.Atoi(name)
		if err != nil || at < 0 || at >= tileWidth || sideKey(prefix, at) != prefix+name {
			return "", 0, sideChunk{}, fmt.Errorf("%w: unknown key %.80q", ErrCorrupt, prefix+name)
		}
		if int64(at) <= seq%tileWidth {
			best = max(best, at)
		}
	}
	if best < 0 {
		return "", 0, sideChunk{}, nil
	}
	key = sideKey(prefix, best)
	data, err := getFull(ctx, s, key)
	if err != nil {
		return "", 0, sideChunk{}, err
	}
	if err := decodeState(key, data, &chunk); err != nil {
		return "", 0, sideChunk{}, err
	}
	return key, bundle*tileWidth + int64(best), chunk, nil
}
