package sandboxinit

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"sync"

	"sealed.dev/sealed/internal/redact"
)

// maxEventLine bounds a line that is read as an event, in bytes. A longer one is
// redacted as bytes, and so is a first line that does not end before.
const maxEventLine = 256 << 10

// A redactor is a redact.Writer, or an eventStream.
type redactor interface {
	io.Writer
	Flush() error
	Close() error
	Counts() []redact.Count
}

// An eventStream redacts output that may be a stream of JSON events. Agents cut
// a text in pieces, one in each event, so that a value is whole in none of them;
// redact.JSON joins them (A11).
//
// Output is one of events if the agent's arguments say so, or if its first line
// is a JSON object; otherwise it is bytes, as by a redact.Writer. Of events, a
// line goes out when it is whole, and nothing waits for a timer. A line that is
// too long is redacted as bytes, by itself: what lies across its ends is left to
// the second look.
type eventStream struct {
	dst  io.Writer
	set  *redact.Set
	name string

	mu     sync.Mutex
	known  bool           // that these are events
	line   []byte         // not ended
	held   int            // bytes of server-sent events that wait for their end
	events *redact.JSON   // nil before the first event, and after a long line
	bytes  *redact.Writer // for all, unless known; for the rest of a long line
	before []redact.Count // of the parts that are closed
	closed bool
}

func newEventStream(dst io.Writer, set *redact.Set, name string, known bool) *eventStream {
	return &eventStream{dst: dst, set: set, name: name, known: known}
}

// saysEvents reports whether arguments ask a known agent for JSON events.
func saysEvents(argv []string) bool {
	for i, a := range argv {
		switch {
		case a == "--output-format=stream-json":
			return true
		case a == "stream-json" && i > 0 && argv[i-1] == "--output-format":
			return true
		case (a == "--json" || a == "--experimental-json") && filepath.Base(argv[0]) == "codex":
			return true
		}
	}
	return false
}

// Write takes all of p, or returns an error, as redact.Writer does.
func (e *eventStream) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return 0, redact.ErrClosed
	}
	if err := e.take(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (e *eventStream) take(p []byte) error {
	for len(p) > 0 {
		if e.bytes != nil && !e.known {
			_, err := e.bytes.Write(p)
			return err
		}
		_, rest, ended := bytes.Cut(p, []byte("\n"))
		if err := e.piece(p[:len(p)-len(rest)], ended); err != nil {
			return err
		}
		p = rest
	}
	return nil
}

// piece takes a part of a line, or its end.
func (e *eventStream) piece(p []byte, ended bool) error {
	if e.bytes != nil { // the rest of a long line
		_, err := e.bytes.Write(p)
		if ended {
			err = errors.Join(err, e.endBytes())
		}
		return err
	}
	e.line = append(e.line, p...)
	head := bytes.TrimLeft(e.line, " \t\r\n")
	switch {
	case len(e.line) > maxEventLine:
		return e.asBytes(ended && e.known)
	case !e.known && (len(head) > 0 && head[0] != '{' || ended && len(head) == 0):
		return e.asBytes(false)
	case !ended:
		return nil
	case !e.known && !json.Valid(head):
		return e.asBytes(false)
	}
	e.known = true
	return e.event()
}

// event passes a whole line on.
func (e *eventStream) event() error {
	if e.events == nil {
		e.events = redact.NewJSON(e.dst, e.set, e.name)
	}
	line := e.line
	e.line = e.line[:0]
	_, err := e.events.Write(line)
	if e.held += len(line); line[0] == '{' || len(line) < 3 { // ends what was before
		e.held = 0
	}
	if e.held > maxEventLine {
		err = errors.Join(err, e.endEvents())
	}
	return err
}

// asBytes redacts what is held, and the rest of the line, or of everything, as
// bytes.
func (e *eventStream) asBytes(ended bool) error {
	if err := e.endEvents(); err != nil {
		return err
	}
	line := e.line
	e.line = nil
	e.bytes = redact.NewWriter(e.dst, e.set, e.name)
	_, err := e.bytes.Write(line)
	if ended {
		err = errors.Join(err, e.endBytes())
	}
	return err
}

func (e *eventStream) endEvents() error {
	if e.events == nil {
		return nil
	}
	err := e.events.Close()
	e.before = append(e.before, e.events.Counts()...)
	e.events, e.held = nil, 0
	return err
}

func (e *eventStream) endBytes() error {
	if e.bytes == nil {
		return nil
	}
	err := e.bytes.Close()
	e.before = append(e.before, e.bytes.Counts()...)
	e.bytes = nil
	return err
}

// Flush is that of redact.Writer. An event that has not ended stays.
func (e *eventStream) Flush() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bytes == nil || e.closed {
		return nil
	}
	return e.bytes.Flush()
}

// Close redacts and passes on what is left. It does not close the destination.
// A second Close does nothing and returns nil.
func (e *eventStream) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	var err error
	switch {
	case len(e.line) == 0:
	case e.known || json.Valid(e.line):
		err = e.event()
	default:
		err = e.asBytes(false)
	}
	return errors.Join(err, e.endEvents(), e.endBytes())
}

// Counts returns the masks passed on so far.
func (e *eventStream) Counts() []redact.Count {
	e.mu.Lock()
	defer e.mu.Unlock()
	var t tally
	t.add(slices.Clone(e.before))
	if e.events != nil {
		t.add(e.events.Counts())
	}
	if e.bytes != nil {
		t.add(e.bytes.Counts())
	}
	return t.all()
}
