package audit

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// A view is an immutable state of the log, read without locks. Entries below
// folded are in tiles in storage, the rest in memory.
type view struct {
	size   int64
	head   []byte // signed checkpoint for size
	peaks  frontier
	last   time.Time // of the newest entry
	folded int64     // multiple of 256
	upper  [][]Hash  // right-most partial tiles for folded, from level 1 up
	tail   []entry   // entries folded … size-1
}

// An entry is one in memory. Its side is nil when erased; few have an attachment.
type entry struct {
	leaf   Leaf
	raw    []byte
	hash   Hash
	side   *Side
	attach *Attachment
}

// A treeReader reads hashes of a view. It is for one goroutine and one call: it
// keeps the tiles that it has read.
type treeReader struct {
	ctx     context.Context
	storage Storage
	view    *view
	tiles   map[string][]byte
}

func newTreeReader(ctx context.Context, s Storage, v *view) *treeReader {
	return &treeReader{ctx: ctx, storage: s, view: v, tiles: map[string][]byte{}}
}

// ReadHashes implements tlog.HashReader.
func (r *treeReader) ReadHashes(indexes []int64) ([]Hash, error) {
	hashes := make([]Hash, len(indexes))
	for i, x := range indexes {
		level, n := tlog.SplitStoredHashIndex(x)
		h, err := r.node(level, n)
		if err != nil {
			return nil, err
		}
		hashes[i] = h
	}
	return hashes, nil
}

// node returns the root of the perfect subtree n of 1<<level leaves.
func (r *treeReader) node(level int, n int64) (Hash, error) {
	v := r.view
	lo, hi := n<<level, (n+1)<<level
	switch {
	case hi > v.size:
		return Hash{}, fmt.Errorf("reading hash %d of level %d: %w", n, level, ErrNotFound)
	case lo >= v.folded && level == 0:
		return v.tail[lo-v.folded].hash, nil
	case hi > v.folded: // at least partly in memory
		left, err := r.node(level-1, 2*n)
		if err != nil {
			return Hash{}, err
		}
		right, err := r.node(level-1, 2*n+1)
		if err != nil {
			return Hash{}, err
		}
		return tlog.NodeHash(left, right), nil
	}
	hashes, err := r.foldedTile(level/tileHeight, hi>>(level/tileHeight*tileHeight)-1)
	if err != nil {
		return Hash{}, err
	}
	level %= tileHeight
	first := n << level % tileWidth
	return perfect(hashes[first : first+1<<level]), nil
}

// foldedTile returns the folded part of the tile at a level that holds hash i.
func (r *treeReader) foldedTile(level int, i int64) ([]Hash, error) {
	n := i >> tileHeight
	if level > 0 && (n+1)<<tileHeight > r.view.folded>>(tileHeight*level) {
		return r.view.upper[level-1], nil
	}
	path := tilePath(tlog.Tile{H: tileHeight, L: level, N: n, W: tileWidth})
	data, ok := r.tiles[path]
	if !ok {
		var err error
		if data, err = getFull(r.ctx, r.storage, path); err != nil {
			return nil, err
		}
		r.tiles[path] = data
	}
	hashes, err := parseHashes(data)
	if err != nil || len(hashes) != tileWidth {
		return nil, fmt.Errorf("%w: %s is not a full tile", ErrCorrupt, path)
	}
	return hashes, nil
}

// getFull reads an object that a fold has written.
func getFull(ctx context.Context, s Storage, key string) ([]byte, error) {
	data, err := s.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	if data == nil {
		return nil, fmt.Errorf("%w: %s is missing", ErrCorrupt, key)
	}
	return data, nil
}

// leaves returns the raw leaves of entry bundle n that the view has.
func (v *view) leaves(ctx context.Context, s Storage, n int64) ([][]byte, error) {
	if start := n * tileWidth; start >= v.folded {
		var raw [][]byte
		for i := start; i < min(start+tileWidth, v.size); i++ {
			raw = append(raw, v.tail[i-v.folded].raw)
		}
		return raw, nil
	}
	path := tilePath(tlog.Tile{H: tileHeight, L: -1, N: n, W: tileWidth})
	data, err := getFull(ctx, s, path)
	if err != nil {
		return nil, err
	}
	raw, err := ParseBundle(data)
	if err != nil || len(raw) != tileWidth {
		return nil, fmt.Errorf("%w: %s is not a full bundle", ErrCorrupt, path)
	}
	return raw, nil
}

// tile returns the bytes of a tile or entry bundle.
func (v *view) tile(ctx context.Context, s Storage, t tlog.Tile) ([]byte, error) {
	if t.W > widthIn(t, v.size) {
		return nil, fmt.Errorf("reading %s: %w", tilePath(t), ErrNotFound)
	}
	if t.L < 0 {
		raw, err := v.leaves(ctx, s, t.N)
		if err != nil {
			return nil, err
		}
		return marshalBundle(raw[:t.W]), nil
	}
	return tlog.ReadTileData(t, newTreeReader(ctx, s, v))
}
