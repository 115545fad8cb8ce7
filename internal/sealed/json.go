package sealed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Decode parses one JSON document into v, so that no two readers can take it
// for two things: unknown fields, fields in another case, members named twice,
// text that is not UTF-8, data after the end and documents over limit bytes
// are refused. Errors wrap ErrInvalid and name the field where encoding/json
// knows it; they never quote a value. After an error v must not be used.
func Decode(data []byte, limit int, v any) error {
	if len(data) > limit {
		return fmt.Errorf("decoding document: %d bytes, limit %d: %w", len(data), limit, ErrInvalid)
	}
	if !utf8.Valid(data) { // encoding/json would put U+FFFD for it
		return fmt.Errorf("decoding document: not UTF-8: %w", ErrInvalid)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return decodeErr(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("decoding document: data after the end: %w", ErrInvalid)
	}
	walk := reading{dec: json.NewDecoder(bytes.NewReader(data)), members: map[reflect.Type]map[string]reflect.Type{}}
	walk.dec.UseNumber()
	return walk.value(reflect.TypeOf(v))
}

// A reading walks over a document that was decoded already, and refuses what
// encoding/json lets pass: a member named twice (it takes the last, others the
// first) and a field in another case (it folds them, others don't). The
// decoding before has bounded the depth.
type reading struct {
	dec     *json.Decoder
	members map[reflect.Type]map[string]reflect.Type // of each struct met so far
}

// value reads one value that was decoded into a t. In a map, and where t is
// nil because the shape is not ours, any member may be and case is data.
func (r reading) value(t reflect.Type) error {
	tok, err := r.dec.Token()
	if err != nil {
		return decodeErr(err)
	}
	if _, ok := tok.(json.Delim); !ok {
		return nil
	}
	elem, known := r.shape(t)
	var seen map[string]bool
	if tok == json.Delim('{') {
		seen = map[string]bool{}
	}
	for r.dec.More() {
		if seen != nil {
			if tok, err = r.dec.Token(); err != nil {
				return decodeErr(err)
			}
			name, _ := tok.(string)
			if seen[name] {
				return fieldErr(name, "named twice")
			}
			seen[name] = true
			if known != nil {
				if elem = known[name]; elem == nil {
					return fieldErr(name, "unknown field (case counts)")
				}
			}
		}
		if err := r.value(elem); err != nil {
			return err
		}
	}
	_, err = r.dec.Token()
	return err
}

// shape returns the members of a struct, or else the type of the elements of
// a list or map; neither where t decodes itself or is an interface.
func (r reading) shape(t reflect.Type) (elem reflect.Type, known map[string]reflect.Type) {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil, nil
	}
	switch t.Kind() {
	case reflect.Map, reflect.Slice, reflect.Array:
		return t.Elem(), nil
	case reflect.Struct:
		if r.members[t] == nil {
			r.members[t] = map[string]reflect.Type{}
			for i := range t.NumField() {
				f := t.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name == "" {
					name = f.Name
				}
				r.members[t][name] = f.Type
				if f.Anonymous {
					_, inner := r.shape(f.Type)
					maps.Copy(r.members[t], inner)
				}
			}
		}
		return nil, r.members[t]
	}
	return nil, nil
}

// decodeErr turns encoding/json's errors into ours. The offending value is
// not quoted: it could be a secret typed into the wrong field.
func decodeErr(err error) error {
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		kind, _, _ := strings.Cut(typeErr.Value, " ") // for a number the value follows
		return fieldErr(typeErr.Field, "wants %s, not %s", typeErr.Type, kind)
	}
	if quoted, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		name, err := strconv.Unquote(quoted)
		if err != nil {
			name = "?"
		}
		return fieldErr(name, "unknown field")
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
