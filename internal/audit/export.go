package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"
)

// A Reader is a log to export: a *Log, or a client of one. Side matches ErrErased
// when the entry has no body and salt any more.
type Reader interface {
	Checkpoint(ctx context.Context) ([]byte, error)
	ReadTile(ctx context.Context, path string) ([]byte, error)
	Side(ctx context.Context, seq uint64) (Side, error)
}

// WriteDir exports the log that r reads, at one checkpoint, into dir, which must
// be absent or empty. It verifies nothing: VerifyDir does. The records of runs
// are not part of a log; WriteRecord adds them. Files are readable by their owner
// only. After an error dir holds an incomplete export. An entry that is erased
// while the export runs is named by an entry past its checkpoint, so that VerifyDir
// refuses the export: make it again.
func WriteDir(ctx context.Context, r Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("exporting log: %w", err)
	}
	if there, err := os.ReadDir(dir); err != nil || len(there) > 0 {
		return fmt.Errorf("exporting log: %s is not an empty directory: %w", dir, errors.Join(err, fs.ErrExist))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("exporting log: %w", err)
	}
	defer root.Close()
	head, err := r.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("exporting checkpoint: %w", err)
	}
	c, err := checkpointText(head)
	if err != nil {
		return fmt.Errorf("exporting checkpoint: %w", err)
	}
	size := int64(c.Size)
	for level := -1; level <= maxLevel; level++ {
		if err := exportLevel(ctx, r, root, level, size); err != nil {
			return err
		}
	}
	for seq := range size {
		if err := exportSide(ctx, r, root, seq); err != nil {
			return err
		}
	}
	// Last, so that an export that was cut off has no head.
	return writeFile(root, checkpointPath, head)
}

// exportLevel writes the tiles of one level, or the entry bundles for level -1.
func exportLevel(ctx context.Context, r Reader, root *os.Root, level int, size int64) error {
	for n := int64(0); ; n++ {
		t := tlog.Tile{H: tileHeight, L: level, N: n}
		if t.W = widthIn(t, size); t.W == 0 {
			return nil
		}
		path := tilePath(t)
		data, err := r.ReadTile(ctx, path)
		if err != nil {
			return fmt.Errorf("exporting %s: %w", path, err)
		}
		if err := writeFile(root, path, data); err != nil {
			return err
		}
	}
}

func exportSide(ctx context.Context, r Reader, root *os.Root, seq int64) error {
	side, err := r.Side(ctx, uint64(seq))
	if errors.Is(err, ErrErased) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("exporting entry %d: %w", seq, err)
	}
	data, err := side.Marshal()
	if err != nil {
		return fmt.Errorf("exporting entry %d: %w", seq, err)
	}
	return writeFile(root, sidePath(seq), data)
}

// WriteRecord adds the record of a run to an export.
func WriteRecord(dir, run string, envelope []byte) error {
	if run == "" || checkRun(run) != nil {
		return errors.New("exporting record: run is not a ULID")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("exporting record: %w", err)
	}
	defer root.Close()
	return writeFile(root, recordPath(run), envelope)
}

// writeFile writes a new file below root, with the folders that it is in.
func writeFile(root *os.Root, path string, data []byte) error {
	if err := root.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("exporting %s: %w", path, err)
	}
	f, err := root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("exporting %s: %w", path, err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("exporting %s: %w", path, err)
	}
	return nil
}
