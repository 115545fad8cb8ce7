package opabundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The names of the format. OPA matches .manifest by suffix and data files by
// base name; here each is one exact name, and every other file is refused.
const (
	manifestName   = ".manifest"
	signaturesName = ".signatures.json"
	dataName       = "data.json"
	regoSuffix     = ".rego"
)

// ASCII only: no two names differ by Unicode normalization, and no name means
// anything to a shell or a file system.
var segmentRE = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// A file is one entry of a bundle: a relative, canonical name and its bytes.
type file struct {
	name string
	data []byte
}

// readArchive returns the files of a bundle in archive order. All bytes are
// untrusted. Errors wrap ErrMalformed.
func readArchive(raw []byte, limits Limits) ([]file, error) {
	files, err := readTarGz(raw, limits)
	if err != nil {
		return nil, fmt.Errorf("reading archive: %w: %w", ErrMalformed, err)
	}
	return files, nil
}

func readTarGz(raw []byte, limits Limits) ([]file, error) {
	if int64(len(raw)) > limits.Compressed {
		return nil, fmt.Errorf("%d bytes, limit %d", len(raw), limits.Compressed)
	}
	src := bytes.NewReader(raw) // an io.ByteReader: gzip reads not one byte beyond its end
	zr, err := gzip.NewReader(src)
	if err != nil {
		return nil, err
	}
	zr.Multistream(false)
	// Headers, padding and files count. A tar header takes 512 bytes, so files
	// that the limits allow always fit.
	stream := &io.LimitedReader{R: zr, N: limits.Uncompressed + int64(limits.Files)*2048 + 1}
	files, err := readTar(stream, limits)
	if err != nil {
		if stream.N <= 0 {
			return nil, fmt.Errorf("more than %d bytes uncompressed", limits.Uncompressed)
		}
		return nil, err
	}
	// Another tar reader might go on after the end mark, or after the first
	// gzip member. Nothing may follow for it to find.
	rest, err := io.ReadAll(stream)
	if err != nil {
		return nil, err
	}
	if stream.N <= 0 || len(bytes.Trim(rest, "\x00")) > 0 || src.Len() > 0 {
		return nil, errors.New("data after the end")
	}
	return files, nil
}

func readTar(r io.Reader, limits Limits) ([]file, error) {
	var files []file
	seen := map[string]bool{} // by lower-case name
	left := limits.Uncompressed
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg {
			return nil, fmt.Errorf("entry %q: not a regular file", h.Name)
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return nil, err
		}
		if low := strings.ToLower(name); seen[low] {
			return nil, fmt.Errorf("entry %q: duplicate", h.Name)
		} else {
			seen[low] = true
		}
		if len(files) == limits.Files {
			return nil, fmt.Errorf("more than %d files", limits.Files)
		}
		// h.Size is a claim, and a sparse entry yields more bytes than the
		// stream holds: count what is read.
		data, err := io.ReadAll(io.LimitReader(tr, left+1))
		if err != nil {
			return nil, err
		}
		if left -= int64(len(data)); left < 0 {
			return nil, fmt.Errorf("more than %d bytes uncompressed", limits.Uncompressed)
		}
		files = append(files, file{name: name, data: data})
	}
}

// cleanName accepts the files of the format. One leading slash is dropped:
// opa build writes all names so, and nothing is ever written to disk.
func cleanName(raw string) (string, error) {
	name := strings.TrimPrefix(raw, "/")
	if name == "" || len(name) > 512 || path.Clean(name) != name {
		return "", fmt.Errorf("entry %q: not a canonical path", raw)
	}
	for _, seg := range strings.Split(name, "/") {
		if !segmentRE.MatchString(seg) || seg == ".." {
			return "", fmt.Errorf("entry %q: forbidden name", raw)
		}
	}
	if name == manifestName || name == signaturesName || path.Base(name) == dataName || strings.HasSuffix(name, regoSuffix) {
		return name, nil
	}
	if path.Base(name) == "patch.json" {
		return "", fmt.Errorf("entry %q: a delta bundle cannot be signed", raw)
	}
	return "", fmt.Errorf("entry %q: not part of the format", raw)
}

// writeArchive is deterministic: sorted names, no times, no owners. The bytes
// also depend on the compressor, that is on the Go version.
func writeArchive(files []file) ([]byte, error) {
	var buf bytes.Buffer
	zw, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(zw)
	for _, f := range slices.SortedFunc(slices.Values(files), func(a, b file) int { return strings.Compare(a.name, b.name) }) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.data)), ModTime: time.Unix(0, 0)}
		if err := tw.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("writing %s: %w", f.name, err)
		}
		if _, err := tw.Write(f.data); err != nil {
			return nil, fmt.Errorf("writing %s: %w", f.name, err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// without returns the files but the one of that name, and that one's bytes.
func without(files []file, name string) (rest []file, data []byte, found bool) {
	for _, f := range files {
		if f.name == name {
			data, found = f.data, true
			continue
		}
		rest = append(rest, f)
	}
	return rest, data, found
}
