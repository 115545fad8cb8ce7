package sandboxinit

import (
	"bufio"
	"bytes"
	"io"
	"io/fs"
	"time"

	"sealed.dev/sealed/internal/redact"
)

// scanContent looks for values in the content of one file of the workspace,
// and, if that is a pack of Git, in each of its objects. It reports what it
// found and whether the file must not go back. A pack that can't be read to its
// end, such as one of a fetch that was killed, must not; it does not hold up
// the others.
func scanContent(src io.Reader, set *redact.Set) (counts []redact.Count, bad bool, err error) {
	in := bufio.NewReader(src)
	if head, _ := in.Peek(8); !bytes.HasPrefix(head, []byte("PACK\x00\x00\x00")) { // an error comes again
		counts, err = redact.Scan(in, set)
		return counts, len(counts) > 0, err
	}
	findings, err := redact.Tree(oneFile{in}, set)
	for _, f := range findings {
		counts = append(counts, f.Counts...)
	}
	return counts, err != nil || len(counts) > 0, nil
}

// oneFile is a file system that is a single file, which can be read once.
type oneFile struct{ src io.Reader }

func (o oneFile) Open(string) (fs.File, error) { return o, nil }
func (o oneFile) Stat() (fs.FileInfo, error)   { return oneInfo{}, nil }
func (o oneFile) Read(p []byte) (int, error)   { return o.src.Read(p) }
func (oneFile) Close() error                   { return nil }

// oneInfo describes a regular file of which nothing else is known.
type oneInfo struct{}

func (oneInfo) Name() string       { return "." }
func (oneInfo) Size() int64        { return 0 }
func (oneInfo) Mode() fs.FileMode  { return 0 }
func (oneInfo) ModTime() time.Time { return time.Time{} }
func (oneInfo) IsDir() bool        { return false }
func (oneInfo) Sys() any           { return nil }
