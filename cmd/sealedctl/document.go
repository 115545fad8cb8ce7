package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"sealed.dev/sealed/internal/sealed"
)

// People write YAML; the vocabulary is strict JSON. toJSON is the one way from
// the first to the second. It takes the plain part of YAML only: no aliases, no
// merge keys, no tags, no key twice. A document that begins with "{" is JSON
// already and passes unchanged.
func toJSON(doc []byte) ([]byte, error) {
	if bytes.HasPrefix(bytes.TrimSpace(doc), []byte("{")) {
		return doc, nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(doc))
	var node yaml.Node
	if err := dec.Decode(&node); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading YAML: it is empty: %w", sealed.ErrInvalid)
	} else if err != nil {
		return nil, fmt.Errorf("reading YAML: %s: %w", strings.TrimPrefix(err.Error(), "yaml: "), sealed.ErrInvalid)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading YAML: more than one document: %w", sealed.ErrInvalid)
	}
	v, err := plain(node.Content[0], "")
	if err != nil {
		return nil, fmt.Errorf("reading YAML: %w", err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("reading YAML: %w: %w", sealed.ErrInvalid, err)
	}
	return out, nil
}

// plain converts a node; field is its path, for errors, which quote no values.
func plain(n *yaml.Node, field string) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		return mapping(n, field)
	case yaml.SequenceNode:
		out := make([]any, 0, len(n.Content))
		for i, c := range n.Content {
			v, err := plain(c, fmt.Sprintf("%s[%d]", field, i))
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	case yaml.ScalarNode:
		return scalar(n, field)
	}
	return nil, &sealed.FieldError{Field: field, Reason: fmt.Sprintf("line %d: aliases are not accepted", n.Line)}
}

func mapping(n *yaml.Node, field string) (any, error) {
	out := make(map[string]any, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
			return nil, &sealed.FieldError{Field: field, Reason: fmt.Sprintf("line %d: a name must be text; quote it", key.Line)}
		}
		path := strings.TrimPrefix(field+"."+key.Value, ".")
		if _, twice := out[key.Value]; twice {
			return nil, &sealed.FieldError{Field: path, Reason: fmt.Sprintf("line %d: it is there twice", key.Line)}
		}
		v, err := plain(n.Content[i+1], path)
		if err != nil {
			return nil, err
		}
		out[key.Value] = v
	}
	return out, nil
}

func scalar(n *yaml.Node, field string) (any, error) {
	var err error
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return n.Value, nil
	case "!!null":
		return nil, nil
	case "!!bool":
		var v bool
		if err = n.Decode(&v); err == nil {
			return v, nil
		}
	case "!!int":
		var v int64
		if err = n.Decode(&v); err == nil {
			return v, nil
		}
	case "!!float":
		var v float64
		if err = n.Decode(&v); err == nil {
			return v, nil
		}
	}
	return nil, &sealed.FieldError{Field: field, Reason: fmt.Sprintf("line %d: wants plain text, a number, true, false or null", n.Line)}
}

// stamp prints a time for people, in UTC; the zero time as a dash.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// join prints a list of names; an empty one as a dash.
func join[T ~string](names []T) string {
	if len(names) == 0 {
		return "-"
	}
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = string(n)
	}
	return strings.Join(out, ", ")
}
