package proxy

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

const auth = "Authorization: Bearer " + placeholder + "\r\n"

func TestEndpointSwapsThePlaceholder(t *testing.T) {
	for _, header := range []string{auth, "X-Api-Key: " + placeholder + "\r\n", "Authorization: Basic dTpzZWFsZWQtMDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmYwMDExMjIzMw==\r\n"} {
		r := newRig(t, nil, nil)
		status, body := r.raw("GET /b/API_KEY/v1/things?x=1 HTTP/1.1\r\nHost: ADDR\r\n" + header + "\r\n")
		if status != 200 || body != "hello" || !r.leaked() {
			t.Errorf("%q: status %d, body %q, upstream had the value: %v", header[:16], status, body, r.leaked())
		}
		got := r.seen[0]
		if got.Host != boundHost || got.URL.RequestURI() != "/v1/things?x=1" || got.Header.Get("X-Api-Key") != "" {
			t.Errorf("upstream saw %s %s %v", got.Host, got.URL, got.Header)
		}
	}
}

// The mutation corpus: none of these may reach the upstream (R14, R15, B15, B18).
func TestRefusedAtTheEndpoint(t *testing.T) {
	post := "POST /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n"
	for name, req := range map[string]string{
		"no placeholder":        "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n\r\n",
		"other placeholder":     "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\nAuthorization: Bearer sealed-ff\r\n\r\n",
		"foreign key":           "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\nAuthorization: Bearer sk-mine\r\n\r\n",
		"foreign beside ours":   "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n" + auth + "X-Api-Key: sk-mine\r\n\r\n",
		"foreign cookie":        "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n" + auth + "Cookie: session=1\r\n\r\n",
		"foreign query":         "GET /b/API_KEY/v1/x?access_token=mine HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"two authorizations":    "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n" + auth + "Authorization: Bearer other\r\n\r\n",
		"wrong host":            "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: evil.test\r\n" + auth + "\r\n",
		"cross origin":          "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\nOrigin: https://evil.test\r\n" + auth + "\r\n",
		"cross site":            "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\nSec-Fetch-Site: cross-site\r\n" + auth + "\r\n",
		"path not bound":        "GET /b/API_KEY/admin HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"method not bound":      "DELETE /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"trace":                 "TRACE /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"dot segments":          "GET /b/API_KEY/v1/../admin HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"encoded dots":          "GET /b/API_KEY/v1/%2e%2e/admin HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"encoded slash":         "GET /b/API_KEY/v1/..%2fadmin HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"double encoded":        "GET /b/API_KEY/v1/%252e%252e/admin HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"backslash":             "GET /b/API_KEY/v1/..%5cadmin HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"empty segment":         "GET /b/API_KEY/v1//admin HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"nul":                   "GET /b/API_KEY/v1/x%00y HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"upgrade":               "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + auth + "\r\n",
		"two CL":                post + auth + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
		"TE identity chunked":   post + auth + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
		"absolute form":         "GET http://" + boundHost + "/v1/x HTTP/1.1\r\nHost: " + boundHost + "\r\n" + auth + "\r\n",
		"https absolute form":   "GET https://" + boundHost + "/v1/x HTTP/1.1\r\nHost: " + boundHost + "\r\n" + auth + "\r\n",
		"unknown binding":       "GET /b/OTHER/v1/x HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"mint endpoint":         "POST /b/API_KEY/oauth/token HTTP/1.1\r\nHost: ADDR\r\n" + auth + "Content-Length: 0\r\n\r\n",
		"semicolon query":       "GET /b/API_KEY/v1/x?a=1;b=2 HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n",
		"http2 preface":         "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"header with newline":   "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\nAuthorization: Bearer " + placeholder + "\n X: y\r\n\r\n",
		"control without token": "GET /sealed/keys HTTP/1.1\r\nHost: ADDR\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, nil)
			status, _ := r.raw(req)
			if status == 200 || r.upstreamSaw() != 0 {
				t.Errorf("status %d, upstream saw %d requests", status, r.upstreamSaw())
			}
		})
	}
}

// A request with both Content-Length and Transfer-Encoding is read as chunked
// (RFC 9112 §6.3) and rebuilt: what follows is a request of its own, without
// a placeholder, and never rides along to the upstream.
func TestSmuggledRequestIsItsOwn(t *testing.T) {
	r := newRig(t, nil, nil)
	r.raw("POST /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n" + auth + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b/API_KEY/v1/smuggled HTTP/1.1\r\nHost: ADDR\r\n\r\n")
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.seen {
		if q.URL.Path != "/v1/x" || q.Header.Get("Content-Length") != "" {
			t.Errorf("the upstream saw %s %v", q.URL.Path, q.Header)
		}
	}
}

// Each check off: its attack gets through, so the corpus can fail.
func TestNegativeControls(t *testing.T) {
	t.Run("foreign", func(t *testing.T) {
		r := newRig(t, nil, nil)
		r.without("foreign")
		if status, _ := r.raw("GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\nCookie: session=1\r\n\r\n"); status != 200 || !r.leaked() {
			t.Errorf("status %d, leaked %v", status, r.leaked())
		}
	})
	t.Run("mint", func(t *testing.T) {
		mint := "POST /b/API_KEY/oauth/token HTTP/1.1\r\nHost: ADDR\r\n" + auth + "Content-Length: 0\r\n\r\n"
		wide := func(r *rig) {
			l := r.p.byID("API_KEY").Binding
			l.Rule.Paths = []string{"/**"}
			if err := r.p.Set(l); err != nil {
				t.Fatal(err)
			}
		}
		r := newRig(t, nil, nil)
		wide(r)
		if status, _ := r.raw(mint); status != http.StatusForbidden {
			t.Errorf("with the check: status %d", status)
		}
		r = newRig(t, nil, nil)
		wide(r)
		r.without("mint")
		if status, _ := r.raw(mint); status != 200 {
			t.Errorf("without the check: status %d", status)
		}
	})
}

func TestConnect(t *testing.T) {
	get := func(host string) string { return "GET /v1/x HTTP/1.1\r\nHost: " + host + "\r\n" + auth + "\r\n" }
	r := newRig(t, nil, nil)
	c, status := r.connect(boundHost+":443", boundHost)
	if status != 200 {
		t.Fatalf("CONNECT: %d", status)
	}
	if status, body := exchangeRaw(t, c, get(boundHost)); status != 200 || body != "hello" || !r.leaked() {
		t.Errorf("bound: %d %q", status, body)
	}
	if _, status := r.connect(boundHost+":443", "other.test"); status != -1 {
		t.Errorf("SNI of another host: %d", status)
	}
	if _, status := r.connect(boundHost+":443", ""); status != -1 {
		t.Errorf("no SNI: %d", status)
	}
	c, _ = r.connect(boundHost+":443", boundHost)
	if status, _ := exchangeRaw(t, c, get("other.test")); status != http.StatusMisdirectedRequest {
		t.Errorf("Host of another: %d", status)
	}
	for _, authority := range []string{"evil.test:443", "127.0.0.1:443", "169.254.169.254:80", "[::1]:443", boundHost + ".:443", boundHost + ":8443", "u@" + boundHost + ":443", boundHost, boundHost + "\x00:443", "xn--80ak6aa92e.test:443"} {
		if _, status := r.connect(authority, boundHost); status == 200 {
			t.Errorf("CONNECT %q was accepted", authority)
		}
	}
	if n := r.upstreamSaw(); n != 1 {
		t.Errorf("the upstream saw %d requests, want 1", n)
	}
}

func TestNetworkModes(t *testing.T) {
	for _, tc := range []struct {
		network string
		allow   []string
		host    string
		want    bool
	}{
		{sealed.NetworkNone, nil, "example.test", false},
		{sealed.NetworkAllowlist, nil, "example.test", false}, // B20: empty is none
		{sealed.NetworkAllowlist, []string{"example.test"}, "example.test", true},
		{sealed.NetworkAllowlist, []string{"example.test"}, "notexample.test", false},
		{sealed.NetworkAllowlist, []string{"*.example.test"}, "a.example.test", true},
		{sealed.NetworkAllowlist, []string{"*.example.test"}, "example.test", false},
		{sealed.NetworkAllowlist, []string{"*.example.test"}, "evilexample.test", false},
		{sealed.NetworkFull, nil, "example.test", true},
		{"", []string{"example.test"}, "example.test", false},
	} {
		p := &Proxy{cfg: Config{Network: tc.network, Allow: tc.allow}}
		if got := p.allowed(tc.host); got != tc.want {
			t.Errorf("%s %v: %s allowed = %v", tc.network, tc.allow, tc.host, got)
		}
	}
}

func TestAnswersAreScrubbedAndStreamed(t *testing.T) {
	step := make(chan struct{})
	r := newRig(t, nil, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("X-Echo", req.Header.Get("Authorization"))
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		_, _ = io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		<-step
		for i := range len(canary) { // byte by byte
			_, _ = io.WriteString(w, canary[i:i+1])
			w.(http.Flusher).Flush()
		}
	})
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(conn, "GET /b/API_KEY/v1/sse HTTP/1.1\r\nHost: "+r.addr+"\r\n"+auth+"\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 13)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "data: first\n\n" {
		t.Fatalf("first event before the second was sent: %q, %v", first, err)
	}
	close(step)
	rest, _ := io.ReadAll(resp.Body)
	if strings.Contains(string(rest)+resp.Header.Get("X-Echo"), canary) || !strings.Contains(string(rest), "[sealed:API_KEY]") {
		t.Errorf("answer not scrubbed: %q, header %q", rest, resp.Header.Get("X-Echo"))
	}
}

func TestFreezeAndRemoveCut(t *testing.T) {
	for name, cut := range map[string]func(*Proxy){
		"freeze": func(p *Proxy) { p.Freeze(true) },
		"remove": func(p *Proxy) { p.Remove("API_KEY") },
	} {
		t.Run(name, func(t *testing.T) {
			gone := make(chan struct{})
			r := newRig(t, nil, func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.WriteString(w, "started")
				w.(http.Flusher).Flush()
				<-req.Context().Done()
				close(gone)
			})
			conn, err := net.Dial("tcp", r.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.WriteString(conn, "GET /b/API_KEY/v1/sse HTTP/1.1\r\nHost: "+r.addr+"\r\n"+auth+"\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			cut(r.p)
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("the stream ended as if it were complete")
			}
			<-gone
			if status, _ := r.raw("GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n"); status != http.StatusServiceUnavailable {
				t.Errorf("afterwards: status %d", status)
			}
			if name == "freeze" {
				r.p.Freeze(false)
				if _, _, ok := r.p.leave(context.Background(), nil); !ok {
					t.Error("still frozen after the thaw")
				}
			}
		})
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	r := newRig(t, nil, func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, "https://evil.test/steal", http.StatusFound)
	})
	status, _ := r.raw("GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n")
	if status != http.StatusFound || len(r.dials) != 1 {
		t.Errorf("status %d, dials %v", status, r.dials)
	}
}

func FuzzCanonicalPath(f *testing.F) {
	for _, s := range []string{"/", "/v1/x", "/v1/%20", "/..", "/%2e", "/a//b", "/%C0%AE", "/x;y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := canonicalPath(s)
		if err != nil {
			return
		}
		for seg := range strings.SplitSeq(p, "/") {
			if seg == "." || seg == ".." {
				t.Errorf("%q became %q", s, p)
			}
		}
		if !strings.HasPrefix(p, "/") || strings.Contains(p, `\`) {
			t.Errorf("%q became %q", s, p)
		}
	})
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"a.test:443", "A.test:443", "[::1]:1", "a.test", "u@a:1", "a.test.:443", "1.2.3.4:443"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, hostPort, err := parseAuthority(s)
		if err == nil && (sealed.ValidateHost(host) != nil || strings.ToLower(hostPort) != hostPort || strings.ContainsAny(hostPort, "@/ \x00[]")) {
			t.Errorf("%q became %q, %q", s, host, hostPort)
		}
	})
}
