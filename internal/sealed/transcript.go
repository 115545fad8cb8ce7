package sealed

import (
	"fmt"
	"io"
	"regexp"
)

// MaxMaskSpans bounds the spans of one transcript.
const MaxMaskSpans = 256

// TranscriptMasks say what must not stay in the stored transcript of one
// stream: init found it when it looked at its output a second time. Digests
// are SHA-256 in hex.
type TranscriptMasks struct {
	Stream   string     `json:"stream"`             // "stdout" or "stderr"
	Released string     `json:"released"`           // digest of what init let out, which the spans are about
	Withhold bool       `json:"withhold,omitempty"` // nothing of it may stay; no spans then
	Spans    []MaskSpan `json:"spans,omitempty"`    // in order, without overlap
}

// A MaskSpan is replaced as a whole by the mask of a key.
type MaskSpan struct {
	Start int64  `json:"start"` // offset of the first byte
	End   int64  `json:"end"`   // offset after the last
	Key   string `json:"key"`   // or, if Detected, what the text looks like
	// Detected says that no key's value was found, but the shape of a credential
	// or of personal data.
	Detected bool `json:"detected,omitempty"`
}

// maskKey is what a mask can show: see redact.ErrKey.
var maskKey = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// Apply copies src, a whole transcript, to dst with its spans masked. Both
// sides of the sandbox do it: init to sign the digest, the host to have the
// same bytes. It fails with ErrInvalid when a span is malformed, out of order
// or beyond the end of src; dst is then of no use.
func (m TranscriptMasks) Apply(dst io.Writer, src io.Reader) error {
	if m.Withhold || len(m.Spans) > MaxMaskSpans {
		return fmt.Errorf("masking transcript of %q: %d spans: %w", m.Stream, len(m.Spans), ErrInvalid)
	}
	at := int64(0)
	for _, s := range m.Spans {
		if s.Start < at || s.End <= s.Start || !maskKey.MatchString(s.Key) {
			return fmt.Errorf("masking transcript of %q: malformed span: %w", m.Stream, ErrInvalid)
		}
		if err := pass(dst, src, s.Start-at); err != nil {
			return fmt.Errorf("masking transcript of %q: %w", m.Stream, err)
		}
		if err := pass(io.Discard, src, s.End-s.Start); err != nil {
			return fmt.Errorf("masking transcript of %q: %w", m.Stream, err)
		}
		if _, err := io.WriteString(dst, "[sealed:"+s.Key+"]"); err != nil {
			return fmt.Errorf("masking transcript of %q: %w", m.Stream, err)
		}
		at = s.End
	}
	if _, err := io.Copy(dst, src); err != nil {
		return fmt.Errorf("masking transcript of %q: %w", m.Stream, err)
	}
	return nil
}

// pass copies n bytes. A source that ends before is malformed.
func pass(dst io.Writer, src io.Reader, n int64) error {
	_, err := io.CopyN(dst, src, n)
	if err == io.EOF {
		return fmt.Errorf("a span is beyond the end: %w", ErrInvalid)
	}
	return err
}
