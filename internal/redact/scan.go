package redact

import (
	"bufio"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
)

const maxInflated = 1 << 30

// Scan reads r to its end and reports which values it holds, in all forms, changing nothing. The stream of the counts is "content", and "inflated" for what was
// found inside a zlib stream (RFC 1950), such as a loose git object. A live match at the end is counted in the form partial, as a Writer would mask it.
// Errors are those of r, ErrWiped, and ErrInflated when the content inflates to more than 1 GiB; the counts up to there are returned too.
// A zlib stream that is damaged is scanned up to the damage.
func Scan(r io.Reader, set *Set) ([]Count, error) {
	raw, inner := newStream(set), newStream(set)
	raw.mute, inner.mute = true, true
	in := &tap{src: bufio.NewReaderSize(r, piece), s: raw}
	err := in.inflate(inner)
	if err == nil {
		_, err = io.Copy(io.Discard, in)
	}
	err = errors.Join(err, raw.close(), inner.close())
	counts := append(raw.report("content"), inner.report("inflated")...)
	if err != nil {
		return counts, fmt.Errorf("scanning for values: %w", err)
	}
	return counts, nil
}

// tap feeds a stream with all that is read through it, and remembers why reading failed.
type tap struct {
	src *bufio.Reader
	s   *stream
	err error
}

func (t *tap) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	n, err := t.src.Read(p)
	if e := t.s.feed(p[:n]); e != nil {
		err = e
	}
	if err != nil && !errors.Is(err, io.EOF) {
		t.err = err
	}
	return n, err
}

// inflate feeds inner with what the source inflates to, if it begins like a zlib stream.
func (t *tap) inflate(inner *stream) error {
	if h, _ := t.src.Peek(2); len(h) < 2 || h[0]&0x0f != 8 || (int(h[0])<<8|int(h[1]))%31 != 0 {
		return nil
	}
	z, err := zlib.NewReader(t)
	if err != nil {
		return t.err
	}
	buf := make([]byte, piece/2)
	for total := 0; ; {
		n, err := z.Read(buf)
		if e := inner.feed(buf[:n]); e != nil {
			return e
		}
		if total += n; total > maxInflated {
			return ErrInflated
		}
		if err != nil {
			return t.err
		}
	}
}
