package audit

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/tlog"
)

// checkEntries reads every entry and rebuilds the tree from the leaves. It
// reports whether the tree is the one that the checkpoint signs; otherwise
// nothing else is worth checking.
func (v *verifier) checkEntries() bool {
	before := len(v.failures)
	rows := [][]Hash{nil} // rows[L] is the tile in the making at level L
	var peaks frontier
	for start := int64(0); start < v.size; start += tileWidth {
		n := start / tileWidth
		hashes, ok := v.checkBundle(n)
		if !ok {
			return false
		}
		for i, h := range hashes {
			peaks = peaks.add(start+int64(i), h)
		}
		rows[0] = hashes
		rows = v.checkFull(rows, n)
	}
	for level := 1; level < len(rows); level++ {
		if len(rows[level]) > 0 {
			v.checkTile(level, v.size>>(tileHeight*(level+1)), rows[level])
		}
	}
	if peaks.root() != v.report.Root && v.off&checkRoot == 0 {
		v.fail(noSeq, checkpointPath, errors.New("signs another tree than that of the entries"))
	}
	return len(v.failures) == before
}

// checkFull closes the tiles that bundle n completes, from the level above the
// leaves up.
func (v *verifier) checkFull(rows [][]Hash, n int64) [][]Hash {
	for level := 0; len(rows[level]) == tileWidth; level++ {
		if level > 0 {
			v.checkTile(level, n, rows[level])
		}
		if level+1 == len(rows) {
			rows = append(rows, nil)
		}
		rows[level+1] = append(rows[level+1], perfect(rows[level]))
		rows[level] = nil
		n >>= tileHeight
	}
	return rows
}

// checkTile compares a tile file above level 0 with the hashes it must have.
func (v *verifier) checkTile(level int, n int64, want []Hash) {
	path := tilePath(tlog.Tile{H: tileHeight, L: level, N: n, W: len(want)})
	data, err := v.read(path, tileWidth*tlog.HashSize)
	if err != nil {
		v.fail(noSeq, path, err)
		return
	}
	if string(data) != string(marshalHashes(want)) && v.off&checkHash == 0 {
		v.fail(noSeq, path, errors.New("is not the hash of the tiles below"))
	}
}

// checkBundle checks entry bundle n against its level-0 tile, which tells which
// entry was changed, and each of its entries. It returns the leaf hashes.
func (v *verifier) checkBundle(n int64) ([]Hash, bool) {
	width := widthIn(tlog.Tile{L: 0, N: n}, v.size)
	bundlePath := tilePath(tlog.Tile{H: tileHeight, L: -1, N: n, W: width})
	tile0 := tilePath(tlog.Tile{H: tileHeight, L: 0, N: n, W: width})
	raw, err := v.readBundle(bundlePath, width)
	if err != nil {
		v.fail(n*tileWidth+int64(len(raw)), bundlePath, err)
		return nil, false
	}
	var stored []Hash
	data, err := v.read(tile0, tileWidth*tlog.HashSize)
	if err == nil {
		stored, err = parseHashes(data)
	}
	if err == nil && len(stored) != width {
		err = fmt.Errorf("has %d hashes, want %d", len(stored), width)
	}
	if err != nil {
		v.fail(n*tileWidth, tile0, err)
		return nil, false
	}
	hashes := make([]Hash, width)
	for i, leaf := range raw {
		seq := n*tileWidth + int64(i)
		hashes[i] = tlog.RecordHash(leaf)
		if hashes[i] != stored[i] && v.off&checkHash == 0 {
			v.fail(seq, bundlePath, errors.New("does not hash to what "+tile0+" says"))
		}
		v.checkLeaf(seq, bundlePath, leaf)
	}
	return hashes, true
}

// readBundle returns the leaves of a bundle of the given width. With an error it
// returns those that come before what is wrong.
func (v *verifier) readBundle(path string, width int) ([][]byte, error) {
	data, err := v.read(path, maxBundleFile)
	if err != nil {
		return nil, err
	}
	raw, err := ParseBundle(data)
	if err != nil {
		return nil, err
	}
	if len(raw) != width {
		return raw[:min(len(raw), width)], fmt.Errorf("has %d entries, want %d", len(raw), width)
	}
	return raw, nil
}

// checkLeaf checks what one entry says of itself.
func (v *verifier) checkLeaf(seq int64, path string, raw []byte) {
	leaf, err := ParseLeaf(raw)
	if err != nil {
		v.fail(seq, path, err)
		return
	}
	if leaf.Seq != uint64(seq) && v.off&checkSeq == 0 {
		v.fail(seq, path, fmt.Errorf("says that it is entry %d", leaf.Seq))
	}
	if seq > 0 && leaf.Time.Before(v.last.Time) && v.off&checkTime == 0 {
		v.fail(seq, path, errors.New("is earlier than the entry before"))
	}
	v.last = leaf
	v.checkSide(seq, leaf)
}

// checkSide compares a side object with its leaf and notes what later checks need.
func (v *verifier) checkSide(seq int64, leaf Leaf) {
	path := sidePath(seq)
	data, err := v.read(path, 2*MaxBody)
	if errors.Is(err, fs.ErrNotExist) {
		v.missing[uint64(seq)] = leaf.Type
		return
	}
	var side Side
	if err == nil {
		side, err = ParseSide(data)
	}
	if err == nil && side.Digest() != leaf.Body && v.off&checkSide == 0 {
		err = errors.New("is not what the entry has the hash of")
	}
	if err != nil {
		v.fail(seq, path, err)
		return
	}
	if side.skewed() {
		v.report.Skewed = append(v.report.Skewed, uint64(seq))
	}
	if err := v.note(uint64(seq), leaf, side.Body); err != nil {
		v.fail(seq, path, err)
	}
}

// note keeps the facts of the entries that verification is about.
func (v *verifier) note(seq uint64, leaf Leaf, body []byte) error {
	if leaf.Type == TypeErased {
		target, err := erasedSeq(body)
		if err != nil || target >= seq {
			return errors.New("names no earlier entry")
		}
		v.named[target] = seq
		return nil
	}
	if leaf.Run == "" || leaf.Type != TypeClaimed && leaf.Type != TypeFinished {
		return nil
	}
	run := v.runs[leaf.Run]
	if run == nil {
		run = &runFacts{}
		v.runs[leaf.Run] = run
	}
	if leaf.Type == TypeClaimed {
		key, _ := member(body, "run_key")
		run.claims = append(run.claims, fact{seq, key})
		return nil
	}
	digest, _ := member(body, "record_sha256")
	run.finishes = append(run.finishes, fact{seq, digest})
	return nil
}
