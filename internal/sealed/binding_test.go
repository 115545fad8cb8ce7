package sealed

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func binding(change func(*Binding)) Binding {
	b := Binding{Host: "api.example.com", Methods: []string{"GET"}, Paths: []string{"/repos/**"}}
	if change != nil {
		change(&b)
	}
	return b
}

func TestBindingDefaults(t *testing.T) {
	for _, c := range []struct{ header, format, wantHeader, wantFormat string }{
		{"", "", "Authorization", "Bearer {}"},
		{"authorization", "", "authorization", "Bearer {}"},
		{"X-Api-Key", "", "X-Api-Key", "{}"},
		{"Authorization", "token {}", "Authorization", "token {}"},
	} {
		b := binding(func(b *Binding) { b.Header, b.Format = c.header, c.format })
		if err := b.normalize("b"); err != nil || b.Header != c.wantHeader || b.Format != c.wantFormat {
			t.Errorf("%q %q: got %q %q, %v", c.header, c.format, b.Header, b.Format, err)
		}
		again := b
		if err := again.normalize("b"); err != nil || cmp.Diff(b, again) != "" {
			t.Errorf("normalizing twice: %v %s", err, cmp.Diff(b, again))
		}
	}
}

func TestBindingRefuses(t *testing.T) {
	set := func(header, format string) func(*Binding) {
		return func(b *Binding) { b.Header, b.Format = header, format }
	}
	cases := map[string]struct {
		change func(*Binding)
		field  string
	}{
		"no host":       {func(b *Binding) { b.Host = "" }, "b.host"},
		"address":       {func(b *Binding) { b.Host = "169.254.169.254" }, "b.host"},
		"no methods":    {func(b *Binding) { b.Methods = nil }, "b"},
		"no paths":      {func(b *Binding) { b.Paths = nil }, "b"},
		"CONNECT":       {func(b *Binding) { b.Methods = []string{"GET", "CONNECT"} }, "b.methods"},
		"TRACE":         {func(b *Binding) { b.Methods = []string{"TRACE"} }, "b.methods"},
		"any method":    {func(b *Binding) { b.Methods = []string{"*"} }, "b.methods"},
		"lower case":    {func(b *Binding) { b.Methods = []string{"get"} }, "b.methods"},
		"header space":  {set("X Api", "{}"), "b.header"},
		"header colon":  {set("X-Api: x", "{}"), "b.header"},
		"header line":   {set("X-Api\r\nHost", "{}"), "b.header"},
		"header long":   {set(strings.Repeat("X", 65), "{}"), "b.header"},
		"no hole":       {set("X-Api-Key", "Bearer"), "b.header"},
		"two holes":     {set("X-Api-Key", "{}{}"), "b.header"},
		"format line":   {set("X-Api-Key", "{}\r\nHost: evil"), "b.header"},
		"format NUL":    {set("X-Api-Key", "{}\x00"), "b.header"},
		"format escape": {set("X-Api-Key", "{}\x1b[2J"), "b.header"},
		"format bidi":   {set("X-Api-Key", "\u202e{}"), "b.header"},
		"format long":   {set("X-Api-Key", "{}"+strings.Repeat("x", 255)), "b.header"},
	}
	for _, h := range []string{"Host", "CONNECTION", "content-length", "Transfer-Encoding", "TE", "Trailer", "upgrade", "Proxy-Authorization"} {
		cases["framing "+h] = struct {
			change func(*Binding)
			field  string
		}{set(h, "{}"), "b.header"}
	}
	for _, p := range []string{"", "repos", "*", "**", "//", "/a//b", "/..", "/a/../b", "/a/%2e%2e", "/a%2fb", "/a?x=1", "/a#x", "/a b", "/a\\b", "/a;x", "/**/a", "/a/**/b", "/a**", "/a/b**",
		"/***", "/a/***", "/**/**", "/[a-z]", "/[^a]", "/[", "/a\n", "/a\x00", "/a\x1b[2J", "/a\u202eb", "/a\u200bb", "https://x/a"} {
		cases["path "+p] = struct {
			change func(*Binding)
			field  string
		}{func(b *Binding) { b.Paths = []string{"/ok", p} }, "b.paths"}
	}
	for name, c := range cases {
		b := binding(c.change)
		err := b.normalize("b")
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != c.field {
			t.Errorf("%q: got %v, want field %s", name, err, c.field)
		}
	}
}

func TestAllows(t *testing.T) {
	cases := []struct {
		pattern string
		yes, no []string
	}{
		{"/**", []string{"/", "/a", "/a/b", "/a/"}, []string{""}},
		{"/a/**", []string{"/a/", "/a/b", "/a/b/c"}, []string{"/a", "/", "/ab", "/ab/c", "/b/a/c", "/A/b", "a/b"}},
		{"/a", []string{"/a"}, []string{"/a/", "/a/b", "/A", "/", "/aa"}},
		{"/a/*", []string{"/a/b", "/a/bb"}, []string{"/a", "/a/b/c", "/a/b/", "/b/a"}},
		{"/a/*/c", []string{"/a/b/c"}, []string{"/a/c", "/a/b/b/c", "/a/b/c/d"}},
		{"/a/v*", []string{"/a/v1", "/a/v"}, []string{"/a/1", "/a/v1/x"}},
		{"/a/*/**", []string{"/a/b/c", "/a/b/c/d", "/a/b/"}, []string{"/a/b", "/a", "/b/b/c"}},
		{"/a/*.json", []string{"/a/x.json"}, []string{"/a/x.jsonx", "/a/b/x.json", "/a/x.yaml"}},
		{"/repos/acme/api/pulls/**", []string{"/repos/acme/api/pulls/7", "/repos/acme/api/pulls/7/files"},
			[]string{"/repos/acme/api/pulls", "/repos/acme/api/pullsx/7", "/repos/acme/api2/pulls/7", "/repos/acme/apixpulls/7", "/repos/acme", "/user"}},
		{"/é/*", []string{"/é/x"}, []string{"/e/x", "/e\u0301/x"}},
	}
	for _, c := range cases {
		b := binding(func(b *Binding) { b.Paths = []string{c.pattern} })
		if err := b.normalize("b"); err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		for _, p := range c.yes {
			if !b.Allows("GET", p) {
				t.Errorf("%s refuses %s", c.pattern, p)
			}
		}
		for _, p := range c.no {
			if b.Allows("GET", p) {
				t.Errorf("%s allows %s", c.pattern, p)
			}
		}
	}
}

func TestAllowsMethods(t *testing.T) {
	b := binding(func(b *Binding) { b.Methods = []string{"GET", "POST"}; b.Paths = []string{"/a", "/b"} })
	for method, want := range map[string]bool{"GET": true, "POST": true, "PUT": false, "DELETE": false, "HEAD": false, "get": false, "": false, "GET ": false, "CONNECT": false} {
		if b.Allows(method, "/b") != want {
			t.Errorf("%q: want %v", method, want)
		}
	}
	if (Binding{}).Allows("GET", "/") {
		t.Error("the zero binding allows something")
	}
}

func TestValidateHost(t *testing.T) {
	for _, h := range []string{"a", "localhost", "api.example.com", "api.example.com:8443", "x--1.a-b.com:1", "a:65535", "1a.com", "1.2.3.com", strings.Repeat("a", 63) + ".com", "xn--bcher-kva.example"} {
		if err := ValidateHost(h); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
	long := strings.Repeat(strings.Repeat("a", 63)+".", 4)
	for _, h := range []string{"", ":443", ".", "a.", ".a", "a..b", "A.com", "EXAMPLE.COM", "a_b.com", "-a.com", "a-.com", "*.com", "a com", "a.com ", "a.com\n", "a.com\x00", "a.com/", "a.com/x", "https://a.com",
		"user@a.com", "a.com:", "a.com:0", "a.com:0443", "a.com:65536", "a.com:99999", "a.com:x", "a.com:443:1", "a.com:+1", "a.com:-1", "a%2ecom", "bücher.example", "\u0430pi.example.com",
		"127.0.0.1", "169.254.169.254:80", "10.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "a.0x", "1.2.3.4.5", "::1", "[::1]", "[::1]:443", "fe80::1",
		strings.Repeat("a", 64) + ".com", long + "com"} {
		if err := ValidateHost(h); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", h, err)
		}
	}
}

func TestHostPort(t *testing.T) {
	for in, want := range map[string]string{"a.com": "a.com:443", "a.com:443": "a.com:443", "a.com:8443": "a.com:8443"} {
		if got := (Binding{Host: in}).HostPort(); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

// canonical says what the caller of Allows promises about a path.
func canonical(p string) bool {
	return strings.HasPrefix(p, "/") && !strings.Contains(p, "//") && (path.Clean(p) == p || path.Clean(p)+"/" == p)
}

// A final /** means below: what it allows starts with what stands before it,
// segment by segment, whatever the path.
func FuzzAllows(f *testing.F) {
	f.Add("/a/**", "/a/b")
	f.Add("/a/*/**", "/a/b/c")
	f.Add("/*", "/a")
	f.Add("/**", "/")
	f.Add("/a/*", "/a/../b")
	f.Fuzz(func(t *testing.T, pattern, p string) {
		b := binding(func(b *Binding) { b.Paths = []string{pattern} })
		if b.normalize("b") != nil || !b.Allows("GET", p) {
			return
		}
		base, below := strings.CutSuffix(pattern, "/**")
		if literal := !strings.Contains(base, "*"); literal && below && !strings.HasPrefix(p, base+"/") {
			t.Errorf("%q allows %q", pattern, p)
		} else if literal && !below && p != pattern {
			t.Errorf("%q allows %q", pattern, p)
		}
		if !below && strings.Count(p, "/") != strings.Count(pattern, "/") {
			t.Errorf("%q allows %q: * went over a segment", pattern, p)
		}
		if prefix, _, _ := strings.Cut(pattern, "*"); !strings.HasPrefix(p, strings.TrimSuffix(prefix, "**")) {
			t.Errorf("%q allows %q: other prefix", pattern, p)
		}
		if canonical(p) && strings.Contains(p, "..") && strings.Contains(p, "/../") {
			t.Errorf("%q: not canonical", p)
		}
	})
}

func FuzzValidateHost(f *testing.F) {
	for _, s := range []string{"a.com", "a.com:443", "127.1", "0x7f.1", "a..b", "[::1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, h string) {
		if ValidateHost(h) == nil && (strings.ToLower(h) != h || strings.ContainsAny(h, "@/ \x00[]%*_\\") || len(h) > 253+6) {
			t.Errorf("%q was accepted", h)
		}
	})
}

func TestCoversAndMeet(t *testing.T) {
	b := func(methods, paths string) Binding {
		return Binding{Host: "h", Methods: strings.Fields(methods), Paths: strings.Fields(paths), Header: "Authorization", Format: "{}"}
	}
	for _, c := range []struct {
		a, b Binding
		want string // methods and paths of what both allow
	}{
		{b("GET POST", "/**"), b("GET", "/repos/**"), "GET /repos/**"},
		{b("GET", "/a/*"), b("GET", "/a/b /a/b/c"), "GET /a/b"},
		{b("GET", "/a/*/c"), b("GET", "/a/b/*"), ""}, // overlap that no pattern of either says
		{b("GET", "/a/**"), b("GET", "/ab"), ""},
		{b("GET", "/a/**"), b("POST", "/a/**"), ""},
		{b("GET", "/*/**"), b("GET", "/a/b"), "GET /a/b"},
		{b("GET", "/a/**"), b("GET", "/a/*/c"), "GET /a/*/c"},
	} {
		got, ok := c.a.Meet(c.b)
		text := strings.TrimSpace(strings.Join(got.Methods, " ") + " " + strings.Join(got.Paths, " "))
		if ok != (c.want != "") || (ok && text != c.want) {
			t.Errorf("%v and %v: got %q %v, want %q", c.a, c.b, text, ok, c.want)
		}
		if ok && (!c.a.Covers(got) || !c.b.Covers(got)) {
			t.Errorf("%v is not covered by both", got)
		}
	}
	other := b("GET", "/**")
	other.Header = "X-Api-Key"
	if _, ok := other.Meet(b("GET", "/**")); ok || other.Covers(b("GET", "/**")) {
		t.Error("bindings with different headers have something in common")
	}
}
