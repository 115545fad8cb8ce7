package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// checkPins demands that every checkpoint seen earlier is a prefix.
func (v *verifier) checkPins() {
	v.report.FirstSeen = true
	for _, pin := range [][]byte{v.pin, v.opts.Pinned} {
		if pin == nil || v.off&checkPin != 0 {
			continue
		}
		v.report.FirstSeen = false
		c, err := v.checkPrefix(pin)
		if err != nil {
			v.fail(noSeq, checkpointPath, fmt.Errorf("comparing with the pinned checkpoint: %w", err))
			continue
		}
		v.report.PinnedSize = max(v.report.PinnedSize, c.Size)
	}
}

// checkPrefix verifies a checkpoint of this log, by the present or a previous key,
// and that its tree is a prefix of the export's.
func (v *verifier) checkPrefix(msg []byte) (Checkpoint, error) {
	var c Checkpoint
	var err error
	for _, key := range append([]note.Verifier{v.log}, v.previous...) {
		if c, err = OpenCheckpoint(msg, key); err == nil {
			break
		}
	}
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != v.report.Origin {
		return Checkpoint{}, fmt.Errorf("%w: origins %q and %q", ErrInconsistent, c.Origin, v.report.Origin)
	}
	if c.Size > uint64(v.size) {
		return Checkpoint{}, fmt.Errorf("%w: it had %d entries, the export has %d", ErrInconsistent, c.Size, v.size)
	}
	hashes := tlog.TileHashReader(tlog.Tree{N: v.size, Hash: v.report.Root}, tileFiles{v})
	root := emptyRoot
	if c.Size > 0 {
		if root, err = tlog.TreeHash(int64(c.Size), hashes); err != nil {
			return Checkpoint{}, err
		}
	}
	if root != c.Root {
		return Checkpoint{}, fmt.Errorf("%w: its %d entries are not the first of the export", ErrInconsistent, c.Size)
	}
	return c, nil
}

// tileFiles implements tlog.TileReader over the export. tlog authenticates what
// it reads.
type tileFiles struct{ v *verifier }

func (t tileFiles) Height() int { return tileHeight }

func (t tileFiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, tile := range tiles {
		data, err := t.v.read(tilePath(tile), tileWidth*tlog.HashSize)
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}

func (t tileFiles) SaveTiles([]tlog.Tile, [][]byte) {}

// readPin returns the pinned checkpoint, nil if there is none yet.
func readPin(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading pinned checkpoint: %w", err)
	}
	if len(data) == 0 {
		return nil, errors.New("reading pinned checkpoint: it is empty")
	}
	return data, nil
}

// writePin replaces the pinned checkpoint, whole or not at all.
func writePin(path string, head []byte) error {
	if path == "" {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".pin-*")
	if err != nil {
		return fmt.Errorf("pinning checkpoint: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(head)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("pinning checkpoint: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("pinning checkpoint: %w", err)
	}
	return nil
}
