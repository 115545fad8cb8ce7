package proxy

import (
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"sealed.dev/sealed/internal/sealed"
)

// canonicalPath decodes an escaped path once and refuses every spelling that
// a proxy and an origin could read differently: encoded or literal dot
// segments, empty segments, encoded slashes and backslashes, double encoding,
// control characters. The result is what is matched and what is sent.
func canonicalPath(escaped string) (string, error) {
	refuse := func(why string) (string, error) {
		return "", fmt.Errorf("path %s: %w", why, sealed.ErrInvalid)
	}
	if !strings.HasPrefix(escaped, "/") || len(escaped) > 8<<10 {
		return refuse("is not absolute, or too long")
	}
	lower := strings.ToLower(escaped)
	for _, bad := range []string{"%2f", "%5c", "%25", "%00", `\`, "#", "?"} {
		if strings.Contains(lower, bad) {
			return refuse("holds an encoded or ambiguous separator")
		}
	}
	p, err := url.PathUnescape(escaped)
	if err != nil || !utf8.ValidString(p) {
		return refuse("is malformed")
	}
	for _, r := range p {
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == ';' {
			return refuse("holds a control character or a parameter")
		}
	}
	segs := strings.Split(p[1:], "/")
	for i, s := range segs {
		if s == "." || s == ".." || (s == "" && i != len(segs)-1) {
			return refuse("holds a dot segment or an empty one")
		}
	}
	return p, nil
}

// credentialParams are query parameters that carry credentials in common APIs.
var credentialParams = []string{"key", "api_key", "apikey", "access_token", "token", "auth", "private_token"}

// canonicalQuery parses strictly and encodes anew. Parameters that carry the
// run's placeholder are dropped (the value goes into the header); other
// credentials are foreign.
func canonicalQuery(raw, placeholder string) (query string, foreign bool, err error) {
	if strings.Contains(raw, ";") {
		return "", false, fmt.Errorf("query holds a semicolon: %w", sealed.ErrInvalid)
	}
	v, err := url.ParseQuery(raw)
	if err != nil {
		return "", false, fmt.Errorf("query is malformed: %w", sealed.ErrInvalid)
	}
	for name, values := range v {
		for _, p := range credentialParams {
			if !strings.EqualFold(name, p) {
				continue
			}
			for _, x := range values {
				if x != placeholder {
					return "", true, nil
				}
			}
			v.Del(name)
		}
	}
	return v.Encode(), false, nil
}
