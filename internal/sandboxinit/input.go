package sandboxinit

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
)

// A scrubber redacts a whole text as one stream of a name, and counts.
type scrubber func(stream string, text []byte) ([]byte, []redact.Count, error)

// scrubWith is the scrubber of a set. Tests switch it off.
func scrubWith(set *redact.Set) scrubber {
	return func(stream string, text []byte) ([]byte, []redact.Count, error) {
		var out bytes.Buffer
		w := redact.NewWriter(&out, set, stream)
		_, err := w.Write(text)
		if err = errors.Join(err, w.Close()); err != nil {
			return nil, nil, err
		}
		return out.Bytes(), w.Counts(), nil
	}
}

// A handedInput is the redacted command and input on its way to the engine.
type handedInput struct {
	document string        // a sealed.RedactedInput
	digest   sealed.Digest // in sealed.DomainRedacted
	counts   []redact.Count
}

// redactInput makes the document. The arguments are redacted as one stream, so
// that a value in pieces over several of them is found; NUL, which no argument
// can hold, keeps them apart. What is cut off was redacted before.
func redactInput(boot sealed.Boot, scrub scrubber, random io.Reader) (handedInput, error) {
	var h handedInput
	salt := make([]byte, 16)
	if _, err := io.ReadFull(random, salt); err != nil {
		return h, fmt.Errorf("making salt: %w", err)
	}
	argv, counts, err := scrub("command", []byte(strings.Join(boot.Argv, "\x00")))
	if err != nil {
		return h, fmt.Errorf("redacting the command: %w", err)
	}
	h.counts = counts
	in := sealed.RedactedInput{
		Salt:       base64.StdEncoding.EncodeToString(salt),
		Argv:       strings.Split(clip(argv, sealed.MaxArgvText), "\x00"),
		ArgvBytes:  len(argv),
		ArgvDigest: sealed.DigestOf(sealed.DomainRedacted, argv),
		HasInput:   boot.HasInput && !boot.Interactive,
	}
	if in.HasInput {
		text, counts, err := scrub("input", boot.Input)
		if err != nil {
			return h, fmt.Errorf("redacting the input: %w", err)
		}
		h.counts = append(h.counts, counts...)
		in.Input, in.InputBytes = clip(text, sealed.MaxInputText), len(text)
		in.InputDigest = sealed.DigestOf(sealed.DomainRedacted, text)
	}
	document, err := json.Marshal(in)
	if err != nil {
		return h, fmt.Errorf("encoding redacted input: %w", err)
	}
	h.document, h.digest = string(document), sealed.DigestOf(sealed.DomainRedacted, document)
	return h, nil
}

// clip makes UTF-8 of at most limit bytes, cut between characters.
func clip(text []byte, limit int) string {
	s := strings.ToValidUTF8(string(text[:min(len(text), limit+utf8.UTFMax)]), "\uFFFD")
	if len(s) <= limit {
		return s
	}
	end := limit
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// handInput stores command and input, redacted with every value known by now,
// with the engine. It must have succeeded before the agent starts. An answer
// that was lost is asked for again, once: the engine keeps one document.
func (r *runner) handInput(ctx context.Context) error {
	h, err := redactInput(r.boot, scrubWith(r.set), rand.Reader)
	if err != nil {
		return err
	}
	r.input = h
	err = r.session.hand(ctx, h.document)
	if errors.Is(err, sealed.ErrUnavailable) && ctx.Err() == nil {
		err = r.session.hand(ctx, h.document)
	}
	if err != nil {
		return fmt.Errorf("storing the redacted input: %w", err)
	}
	return nil
}
