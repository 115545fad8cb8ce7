package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"sealed.dev/sealed/internal/sealed"
)

// A Storage keeps one log. It has the semantics of a Vault storage view.
// Implementations must be linearizable, must write a key whole or not at all, and
// must be safe for concurrent use. A write that returned an error may still have
// happened.
type Storage interface {
	// Get returns the value of key, or nil and no error when there is none.
	Get(ctx context.Context, key string) ([]byte, error)
	// Put sets the value of key.
	Put(ctx context.Context, key string, value []byte) error
	// Delete removes key. Removing an absent key is no error.
	Delete(ctx context.Context, key string) error
	// List returns the immediate children of a prefix that ends with "/"; the
	// names of folders end with "/".
	List(ctx context.Context, prefix string) ([]string, error)
}

const (
	journalPrefix = "journal/"
	foldKey       = "fold"

	maxJournal   = 512 << 10 // bytes of a journal object
	maxSideChunk = 256 << 10 // bytes of bodies in a side object, unless one alone is larger
	maxFoldRuns  = 4096      // counts of runs in the fold object

	storageVersion = 1
)

// journalKey returns the key of the journal object that begins with entry start.
func journalKey(start int64) string { return fmt.Sprintf("%s%020d", journalPrefix, start) }

func parseJournalKey(name string) (int64, error) {
	start, err := strconv.ParseInt(name, 10, 64)
	if err != nil || start < 0 || journalPrefix+name != journalKey(start) {
		return 0, fmt.Errorf("%w: unknown key %.80q", ErrCorrupt, journalPrefix+name)
	}
	return start, nil
}

// sidePrefix returns the folder of the side objects of entry bundle n.
func sidePrefix(n int64) string {
	return strings.Replace(tilePath(tlog.Tile{H: tileHeight, L: -1, N: n, W: tileWidth}), "tile/entries/", "side/", 1) + "/"
}

// A journal is one commit: the entries of a batch and the head after them.
type journal struct {
	V        int            `json:"v"`
	Start    int64          `json:"start"`
	Entries  []journalEntry `json:"entries"`
	Frontier frontier       `json:"frontier"` // after the last entry
	Head     []byte         `json:"head"`     // signed checkpoint after the last entry
}

// A journalEntry is one leaf; its side is absent when erased. Attach is not part
// of the log: see Attachment.
type journalEntry struct {
	Leaf   []byte      `json:"leaf"`
	Side   *Side       `json:"side,omitempty"`
	Attach *Attachment `json:"attach,omitempty"`
}

// size returns an upper bound of the bytes that e adds to a journal object.
func (e journalEntry) size() int {
	n := len(e.Leaf) + 128
	if e.Side != nil {
		n += len(e.Side.Salt) + len(e.Side.Body)
	}
	if e.Attach != nil {
		n += len(e.Attach.Key) + len(e.Attach.Value) + 32
	}
	return n/3*4 + 8
}

// A sideChunk holds the sides of consecutive entries of one bundle. Its key ends
// in the place of its first entry in the bundle.
type sideChunk struct {
	V     int     `json:"v"`
	Sides []*Side `json:"sides"` // nil when erased
}

// A foldState says what has left the journal. Written last, it is the commit of
// a fold.
type foldState struct {
	V     int              `json:"v"`
	Size  int64            `json:"size"`  // a multiple of 256: entries in full tiles
	Upper [][]Hash         `json:"upper"` // right-most partial tiles, from level 1 up
	Runs  map[string]int64 `json:"runs"`  // entries of the runs still open
}

// decodeState reads one of the objects above. Unknown members are refused: they
// come from a newer version, which knew why it wrote them.
func decodeState(key string, data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: %s does not parse", ErrCorrupt, key)
	}
	return nil
}

// encodeState is the inverse of decodeState.
func encodeState(key string, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", key, err)
	}
	return data, nil
}

// upperFrontier returns the frontier of a tree of size entries, a multiple of
// 256, from its right-most partial tiles.
func upperFrontier(size int64, upper [][]Hash) (frontier, error) {
	var f frontier
	for i := len(upper) - 1; i >= 0; i-- {
		want := int(size >> (tileHeight * (i + 1)) % tileWidth)
		hashes := upper[i]
		if len(hashes) != want {
			return nil, fmt.Errorf("%w: level %d has %d hashes, want %d", ErrCorrupt, i+1, len(hashes), want)
		}
		for bit := tileWidth / 2; bit > 0; bit /= 2 {
			if want&bit != 0 {
				f = append(f, perfect(hashes[:bit]))
				hashes = hashes[bit:]
			}
		}
	}
	if size%tileWidth != 0 || size>>(tileHeight*(len(upper)+1)) != 0 {
		return nil, fmt.Errorf("%w: %s does not fit its size", ErrCorrupt, foldKey)
	}
	return f, nil
}

// openRuns returns the counts to keep across a restart: at most maxFoldRuns, the
// highest first. The budget is a guard against floods, not a meter, so that runs
// with few entries may start again from zero.
func openRuns(counts map[string]int64) map[string]int64 {
	runs := make([]string, 0, len(counts))
	for run := range counts {
		runs = append(runs, run)
	}
	sort.Slice(runs, func(i, j int) bool {
		if counts[runs[i]] != counts[runs[j]] {
			return counts[runs[i]] > counts[runs[j]]
		}
		return runs[i] < runs[j]
	})
	kept := map[string]int64{}
	for _, run := range runs[:min(len(runs), maxFoldRuns)] {
		kept[run] = counts[run]
	}
	return kept
}

var (
	// ErrCorrupt says that the log's storage holds what no log has written. The
	// log then refuses to append.
	ErrCorrupt = errors.New("log storage is corrupt")
	// ErrRollback says that storage holds less than, or another history than, what
	// this process had acknowledged. The log then refuses to append.
	ErrRollback = errors.New("log storage went back")
	// ErrConflict says that another writer has been at work. The log reloads before
	// it appends again.
	// It matches sealed.ErrConflict too.
	ErrConflict = fmt.Errorf("another writer appended to the log: %w", sealed.ErrConflict)
	// ErrNotFound says that the log does not hold the entry or tile. It matches
	// sealed.ErrNotFound too.
	ErrNotFound = fmt.Errorf("not in the log: %w", sealed.ErrNotFound)
	// ErrErased says that the body and salt of an entry have been erased.
	ErrErased = errors.New("entry is erased")
	// ErrBudget says that a run has used up its entries.
	ErrBudget = errors.New("run is over its entry budget")
	// ErrGaveUp says that a call ended before its turn to write had come: nothing
	// of it is in the log.
	ErrGaveUp = errors.New("gave up waiting for the log")
	// ErrEvent says that an event cannot be logged as it is. It matches
	// sealed.ErrInvalid too.
	ErrEvent = fmt.Errorf("event refused: %w", sealed.ErrInvalid)
)
