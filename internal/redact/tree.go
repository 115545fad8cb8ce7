package redact

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// Finding is a file that holds values.
type Finding struct {
	Path   string // redacted, as a name can be a value too
	Counts []Count
}

// Tree looks for values in all files of a tree and changes nothing: in their content as [Scan] does, in every object of Git's packs, in their names (stream
// "name") and in the targets of symbolic links (stream "link"), which it does not follow. Use it with the FS of an [os.Root]. It goes on after errors and
// returns all of them with what it found: a file that could not be read may hold anything.
//
// In a pack, an object that is stored as the difference to another is looked at as that difference: a value of which it copies a part is not found there,
// but in the object that it was copied from, if that has all of it.
func Tree(fsys fs.FS, set *Set) ([]Finding, error) {
	if _, err := set.compiled(); err != nil {
		return nil, fmt.Errorf("scanning tree: %w", err)
	}
	var found []Finding
	var errs []error
	_ = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		counts := count(set, []byte(path), "name")
		if err == nil {
			var more []Count
			more, err = scanEntry(fsys, path, d, set)
			counts = append(counts, more...)
		}
		shown := string(Bytes([]byte(path), set))
		if err != nil {
			errs = append(errs, fmt.Errorf("scanning %s: %w", shown, bare(err)))
		}
		if len(counts) > 0 {
			found = append(found, Finding{Path: shown, Counts: counts})
		}
		return nil
	})
	return found, errors.Join(errs...)
}

// bare keeps a path, which may hold a value, out of an error.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// count redacts p as one closed stream and returns what it held.
func count(set *Set, p []byte, name string) []Count {
	s := newStream(set)
	s.mute = true
	if _, err := s.some(p); err != nil {
		return nil
	}
	_ = s.close()
	return s.report(name)
}

func scanEntry(fsys fs.FS, path string, d fs.DirEntry, set *Set) ([]Count, error) {
	if d.Type()&fs.ModeSymlink != 0 {
		target, err := fs.ReadLink(fsys, path)
		return count(set, []byte(target), "link"), err
	}
	if !d.Type().IsRegular() {
		return nil, nil
	}
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	src := bufio.NewReaderSize(f, piece)
	if head, _ := src.Peek(8); bytes.HasPrefix(head, []byte("PACK\x00\x00\x00")) {
		return scanPack(src, set)
	}
	return Scan(src, set)
}

// Kinds of objects in a pack whose data comes after a reference to another object (gitformat-pack).
const (
	packOffsetDelta = 6
	packNameDelta   = 7
)

// scanPack reads a pack of version 2 or 3 (gitformat-pack), inflates every object, and reports the stream "packed".
func scanPack(src *bufio.Reader, set *Set) ([]Count, error) {
	var head [12]byte
	if _, err := io.ReadFull(src, head[:]); err != nil {
		return nil, err
	}
	s := newStream(set)
	s.mute = true
	buf, left := make([]byte, piece/2), int64(maxInflated)
	for range binary.BigEndian.Uint32(head[8:]) {
		if err := packHeader(src); err != nil {
			return s.report("packed"), err
		}
		z, err := zlib.NewReader(src)
		if err != nil {
			return s.report("packed"), err
		}
		for err == nil {
			var n int
			n, err = z.Read(buf)
			if left -= int64(n); left < 0 {
				return s.report("packed"), ErrInflated
			}
			if e := s.feed(buf[:n]); e != nil {
				return nil, e
			}
		}
		if !errors.Is(err, io.EOF) {
			return s.report("packed"), err
		}
		if _, err := s.all(nil); err != nil {
			return nil, err
		}
	}
	return s.report("packed"), nil
}

// packHeader reads type, size and base of an object, of which only the length matters.
func packHeader(src *bufio.Reader) error {
	c, err := src.ReadByte()
	kind := c >> 4 & 7
	for err == nil && c&0x80 != 0 {
		c, err = src.ReadByte()
	}
	switch {
	case err != nil:
		return err
	case kind == packNameDelta:
		_, err = src.Discard(20)
	case kind == packOffsetDelta:
		for c = 0x80; err == nil && c&0x80 != 0; {
			c, err = src.ReadByte()
		}
	}
	return err
}
