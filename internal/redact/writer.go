package redact

import (
	"fmt"
	"io"
	"sync"
)

// Writer redacts what is written to it and passes it on. It is safe for concurrent use; concurrent writes go out whole, one after the other.
type Writer struct {
	mu     sync.Mutex
	dst    io.Writer
	name   string
	s      *stream
	err    error
	closed bool
}

// NewWriter returns a Writer to dst. The name of the stream, such as "stdout", appears in the counts. With a nil set nothing passes.
func NewWriter(dst io.Writer, set *Set, stream string) *Writer {
	return &Writer{dst: dst, name: stream, s: newStream(set)}
}

// NewSteadyWriter returns a Writer for a stream whose reader may choose what is in it and must not learn the values, such as an answer that an agent has an
// upstream reflect. What an ordinary Writer holds back, and for how long, says whether the last bytes begin a value, so that it could be guessed letter by
// letter. A steady one tells nothing but whole matches:
//
//   - it always holds back the same number of bytes, until Close or EndRecord: one less than the longest form of a value, which is at most about
//     six bytes for each byte of the longest value or piece of one. The number changes only when the set grows;
//   - Flush does nothing;
//   - a live partial match at the end goes out as it is and not as a mask.
//
// A folded match whose characters are so far apart that it is longer than the hold-back may keep its beginning; the rest of it is masked. So may a match that
// EndRecord has cut. That a whole value was found shows, as it does in every stream; how long the search takes may differ by nanoseconds for each byte.
func NewSteadyWriter(dst io.Writer, set *Set, stream string) *Writer {
	w := NewWriter(dst, set, stream)
	w.s.steady = true
	return w
}

// EndRecord of a steady Writer passes on everything. Call it where the framing of the stream, and not a value in it, decides: at the end of an event that its
// reader waits for. On any other Writer it is Flush.
func (w *Writer) EndRecord() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	return w.do(w.s.endRecord)
}

// Write takes all of p, or none and returns an error: the error of dst, ErrWiped or ErrClosed. An error of dst or ErrWiped stays for all later calls. Write
// blocks while dst blocks, and keeps no reference to p.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, ErrClosed
	}
	for rest := p; ; {
		n := min(len(rest), piece)
		if err := w.do(func() error { return w.s.feed(rest[:n]) }); err != nil {
			return 0, err
		}
		if rest = rest[n:]; len(rest) == 0 {
			return len(p), nil
		}
	}
}

// Flush passes on everything that is not part of a live match, and of a live match its first three characters, so that a prompt is seen: nearly every character
// begins some form of some value. What goes beyond them stays held, and is masked when the match is complete, however often Flush is called. Nothing of a
// value shorter than 8 bytes is passed on. A backspace after Flush can no longer mend a match that was broken before it. Nothing calls Flush but the user of
// the Writer. A steady Writer passes on nothing.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	return w.do(w.s.flush)
}

// Close passes on what is held. A live match of at least min(8, half) bytes of a needle becomes a mask, but not in a steady Writer; a shorter one goes out as
// it is. Close does not close dst. A second Close does nothing and returns nil.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	defer w.s.wipe()
	return w.do(w.s.close)
}

// Counts returns the masks passed on so far, ordered by key and form.
func (w *Writer) Counts() []Count {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.s.report(w.name)
}

// do runs one step of the stream and passes on what it put out.
func (w *Writer) do(step func() error) error {
	if w.err != nil {
		return w.err
	}
	if w.err = step(); w.err != nil {
		w.err = fmt.Errorf("redacting %s: %w", w.name, w.err)
		return w.err
	}
	if len(w.s.out) == 0 {
		return nil
	}
	n, err := w.dst.Write(w.s.out)
	if err == nil && n < len(w.s.out) {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.err = fmt.Errorf("writing redacted %s: %w", w.name, err)
	}
	return w.err
}
