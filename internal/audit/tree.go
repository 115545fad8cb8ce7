package audit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	maxLevel   = 6 // a tree of maxTree entries has no tile above

	checkpointPath = "checkpoint"
)

// emptyRoot is the root of the empty tree (RFC 6962 §2.1).
var emptyRoot = Hash(sha256.Sum256(nil))

// frontier is the compact range of a tree: the roots of its perfect subtrees
// from left to right, one for each bit of the tree's size.
type frontier []Hash

// add returns the frontier after one more leaf; size is that of the tree before.
// f keeps its value.
func (f frontier) add(size int64, leaf Hash) frontier {
	merge := bits.TrailingZeros64(^uint64(size))
	for range merge {
		leaf = tlog.NodeHash(f[len(f)-1], leaf)
		f = f[:len(f)-1]
	}
	return append(f[:len(f):len(f)], leaf)
}

// root returns the root of the tree.
func (f frontier) root() Hash {
	if len(f) == 0 {
		return emptyRoot
	}
	h := f[len(f)-1]
	for i := len(f) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f[i], h)
	}
	return h
}

// perfect returns the root of a perfect tree over hashes, a power of two of them.
func perfect(hashes []Hash) Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return tlog.NodeHash(perfect(hashes[:half]), perfect(hashes[half:]))
}

// tilePath returns the C2SP path of t. Level -1 is an entry bundle.
func tilePath(t tlog.Tile) string {
	path := strings.TrimPrefix(t.Path(), "tile/8/")
	if rest, ok := strings.CutPrefix(path, "data/"); ok {
		path = "entries/" + rest
	}
	return "tile/" + path
}

// parseTilePath reads a C2SP path, in its one allowed form.
func parseTilePath(path string) (tlog.Tile, error) {
	bad := fmt.Errorf("malformed tile path %.80q", path)
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(path) > 100 {
		return tlog.Tile{}, bad
	}
	if n, ok := strings.CutPrefix(rest, "entries/"); ok {
		rest = "data/" + n
	}
	t, err := tlog.ParseTilePath("tile/8/" + rest)
	if err != nil || t.L > maxLevel || t.N < 0 || t.N > maxTree || tilePath(t) != path {
		return tlog.Tile{}, bad
	}
	return t, nil
}

// widthIn returns the width that the tile of t's level and number has in a tree
// of the given size, 0 if it has none.
func widthIn(t tlog.Tile, size int64) int {
	have := size>>(tileHeight*max(t.L, 0)) - t.N<<tileHeight
	return int(min(max(have, 0), tileWidth))
}

// parseHashes splits the bytes of a tile.
func parseHashes(data []byte) ([]Hash, error) {
	if len(data)%tlog.HashSize != 0 || len(data) > tileWidth*tlog.HashSize {
		return nil, errors.New("tile is cut off or too long")
	}
	hashes := make([]Hash, len(data)/tlog.HashSize)
	for i := range hashes {
		copy(hashes[i][:], data[i*tlog.HashSize:])
	}
	return hashes, nil
}

// marshalHashes returns the bytes of a tile.
func marshalHashes(hashes []Hash) []byte {
	out := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out
}
