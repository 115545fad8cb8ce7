package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"time"

	"sealed.dev/sealed/internal/redact"
)

// heldHeaders of an answer are hop-by-hop, or no longer true of what is passed on.
var heldHeaders = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "Alt-Svc", "Content-Encoding"}

// answer streams the scrubbed answer, chunk by chunk. Redirects are passed
// back as they are: the agent may follow them, without the value. cut ends the
// exchange with the upstream.
func (p *Proxy) answer(w http.ResponseWriter, resp *http.Response, body io.Reader, cut func()) {
	for name, values := range resp.Header {
		if slices.Contains(heldHeaders, name) {
			continue
		}
		for _, v := range values {
			w.Header().Add(name, p.scrub(v))
		}
	}
	w.WriteHeader(resp.StatusCode)
	out := p.scrubber(w)
	defer func() { p.cfg.Redacted(out.Counts()) }()
	if err := p.stream(resp.Request.Context(), w, out, body, framingOf(resp.Header.Get("Content-Type")), cut); err != nil {
		// A cut stream must not look like a complete one. What is held back may
		// be half a value: it is dropped.
		panic(http.ErrAbortHandler)
	}
}

func (p *Proxy) scrubber(w io.Writer) *redact.Writer {
	if p.ordinary {
		return redact.NewWriter(w, p.cfg.Set, "upstream")
	}
	return redact.NewSteadyWriter(w, p.cfg.Set, "upstream")
}

// stream copies the body through the redactor. An error means that not all of
// it was passed on: the upstream or the redactor has failed, the value was
// revoked, or the agent no longer reads.
func (p *Proxy) stream(ctx context.Context, w http.ResponseWriter, out *redact.Writer, body io.Reader, f framing, cut func()) error {
	flush := http.NewResponseController(w)
	idle := time.AfterFunc(p.idle, cut)
	defer idle.Stop()
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		idle.Reset(p.idle)
		if n > 0 {
			if err := f.pass(out, buf[:n]); err != nil {
				return err
			}
			_ = flush.Flush()
		}
		// An upstream that sees the connection close may still end its answer
		// properly, and that end may still arrive.
		if errors.Is(err, io.EOF) && ctx.Err() != nil {
			return fmt.Errorf("reading the answer: %w", ctx.Err())
		}
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
	}
}

// A framing says where the records of a stream end, whose reader waits for
// whole ones: at every line, at every empty line, or nowhere (the zero value).
type framing struct {
	lines, blank bool
	busy         bool // the current line has something on it
}

// framingOf knows server-sent events (WHATWG HTML §9.2; a line that ends with
// CR alone is not known to end) and JSON lines by their media type.
func framingOf(contentType string) framing {
	switch t, _, _ := mime.ParseMediaType(contentType); t {
	case "text/event-stream":
		return framing{blank: true}
	case "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/json-seq":
		return framing{lines: true}
	}
	return framing{}
}

// pass writes p and lets the records go that have ended in it.
func (f *framing) pass(out *redact.Writer, p []byte) error {
	end := f.end(p)
	if end > 0 {
		if _, err := out.Write(p[:end]); err != nil {
			return err
		}
		if err := out.EndRecord(); err != nil {
			return err
		}
	}
	if _, err := out.Write(p[end:]); err != nil {
		return err
	}
	return out.Flush() // for an ordinary Writer; a steady one holds on
}

// end returns the index after the last record end in p, 0 if there is none.
func (f *framing) end(p []byte) (end int) {
	if !f.lines && !f.blank {
		return 0
	}
	for i := 0; ; {
		n := bytes.IndexByte(p[i:], '\n')
		if n < 0 {
			f.busy = f.busy || len(bytes.Trim(p[i:], "\r")) > 0
			return end
		}
		busy := f.busy || len(bytes.Trim(p[i:i+n], "\r")) > 0
		i += n + 1
		if f.busy = false; f.lines || !busy {
			end = i
		}
	}
}
