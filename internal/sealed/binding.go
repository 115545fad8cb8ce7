package sealed

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A Binding names the only requests into which a value may be put: one host,
// methods, path patterns, one header.
type Binding struct {
	Host    string   `json:"host"`    // lower-case DNS name, with :port unless 443
	Methods []string `json:"methods"` // empty is refused
	Paths   []string `json:"paths"`   // patterns, nothing special but * and a final /**; empty is refused
	Header  string   `json:"header"`  // canonicalised by net/http; default Authorization
	Format  string   `json:"format"`  // "{}" is replaced by the value; default "Bearer {}"
}

var (
	hostRE   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*(:[1-9][0-9]{0,4})?$`)
	numberRE = regexp.MustCompile(`^([0-9]+|0x[0-9a-f]*)$`)
	headerRE = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	methods  = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
)

func (b *Binding) normalize(field string) error {
	if err := ValidateHost(b.Host); err != nil {
		return fieldErr(field+".host", "wants a lower-case DNS name, optionally with a port")
	}
	if len(b.Methods) == 0 || len(b.Paths) == 0 {
		return fieldErr(field, "wants methods and paths; empty means none, never any")
	}
	for _, m := range b.Methods {
		if !slices.Contains(methods, m) {
			return fieldErr(field+".methods", "unknown method (CONNECT and TRACE can't be bound)")
		}
	}
	for _, p := range b.Paths {
		if !strings.HasPrefix(p, "/") || strings.Contains(p, "//") || strings.Contains(p, "..") || strings.ContainsAny(p, "?#%\\ ;[]") || hidden(p) {
			return fieldErr(field+".paths", "a pattern is an absolute path; * matches within a segment, a final /** everything below")
		}
		if i := strings.Index(p, "**"); i >= 0 && (i != len(p)-2 || !strings.HasSuffix(p, "/**")) {
			return fieldErr(field+".paths", "** only as the last segment")
		}
		if _, err := path.Match(p, "/"); err != nil {
			return fieldErr(field+".paths", "malformed pattern")
		}
	}
	if b.Header == "" {
		b.Header = "Authorization"
	}
	if b.Format == "" {
		b.Format = "{}"
		if strings.EqualFold(b.Header, "Authorization") {
			b.Format = "Bearer {}"
		}
	}
	if !headerRE.MatchString(b.Header) || strings.Count(b.Format, "{}") != 1 || len(b.Format) > 256 || hidden(b.Format) {
		return fieldErr(field+".header", "wants one header name and a format with one {}")
	}
	if slices.Contains([]string{"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization"}, strings.ToLower(b.Header)) {
		return fieldErr(field+".header", "a framing header can't carry a credential")
	}
	return nil
}

// hidden reports characters that a person who approves a binding can't see.
func hidden(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// ValidateHost accepts a lower-case DNS name with an optional port. IP
// literals are refused: a name is what the certificate is checked against. So
// is every name whose last label is a number, since inet_aton(3) and with it
// some resolvers take 127.1 and 0x7f.1 for addresses.
func ValidateHost(h string) error {
	name, port, hasPort := strings.Cut(h, ":")
	_, err := strconv.ParseUint(port, 10, 16)
	if len(name) > 253 || !hostRE.MatchString(h) || numberRE.MatchString(name[strings.LastIndex(name, ".")+1:]) || (hasPort && err != nil) {
		return fieldErr("host", "wants a lower-case DNS name, optionally with a port")
	}
	return nil
}

// HostPort returns host:port with the default port 443 written out.
func (b Binding) HostPort() string {
	if strings.Contains(b.Host, ":") {
		return b.Host
	}
	return b.Host + ":443"
}

// Allows reports whether a request falls under the binding. p must be
// canonical already: absolute, decoded once, no dot segments, no empty ones.
func (b Binding) Allows(method, p string) bool {
	if !slices.Contains(b.Methods, method) {
		return false
	}
	return slices.ContainsFunc(b.Paths, func(pattern string) bool { return matchPath(pattern, p) })
}

func matchPath(pattern, p string) bool {
	if base, ok := strings.CutSuffix(pattern, "/**"); ok {
		// The part before /** may hold single-segment wildcards.
		n := strings.Count(base, "/")
		segs := strings.SplitAfterN(p, "/", n+2)
		if len(segs) < n+2 {
			return false
		}
		head := strings.TrimSuffix(strings.Join(segs[:n+1], ""), "/")
		ok, err := path.Match(base, head)
		return err == nil && ok
	}
	ok, err := path.Match(pattern, p)
	return err == nil && ok
}

// Covers reports whether every request that o allows is one that b allows, with
// the same header and format. It errs on the side of no.
func (b Binding) Covers(o Binding) bool {
	if b.Host != o.Host || b.Header != o.Header || b.Format != o.Format {
		return false
	}
	for _, m := range o.Methods {
		if !slices.Contains(b.Methods, m) {
			return false
		}
	}
	for _, p := range o.Paths {
		if !slices.ContainsFunc(b.Paths, func(pattern string) bool { return coversPath(pattern, p) }) {
			return false
		}
	}
	return true
}

// Meet returns the binding of what both allow, and false if that is nothing. Of
// two path patterns it keeps the one that the other covers.
func (b Binding) Meet(o Binding) (Binding, bool) {
	if b.Host != o.Host || b.Header != o.Header || b.Format != o.Format {
		return Binding{}, false
	}
	out := b
	out.Methods, out.Paths = nil, nil
	for _, m := range b.Methods {
		if slices.Contains(o.Methods, m) {
			out.Methods = append(out.Methods, m)
		}
	}
	for _, p := range b.Paths {
		for _, q := range o.Paths {
			low := p
			switch {
			case coversPath(q, p):
			case coversPath(p, q):
				low = q
			default:
				continue
			}
			if !slices.Contains(out.Paths, low) {
				out.Paths = append(out.Paths, low)
			}
		}
	}
	return out, len(out.Methods) > 0 && len(out.Paths) > 0
}

// coversPath: the same pattern, everything below a literal prefix of it, or a
// pattern that matches a literal path.
func coversPath(pattern, p string) bool {
	if pattern == p {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/**"); ok && !strings.Contains(base, "*") {
		return strings.HasPrefix(p, base+"/")
	}
	return !strings.Contains(p, "*") && matchPath(pattern, p)
}
