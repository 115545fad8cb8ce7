package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"

	"sealed.dev/sealed/internal/redact"
)

// scrub redacts a short text whole. Like all that goes to or comes from an
// upstream it is redacted steadily: an agent that has its guess repeated sees
// whole matches only.
func (p *Proxy) scrub(text string) string {
	var out bytes.Buffer
	w := redact.NewSteadyWriter(&out, p.cfg.Set, "upstream")
	if _, err := io.WriteString(w, text); err != nil || w.Close() != nil {
		return ""
	}
	return out.String()
}

// holds reports whether text holds a value or something of ours.
func (p *Proxy) holds(text string) bool { return !p.plain && p.scrub(text) != text }

// scrubHeader masks what the agent put into headers. A header whose name holds
// a value is dropped. All are looked through at once: mostly there is nothing.
func (p *Proxy) scrubHeader(h http.Header) {
	var all strings.Builder
	for name, values := range h {
		all.WriteString(name + "\n" + strings.Join(values, "\n") + "\n")
	}
	if !p.holds(all.String()) {
		return
	}
	for name, values := range h {
		if p.holds(name) {
			delete(h, name)
			continue
		}
		for i := range values {
			values[i] = p.scrub(values[i])
		}
	}
}

// scrubBody masks what the agent put into the body, and returns the length of
// what is sent, -1 if that is not known before.
//
// A body of up to 1 MiB is read whole, so that its length can be told. A longer
// one of known length is streamed under that length, because many upstreams
// want one: if something is masked in it the length is no longer right, and the
// request fails. One of unknown length is streamed and masked.
func (p *Proxy) scrubBody(w http.ResponseWriter, r *http.Request) (body io.Reader, length int64, err error) {
	if r.ContentLength == 0 {
		return http.NoBody, 0, nil
	}
	body = http.MaxBytesReader(w, r.Body, maxBody)
	if p.plain {
		return body, r.ContentLength, nil
	}
	body = &counted{src: redact.NewSteadyReader(body, p.cfg.Set, "request"), report: p.cfg.Redacted}
	if r.ContentLength < 0 || r.ContentLength > maxHeld {
		return body, r.ContentLength, nil
	}
	whole, err := io.ReadAll(body)
	if err != nil {
		return nil, 0, fmt.Errorf("reading request: %w", err)
	}
	return bytes.NewReader(whole), int64(len(whole)), nil
}

// counted reports what was masked, once, at the end of a body.
type counted struct {
	src    *redact.Reader
	report func([]redact.Count)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.src.Read(p)
	if err != nil && c.report != nil {
		c.report(c.src.Counts())
		c.report = nil
	}
	return n, err
}
