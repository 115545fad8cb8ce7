// Package source holds what the kinds of source share: the credential they
// yield, and clients for the HTTP APIs of others that are bounded in time and
// size and say nothing about what they read.
//
// # Guarantee
//
// One call is one request: 3 s, no redirect, no retry, no proxy, no
// compression, at most 1 MiB of answer, TLS 1.2 or newer with the pinned CA when
// one is given. Errors hold the step and the status, never a body, a header or
// a field's value. Nothing is read from the environment.
//
// # What it does not guarantee
//
// An upstream is trusted for what it returns. The bytes of an answer are wiped
// after use as far as Go allows: TLS buffers are not in our hands.
package source

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// A Minted credential. Handle is enough to revoke it and is not secret.
type Minted struct {
	Value  *secret.Value
	Handle string
	TTL    time.Duration // 0: the source sets no limit
	Max    time.Duration // what renewing can reach, since the mint; 0: it can't be renewed
	// Version is the version that was read, where the upstream tells one.
	Version sealed.SourceVersion
}

// Unversioned refuses a reference to a version where the upstream keeps none.
// The error matches sealed.ErrInvalid.
func Unversioned(ref sealed.KeyRef) error {
	if ref.Version != "" {
		return &sealed.FieldError{Field: "ref.version", Reason: "this kind of source keeps no versions"}
	}
	return nil
}

// SameVersion is for an upstream that hands out only the newest version of a
// value: it refuses a reference to another one than got. The error matches
// sealed.ErrNotFound and sealed.ErrUnavailable.
func SameVersion(ref sealed.KeyRef, got sealed.SourceVersion) error {
	if ref.Version != "" && ref.Version != got {
		return fmt.Errorf("the pinned version is not the current one: %w: %w", sealed.ErrNotFound, sealed.ErrUnavailable)
	}
	return nil
}

// SplitRef splits a path like "issue/ci?common_name=x" into the path and its
// parameters. A name may come once and must be among allowed, unless that is
// empty. The error matches sealed.ErrInvalid.
func SplitRef(ref string, allowed ...string) (path string, params map[string]string, err error) {
	path, query, found := strings.Cut(ref, "?")
	if !found {
		return path, nil, nil
	}
	bad := &sealed.FieldError{Field: "ref.path", Reason: "wants PATH?NAME=VALUE&… with each name once"}
	values, err := url.ParseQuery(query)
	if err != nil || len(values) == 0 {
		return "", nil, bad
	}
	params = make(map[string]string, len(values))
	for name, v := range values {
		known := len(allowed) == 0
		for _, a := range allowed {
			known = known || a == name
		}
		if !known || name == "" || len(v) != 1 {
			return "", nil, bad
		}
		params[name] = v[0]
	}
	return path, params, nil
}

// CheckPath refuses a path that a server could take for another one. The error
// matches sealed.ErrInvalid.
func CheckPath(ref string) error {
	for seg := range strings.SplitSeq(ref, "/") {
		if seg == "" || seg == "." || seg == ".." || strings.ContainsFunc(seg, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
			return &sealed.FieldError{Field: "ref.path", Reason: "wants a relative path without empty or dot segments"}
		}
	}
	return nil
}

// StringField picks one field of an answer's data as a value. Only a JSON
// string is a value: numbers and objects have no one spelling.
func StringField(data map[string]json.RawMessage, field string) (*secret.Value, error) {
	raw, ok := data[field]
	if !ok {
		return nil, fmt.Errorf("picking field %s: the source has no such field: %w", field, sealed.ErrUnavailable)
	}
	var s string
	if json.Unmarshal(raw, &s) != nil || s == "" {
		return nil, fmt.Errorf("picking field %s: not a string, or empty: %w", field, sealed.ErrUnavailable)
	}
	return secret.New([]byte(s)), nil
}

// Wipe overwrites the fields of an answer's data.
func Wipe(data map[string]json.RawMessage) {
	for _, raw := range data {
		clear(raw)
	}
}
