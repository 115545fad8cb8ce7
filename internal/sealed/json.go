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
	walk := reading{data: data, members: map[reflect.Type]map[string]reflect.Type{}}
	return walk.value(reflect.TypeOf(v))
}

// Members returns the names of the members of data, a JSON object. It is a
// FieldError when an object in it, at any depth, names a member twice: two
// readers could take it for two different things.
func Members(data []byte) (map[string]bool, error) {
	if !json.Valid(data) {
		return nil, fmt.Errorf("decoding document: malformed JSON: %w", ErrInvalid)
	}
	walk := reading{data: data}
	if walk.next() != '{' {
		return nil, fmt.Errorf("decoding document: not an object: %w", ErrInvalid)
	}
	err := walk.value(nil)
	return walk.outermost, err
}

// A reading walks over a document that is known to be valid JSON, and refuses
// what encoding/json lets pass: a member named twice (it takes the last, others
// the first) and a field in another case (it folds them, others don't). The
// decoding before has bounded the depth.
type reading struct {
	data      []byte
	at        int
	members   map[reflect.Type]map[string]reflect.Type // of each struct met so far
	outermost map[string]bool                          // the names in the first object
}

// value reads one value that was decoded into a t. In a map, and where t is
// nil because the shape is not ours, any member may be and case is data.
func (r *reading) value(t reflect.Type) error {
	switch r.next() {
	case '{':
		return r.object(t)
	case '[':
		elem, _ := r.shape(t)
		for r.at++; r.next() != ']'; {
			if r.data[r.at] == ',' {
				r.at++
			}
			if err := r.value(elem); err != nil {
				return err
			}
		}
		r.at++
	case '"':
		r.quoted()
	default: // a number or a word
		for r.at < len(r.data) && strings.IndexByte(",]} \t\r\n", r.data[r.at]) < 0 {
			r.at++
		}
	}
	return nil
}

func (r *reading) object(t reflect.Type) error {
	elem, known := r.shape(t)
	seen := map[string]bool{}
	if r.outermost == nil {
		r.outermost = seen
	}
	for r.at++; r.next() != '}'; {
		if r.data[r.at] == ',' {
			r.at++
		}
		r.next()
		name, err := memberName(r.quoted())
		if err != nil {
			return err
		}
		if seen[name] {
			return fieldErr(name, "named twice")
		}
		seen[name] = true
		if known != nil {
			if elem = known[name]; elem == nil {
				return fieldErr(name, "unknown field (case counts)")
			}
		}
		r.next()
		r.at++ // the colon
		if err := r.value(elem); err != nil {
			return err
		}
	}
	r.at++
	return nil
}

// next goes on to the next byte that is not space, and returns it.
func (r *reading) next() byte {
	for ; r.at < len(r.data); r.at++ {
		switch c := r.data[r.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

// quoted reads a string, and returns it with its quotes.
func (r *reading) quoted() []byte {
	start := r.at
	for r.at++; r.data[r.at] != '"'; r.at++ {
		if r.data[r.at] == '\\' {
			r.at++
		}
	}
	r.at++
	return r.data[start:r.at]
}

// memberName decodes a member's name: two spellings of a name are one name.
func memberName(quoted []byte) (string, error) {
	if plain := quoted[1 : len(quoted)-1]; bytes.IndexByte(plain, '\\') < 0 && utf8.Valid(plain) {
		return string(plain), nil
	}
	var name string
	if err := json.Unmarshal(quoted, &name); err != nil {
		return "", decodeErr(err)
	}
	return name, nil
}

// shape returns the members of a struct, or else the type of the elements of
// a list or map; neither where t decodes itself or is an interface.
func (r *reading) shape(t reflect.Type) (elem reflect.Type, known map[string]reflect.Type) {
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
