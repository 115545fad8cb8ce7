package redact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

const (
	maxEvent  = 8 << 20 // bytes of the longest event that is read as one
	maxBlocks = 256     // content blocks that are open at once
)

// JSON redacts a stream of JSON events: one object on each line, or server-sent events (WHATWG HTML, section 9.2) with an object as data. Models and agents
// send a text in deltas, one small piece in each event; a value that is cut by them is whole in no event. So:
//
//  1. The deltas of a content block are one stream, redacted as by a [Writer]. What it holds back goes out with the next delta of the block, or in one more
//     event of the same shape before the block ends.
//  2. Every other string, names of fields too, is redacted by itself, with its escapes decoded.
//  3. The event as it is then written is looked at once more, for what lies across its fields.
//
// What comes out is valid JSON wherever the input was, byte for byte the same where nothing is masked and nothing held back. Lines that are not JSON, and
// events of more than 8 MiB, are redacted as bytes, and [JSON.Fallbacks] counts them.
//
// Known are the deltas of the messages API of Anthropic, of chat completions and responses of OpenAI, of Gemini, and of Claude Code, Codex and Gemini CLI,
// which wrap them. A value that is spread over several blocks is not found.
//
// A JSON is safe for concurrent use.
type JSON struct {
	mu     sync.Mutex
	dst    io.Writer
	set    *Set
	name   string
	in     []byte // the lines of an event that has not ended
	seen   int    // of in, without a line break
	sse    bool   // in is a server-sent event
	long   bool   // the rest of this line is bytes
	text   *stream
	whole  *stream
	blocks []*block
	out    []byte
	counts map[Count]int
	fell   int
	err    error
	closed bool
}

// frame is an event: the lines before its object, the object, and what ends it.
type frame struct {
	head, body, tail []byte
}

// NewJSON returns a JSON that writes to dst. The name of the stream appears in the counts. With a nil set nothing passes.
func NewJSON(dst io.Writer, set *Set, stream string) *JSON {
	return &JSON{dst: dst, set: set, name: stream, text: newStream(set), whole: newStream(set), counts: make(map[Count]int)}
}

// Write takes all of p, or none and returns an error, as Writer.Write does. An event goes out when it is complete.
func (j *JSON) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return 0, ErrClosed
	}
	if err := j.do(func() error { return j.take(p) }); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close redacts what is left as an event, ends all blocks, and does not close the destination. A second Close does nothing and returns nil.
func (j *JSON) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	return j.do(func() error {
		if err := j.event(j.in); err != nil {
			return err
		}
		if err := j.endBlocks(func(*block) bool { return true }); err != nil {
			return err
		}
		return j.endText()
	})
}

// Counts returns the masks passed on so far, ordered by key, stream and form.
func (j *JSON) Counts() []Count {
	j.mu.Lock()
	defer j.mu.Unlock()
	sum := make(map[Count]int)
	for c, n := range j.counts {
		sum[c] += n
	}
	for _, s := range append([]*stream{j.text, j.whole}, j.streams()...) {
		add(sum, s.report(j.name))
	}
	return sorted(sum)
}

func add(sum map[Count]int, counts []Count) {
	for _, c := range counts {
		n := c.N
		c.N = 0
		sum[c] += n
	}
}

func (j *JSON) streams() []*stream {
	var out []*stream
	for _, b := range j.blocks {
		out = append(out, b.s)
	}
	return out
}

// Fallbacks returns how many lines and events were redacted as bytes.
func (j *JSON) Fallbacks() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fell
}

func (j *JSON) do(step func() error) error {
	if j.err != nil {
		return j.err
	}
	j.out = j.out[:0]
	if j.err = step(); j.err != nil {
		j.err = fmt.Errorf("redacting %s: %w", j.name, j.err)
		return j.err
	}
	if len(j.out) == 0 {
		return nil
	}
	n, err := j.dst.Write(j.out)
	if err == nil && n < len(j.out) {
		err = io.ErrShortWrite
	}
	if err != nil {
		j.err = fmt.Errorf("writing redacted %s: %w", j.name, err)
	}
	return j.err
}

// take cuts the input into events.
func (j *JSON) take(p []byte) error {
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		n := len(line)
		if ended {
			n++
		}
		if j.long {
			j.long = !ended
			if err := j.feedText(p[:n]); err != nil {
				return err
			}
			p = rest
			continue
		}
		j.in = append(j.in, p[:n]...)
		p = rest
		if err := j.lineEnded(ended); err != nil {
			return err
		}
	}
	return nil
}

// lineEnded decides what is to become of j.in.
func (j *JSON) lineEnded(ended bool) error {
	if len(j.in) > maxEvent {
		in := j.in
		j.in, j.seen, j.long, j.sse = nil, 0, !ended, false
		j.fell++
		return j.feedText(in)
	}
	if !ended {
		return nil
	}
	line := j.in[j.seen:]
	j.seen = len(j.in)
	if isSSE(line) {
		j.sse = true
		return nil
	}
	in := j.in
	j.in, j.seen, j.sse = j.in[:0], 0, false
	return j.event(in)
}

// isSSE reports whether line is a field or a comment of a server-sent event, which an empty line ends.
func isSSE(line []byte) bool {
	for _, name := range []string{"data:", "event:", "id:", "retry:", ":"} {
		if bytes.HasPrefix(line, []byte(name)) {
			return true
		}
	}
	return false
}

// event redacts one event, or text that is none.
func (j *JSON) event(in []byte) error {
	if len(in) == 0 {
		return nil
	}
	f := frameOf(in)
	if bytes.Equal(bytes.TrimSpace(f.body), []byte("[DONE]")) {
		if err := j.endBlocks(func(*block) bool { return true }); err != nil {
			return err
		}
		return j.put(f)
	}
	doc, ok := parseEvent(f.body)
	if !ok {
		if len(bytes.TrimSpace(in)) > 0 {
			j.fell++
		}
		return j.feedText(in)
	}
	if err := j.endText(); err != nil {
		return err
	}
	deltas, ends := doc.deltas()
	if err := j.endBlocks(func(b *block) bool { return ended(b, deltas, ends) }); err != nil {
		return err
	}
	if err := j.redactDoc(doc, &f, deltas); err != nil {
		return err
	}
	return j.put(f)
}

func ended(b *block, deltas []delta, ends []string) bool {
	if slices.ContainsFunc(deltas, func(d delta) bool { return d.id == b.id }) {
		return false
	}
	return b.loose || slices.ContainsFunc(ends, func(e string) bool { return strings.HasPrefix(b.id, e) })
}

// frameOf takes an event apart. The data lines of a server-sent event become one.
func frameOf(in []byte) frame {
	if !isSSE(in) {
		body := bytes.TrimRight(in, "\r\n")
		return frame{body: bytes.Clone(body), tail: bytes.Clone(in[len(body):])}
	}
	var f frame
	for line := range bytes.Lines(in) {
		data, ok := bytes.CutPrefix(line, []byte("data:"))
		switch {
		case ok && f.body == nil:
			f.head = append(f.head, "data:"...)
			if bytes.HasPrefix(data, []byte(" ")) {
				f.head, data = append(f.head, ' '), data[1:]
			}
			f.body = append([]byte{}, bytes.TrimRight(data, "\r\n")...)
			f.tail = append(f.tail, line[len(bytes.TrimRight(line, "\r\n")):]...)
		case ok:
			f.body = append(append(f.body, '\n'), bytes.TrimPrefix(bytes.TrimRight(data, "\r\n"), []byte(" "))...)
		case f.body == nil:
			f.head = append(f.head, line...)
		default:
			f.tail = append(f.tail, line...)
		}
	}
	return f
}

// redactDoc redacts the strings of an event.
func (j *JSON) redactDoc(doc *event, f *frame, deltas []delta) error {
	var body []byte
	last := 0
	var touched []*block
	for _, field := range doc.fields {
		if !field.text {
			continue
		}
		raw := doc.raw[field.start:field.end]
		old := unquote(raw)
		var now []byte
		var err error
		var b *block
		if i := slices.IndexFunc(deltas, func(d delta) bool { return d.path == field.path }); i >= 0 && !field.name {
			if b, err = j.block(deltas[i]); err != nil {
				return err
			}
			if deltas[i].last {
				now, err = b.s.all(old)
			} else {
				now, err = b.s.some(old)
			}
		} else {
			now, err = j.whole.all(old)
		}
		if err != nil {
			return err
		}
		body = append(body, doc.raw[last:field.start]...)
		start := len(body)
		if bytes.Equal(now, old) {
			body = append(body, raw...)
		} else {
			body = append(body, quote(now)...)
		}
		if last = field.end; b != nil {
			b.start, b.end = start, len(body)
			touched = append(touched, b)
		}
	}
	f.body = append(body, doc.raw[last:]...)
	for _, b := range touched {
		b.frame = *f
	}
	return nil
}

// put looks at an event once more and writes it.
func (j *JSON) put(f frame) error {
	for _, part := range []*[]byte{&f.head, &f.body, &f.tail} {
		now, err := j.whole.all(*part)
		if err != nil {
			return err
		}
		if part == &f.body && !bytes.Equal(now, *part) && !json.Valid(now) && json.Valid(*part) {
			j.fell++
			now = slices.Concat([]byte(`{"type":"sealed.redacted","text":`), quote(now), []byte("}"))
		}
		j.out = append(j.out, now...)
	}
	return nil
}

// feedText redacts what is no event.
func (j *JSON) feedText(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), piece)
		now, err := j.text.some(p[:n])
		if err != nil {
			return err
		}
		j.out, p = append(j.out, now...), p[n:]
	}
	return nil
}

// endText lets go of text before an event.
func (j *JSON) endText() error {
	now, err := j.text.all(nil)
	j.out = append(j.out, now...)
	return err
}
