package vaultclient

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/api"

	"sealed.dev/sealed/internal/sealed"
)

// maxField bounds a JSON document in a field of an answer, in bytes.
const maxField = 8 << 20

// An Engine is one mount of Sealed's engine, with one typed method per call.
// It is safe for concurrent use. Errors wrap the sentinels of package sealed;
// an answer that is not what the engine answers wraps sealed.ErrInvalid.
type Engine struct {
	c     *Client
	mount string
}

// Engine returns the engine that is mounted at mount, without slashes at the ends.
func (c *Client) Engine(mount string) *Engine {
	return &Engine{c: c, mount: strings.Trim(mount, "/")}
}

// Mount is the path of the engine, without slashes at the ends.
func (e *Engine) Mount() string { return e.mount }

// Client returns the client that the engine is called with.
func (e *Engine) Client() *Client { return e.c }

func (e *Engine) path(parts ...string) string {
	return e.mount + "/" + strings.Join(parts, "/")
}

// fields are the fields of an answer. Its methods name the field in errors and
// never quote what is in it.
type fields struct {
	path string
	data map[string]any
}

func (e *Engine) read(ctx context.Context, query map[string]string, parts ...string) (fields, error) {
	path := e.path(parts...)
	data, err := e.c.Read(ctx, path, query)
	return fields{path, data}, err
}

func (e *Engine) write(ctx context.Context, data map[string]any, parts ...string) (fields, error) {
	path := e.path(parts...)
	out, err := e.c.Write(ctx, path, data)
	return fields{path, out}, err
}

// list lists names and what the engine says of each; see Client.List. None at
// all is no error.
func (e *Engine) list(ctx context.Context, query map[string]string, parts ...string) (names []string, info map[string]string, err error) {
	path := e.path(parts...)
	params := map[string][]string{"list": {"true"}}
	for k, v := range query {
		if v != "" {
			params[k] = []string{v}
		}
	}
	s, err := e.c.api.Logical().ReadWithDataWithContext(ctx, path, params)
	if err != nil {
		return nil, nil, edge("listing", path, err)
	}
	if s == nil {
		return nil, nil, nil
	}
	return listed(path, s)
}

func listed(path string, s *api.Secret) (names []string, info map[string]string, err error) {
	f := fields{path, s.Data}
	if names, err = f.texts("keys"); err != nil {
		return nil, nil, err
	}
	raw, _ := s.Data["key_info"].(map[string]any)
	info = make(map[string]string, len(raw))
	for name, v := range raw {
		text, ok := v.(string)
		if !ok {
			return nil, nil, f.malformed("key_info")
		}
		info[name] = text
	}
	return names, info, nil
}

// summaries lists what is below a path with what the engine tells of each; name
// puts an id into its summary.
func summaries[T any](ctx context.Context, e *Engine, query map[string]string, name func(*T, string) error, parts ...string) ([]T, error) {
	ids, info, err := e.list(ctx, query, parts...)
	if err != nil {
		return nil, err
	}
	out := make([]T, len(ids))
	for i, id := range ids {
		if err := json.Unmarshal([]byte(info[id]), &out[i]); err != nil {
			return nil, fields{path: e.path(parts...)}.malformed("key_info")
		}
		if err := name(&out[i], id); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// remove deletes with query parameters, which Client.Delete has none of.
func (e *Engine) remove(ctx context.Context, query map[string]string, parts ...string) error {
	path := e.path(parts...)
	params := map[string][]string{}
	for k, v := range query {
		params[k] = []string{v}
	}
	if _, err := e.c.api.Logical().DeleteWithDataWithContext(ctx, path, params); err != nil {
		return edge("deleting", path, err)
	}
	return nil
}

func (f fields) malformed(name string) error {
	return fmt.Errorf("reading answer of %s: malformed field %s: %w", f.path, name, sealed.ErrInvalid)
}

// text returns a string field; a missing one is empty.
func (f fields) text(name string) (string, error) {
	switch v := f.data[name].(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	}
	return "", f.malformed(name)
}

// texts returns a list of strings; a missing one is empty.
func (f fields) texts(name string) ([]string, error) {
	raw, ok := f.data[name].([]any)
	if !ok && f.data[name] != nil {
		return nil, f.malformed(name)
	}
	out := make([]string, 0, len(raw))
	for _, v := range raw {
		s, ok := v.(string)
		if !ok {
			return nil, f.malformed(name)
		}
		out = append(out, s)
	}
	return out, nil
}

// number returns a number that the engine sends as a number or as text.
func (f fields) number(name string) (uint64, error) {
	var text string
	switch v := f.data[name].(type) {
	case nil:
		return 0, nil
	case json.Number:
		text = v.String()
	case string:
		text = v
	default:
		return 0, f.malformed(name)
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, f.malformed(name)
	}
	return n, nil
}

func (f fields) int(name string) (int, error) {
	n, err := f.number(name)
	if err != nil || n > math.MaxInt32 {
		return 0, f.malformed(name)
	}
	return int(n), nil
}

func (f fields) bool(name string) bool {
	v, _ := f.data[name].(bool)
	return v
}

// document decodes a JSON document in a string field, strictly. A missing
// field is malformed.
func (f fields) document(name string, v any) error {
	text, err := f.text(name)
	if err != nil {
		return err
	}
	if text == "" {
		return f.malformed(name)
	}
	if err := sealed.Decode([]byte(text), maxField, v); err != nil {
		return fmt.Errorf("reading answer of %s: field %s: %w", f.path, name, err)
	}
	return nil
}

// encode makes the JSON text of a document.
func encode(what string, v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encoding %s: %w", what, err)
	}
	return string(b), nil
}

// segment refuses what would change the path it is put into.
func segment(field, s string) error {
	if s == "" || strings.ContainsAny(s, "/?#%\\") || strings.Contains(s, "..") {
		return &sealed.FieldError{Field: field, Reason: "can't be part of a path"}
	}
	return nil
}

// segments is segment for a name of several segments.
func segments(field, s string) error {
	for _, part := range strings.Split(s, "/") {
		if err := segment(field, part); err != nil {
			return err
		}
	}
	return nil
}
