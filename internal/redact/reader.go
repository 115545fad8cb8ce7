package redact

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Reader redacts what it reads. It is not safe for concurrent use.
type Reader struct {
	src  io.Reader
	name string
	s    *stream
	in   []byte
	out  []byte // not read yet
	err  error  // to return after out
}

// NewReader returns a Reader of src with the guarantee of a Writer. The name of the stream appears in the counts. With a nil set nothing passes.
func NewReader(src io.Reader, set *Set, stream string) *Reader {
	return &Reader{src: src, name: stream, s: newStream(set), in: make([]byte, piece/2)}
}

// NewSteadyReader is NewReader with the hold-back of [NewSteadyWriter]: for what is read on behalf of somebody who may see what comes of it.
func NewSteadyReader(src io.Reader, set *Set, stream string) *Reader {
	r := NewReader(src, set, stream)
	r.s.steady = true
	return r
}

// Read reads redacted bytes. The end of src, and likewise an error of src, ends the stream: a held live match is masked or passed on as by Writer.Close, and
// then the error is returned. After ErrWiped nothing is.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.fill()
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// Counts returns the masks put out so far, ordered by key and form.
func (r *Reader) Counts() []Count { return r.s.report(r.name) }

// fill reads once from src.
func (r *Reader) fill() {
	n, err := r.src.Read(r.in)
	step, before := error(nil), []byte(nil)
	if n > 0 {
		step = r.s.feed(r.in[:n])
	}
	if err != nil && step == nil {
		if n > 0 {
			before = bytes.Clone(r.s.out) // close takes it back
		}
		step = r.s.close()
		clear(r.in)
		r.err = err
		if !errors.Is(err, io.EOF) {
			r.err = fmt.Errorf("reading %s to redact: %w", r.name, err)
		}
	}
	if step != nil {
		r.s.out, before = nil, nil
		r.err = fmt.Errorf("redacting %s: %w", r.name, step)
	}
	if r.out = r.s.out; len(before) > 0 {
		r.out = append(before, r.out...)
	}
}

// Bytes returns p redacted as one closed stream, in memory of its own. It returns nil if the set is nil or wiped.
func Bytes(p []byte, set *Set) []byte {
	var b bytes.Buffer
	w := NewWriter(&b, set, "bytes")
	if _, err := w.Write(p); err != nil {
		return nil
	}
	if err := w.Close(); err != nil {
		return nil
	}
	return b.Bytes()
}
