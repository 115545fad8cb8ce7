package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"sealed.dev/sealed/internal/sealed"
)

const (
	// MaxBody is the largest body of an entry, in bytes.
	MaxBody = 32 << 10
	// SaltSize is the size of a salt, in bytes.
	SaltSize = 16

	skewMember = `"skew":true`
)

// A Side is what a leaf only has the hash of. The zero value is an erased side.
type Side struct {
	Salt []byte `json:"salt"`
	Body []byte `json:"body"` // compact JSON object, printable ASCII
}

// Digest returns SHA-256(salt ‖ body), which the leaf names.
func (s Side) Digest() [sha256.Size]byte {
	h := sha256.New()
	h.Write(s.Salt)
	h.Write(s.Body)
	return [sha256.Size]byte(h.Sum(nil))
}

// Marshal returns the file form of a side.
func (s Side) Marshal() ([]byte, error) { return json.Marshal(s) }

// ParseSide reads the file form of a side. It refuses every form but the one
// that Marshal writes, and every body that Append could not have written.
func ParseSide(data []byte) (Side, error) {
	var s Side
	if len(data) > 2*MaxBody {
		return Side{}, errors.New("parsing side: too large")
	}
	if err := canonicalJSON(data, &s); err != nil {
		return Side{}, fmt.Errorf("parsing side: %w", err)
	}
	if err := s.check(); err != nil {
		return Side{}, fmt.Errorf("parsing side: %w", err)
	}
	return s, nil
}

// check reports whether s could have been written by Append.
func (s Side) check() error {
	if len(s.Salt) != SaltSize {
		return fmt.Errorf("salt has %d bytes, want %d", len(s.Salt), SaltSize)
	}
	if len(s.Body) > MaxBody {
		return fmt.Errorf("body has %d bytes, at most %d are allowed", len(s.Body), MaxBody)
	}
	again, _, err := normalBody(s.Body)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, s.Body) {
		return errors.New("body is not in its one allowed form")
	}
	return nil
}

// skewed reports whether the log had added the skew member.
func (s Side) skewed() bool { return bytes.HasSuffix(s.Body, []byte(skewMember+"}")) }

// encodeBody returns the body for an event's value, which must marshal to a JSON
// object without a member "skew". A nil value is the empty object.
func encodeBody(v any) ([]byte, error) {
	if v == nil {
		return []byte("{}"), nil
	}
	data, err := json.Marshal(v)
	if err != nil {
		// The cause may quote what the value holds.
		return nil, errors.New("encoding body: not a JSON value")
	}
	body, members, err := normalBody(data)
	if err != nil {
		return nil, fmt.Errorf("encoding body: %w", err)
	}
	if members["skew"] {
		return nil, errors.New(`encoding body: the member "skew" is the log's own`)
	}
	if len(body)+len(skewMember)+1 > MaxBody {
		return nil, fmt.Errorf("encoding body: more than %d bytes", MaxBody)
	}
	return body, nil
}

// withSkew returns body with the skew member added.
func withSkew(body []byte) []byte {
	out := bytes.TrimSuffix(bytes.Clone(body), []byte("}"))
	if len(out) > 1 {
		out = append(out, ',')
	}
	return append(out, skewMember+"}"...)
}

// normalBody returns data, a JSON object, compact and in printable ASCII, and the
// names of its members. It refuses anything else and any object that names a
// member twice: two readers could take it for two different things.
func normalBody(data []byte) (body []byte, members map[string]bool, err error) {
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, nil, errors.New("body is not JSON")
	}
	if compact.Bytes()[0] != '{' {
		return nil, nil, errors.New("body is not a JSON object")
	}
	if members, err = sealed.Members(compact.Bytes()); err != nil {
		return nil, nil, errors.New("body names a member twice")
	}
	if printable(compact.Bytes()) {
		return compact.Bytes(), members, nil
	}
	// In valid JSON a byte outside printable ASCII can only be part of a string.
	var out bytes.Buffer
	for rest := compact.Bytes(); len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		rest = rest[n:]
		switch {
		case r < 0x7f:
			out.WriteByte(byte(r))
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.Bytes(), members, nil
}

// printable reports whether data is printable ASCII. Valid JSON has nothing below
// a space once it is compact.
func printable(data []byte) bool {
	for _, c := range data {
		if c >= 0x7f {
			return false
		}
	}
	return true
}

// canonicalJSON decodes data into v and refuses data that differs from the
// encoding of v. So there is one encoding only: no unknown or repeated member,
// no other case, no space, no trailing data, no loose base64.
func canonicalJSON(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return errors.New("not the expected JSON: " + jsonCause(err))
	}
	again, err := json.Marshal(v)
	if err != nil {
		return errors.New("not the expected JSON")
	}
	if !bytes.Equal(again, data) {
		return errors.New("not in its one allowed form")
	}
	return nil
}

// strictBase64 refuses base64 that has a second spelling.
func strictBase64(s string) error {
	if data, err := base64.StdEncoding.Strict().DecodeString(s); err != nil || base64.StdEncoding.EncodeToString(data) != s {
		return errors.New("base64 is not in its one allowed form")
	}
	return nil
}

// jsonCause names what is wrong without repeating the data.
func jsonCause(err error) string {
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok && len(name) <= 64 {
		return "unknown field " + name
	}
	return "malformed"
}
