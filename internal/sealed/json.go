package sealed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Decode parses one JSON document into v: unknown fields, duplicate-free
// trailing data and documents over limit bytes are refused. Errors wrap
// ErrInvalid and name the field where encoding/json knows it.
func Decode(data []byte, limit int, v any) error {
	if len(data) > limit {
		return fmt.Errorf("decoding document: %d bytes, limit %d: %w", len(data), limit, ErrInvalid)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return decodeErr(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("decoding document: data after the end: %w", ErrInvalid)
	}
	return nil
}

// decodeErr turns encoding/json's errors into ours. The offending value is
// not quoted: it could be a secret typed into the wrong field.
func decodeErr(err error) error {
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		return fieldErr(typeErr.Field, "wants %s, not %s", typeErr.Type, typeErr.Value)
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return fieldErr(strings.Trim(name, `"`), "unknown field")
	}
	var fe *FieldError
	if errors.As(err, &fe) {
		return fe
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("decoding document: malformed JSON at byte %d: %w", syntax.Offset, ErrInvalid)
	}
	return fmt.Errorf("decoding document: malformed JSON: %w", ErrInvalid)
}

// A Duration is a time.Duration that reads and prints as Go text ("15m").
type Duration time.Duration

// MarshalText writes the Go form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads the Go form; negative durations are refused.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fieldErr("duration", "wants a duration such as 15m")
	}
	*d = Duration(v)
	return nil
}

// Std returns the time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }
