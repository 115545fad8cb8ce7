package proxy

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"sealed.dev/sealed/internal/redact"
)

// other is a value that the agent holds, by env delivery of another key.
const other = "cnry_other_8b7a6c5d4e3f2a1b0c9d8e7f"

// A sink is an upstream that keeps what it gets.
type sink struct {
	mu     sync.Mutex
	body   string
	header http.Header
	length int64
	counts []redact.Count
}

func newSink(t *testing.T) (*rig, *sink) {
	t.Helper()
	s := &sink{}
	r := newRig(t, func(c *Config) {
		if err := c.Set.Add("OTHER", []byte(other), redact.Options{}); err != nil {
			t.Fatal(err)
		}
		if err := c.Set.Add("placeholder", []byte(placeholder), redact.Options{}); err != nil {
			t.Fatal(err)
		}
		c.Redacted = func(n []redact.Count) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.counts = append(s.counts, n...)
		}
	}, func(w http.ResponseWriter, req *http.Request) {
		b, err := io.ReadAll(req.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			s.body, s.header, s.length = string(b), req.Header, req.ContentLength
		}
	})
	return r, s
}

// has reports whether anything that the upstream took holds the other value.
func (s *sink) has() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.body+fmt.Sprint(s.header), other) || strings.Contains(s.body, base64.StdEncoding.EncodeToString([]byte(other)))
}

func post(body, headers string) string {
	return "POST /b/API_KEY/v1/messages HTTP/1.1\r\nHost: ADDR\r\n" + auth + headers + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

// What the agent sends with the run's credential holds no other one: not in the
// body, in no encoding, and not in a header.
func TestRequestsAreScrubbed(t *testing.T) {
	chunk := func(body string) string {
		return "POST /b/API_KEY/v1/messages HTTP/1.1\r\nHost: ADDR\r\n" + auth + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	const masked = `{"prompt":"my key is [sealed:OTHER], ok"}`
	plain := `{"prompt":"my key is ` + other + `, ok"}`
	for name, tt := range map[string]struct{ request, body string }{
		"body":         {post(plain, ""), masked},
		"chunked body": {chunk(plain), masked},
		"base64":       {post("k="+base64.StdEncoding.EncodeToString([]byte(other+"..")), ""), "k=[sealed:OTHER]"},
		"placeholder":  {post("p="+placeholder, ""), "p=[sealed:placeholder]"},
		"header":       {post("x", "X-Note: say "+other+" now\r\n"), "x"},
		"header name":  {post("x", "X-"+other+": y\r\n"), "x"},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newSink(t)
			if status, _ := r.raw(tt.request); status != 200 {
				t.Fatalf("status %d", status)
			}
			if !strings.HasPrefix(s.body, tt.body) || len(s.body) > len(tt.body)+len("YuLg==") || s.has() || !r.leaked() {
				t.Errorf("the upstream took %q, %v", s.body, s.header)
			}
			if s.length >= 0 && s.length != int64(len(s.body)) {
				t.Errorf("length %d, body of %d", s.length, len(s.body))
			}
			if note := s.header.Get("X-Note"); name == "header" && note != "say [sealed:OTHER] now" {
				t.Errorf("header %q", note)
			}
			if tt.body != "x" && len(s.counts) == 0 {
				t.Error("nothing was counted")
			}
		})
	}
	t.Run("control off", func(t *testing.T) {
		r, s := newSink(t)
		r.p.plain = true
		if status, _ := r.raw(post(plain, "X-Note: "+other+"\r\n")); status != 200 || !s.has() {
			t.Errorf("status %d, the upstream took %q", status, s.body)
		}
	})
	t.Run("unchanged", func(t *testing.T) {
		r, s := newSink(t)
		if status, _ := r.raw(post(canary[:20], "X-Note: "+other[:20]+"\r\n")); status != 200 || s.body != canary[:20] || s.header.Get("X-Note") != other[:20] {
			t.Errorf("status %d, the upstream took %q, %v", status, s.body, s.header)
		}
	})
}

// A value in the URL is refused: masked it would be another request.
func TestValueInURL(t *testing.T) {
	for _, target := range []string{"/v1/x/" + other, "/v1/x?q=" + other, "/v1/x?q=" + strings.ReplaceAll(other, "_", "%5F")} {
		r, s := newSink(t)
		request := "GET /b/API_KEY" + target + " HTTP/1.1\r\nHost: ADDR\r\n" + auth + "\r\n"
		if status, text := r.raw(request); status != http.StatusForbidden || s.header != nil || strings.Contains(text, other) {
			t.Errorf("%s: status %d, %s", target, status, text)
		}
		r.without("value")
		if status, _ := r.raw(request); status != 200 || s.header == nil {
			t.Errorf("%s: control off: status %d", target, status)
		}
	}
}

// A long body keeps its length; a value in it makes the request fail.
func TestLongBody(t *testing.T) {
	long := strings.Repeat("lorem ipsum ", 2*maxHeld/12)
	r, s := newSink(t)
	if status, _ := r.raw(post(long, "")); status != 200 || s.body != long || s.length != int64(len(long)) {
		t.Errorf("status %d, %d of %d bytes", status, len(s.body), len(long))
	}
	r, s = newSink(t)
	if status, _ := r.raw(post(long+other+long, "")); status == 200 || s.has() || s.body != "" {
		t.Errorf("status %d, the upstream took %d bytes", status, len(s.body))
	}
}

// BenchmarkRequestBody is what scrubbing costs a request of 1 MiB.
func BenchmarkRequestBody(b *testing.B) {
	set := redact.NewSet()
	for i := range 10 {
		if err := set.Add(fmt.Sprintf("K%d", i), []byte(fmt.Sprintf("%s%d", other, i)), redact.Options{}); err != nil {
			b.Fatal(err)
		}
	}
	body := []byte(strings.Repeat("{\"role\":\"user\",\"content\":\"fix the parser in scan.go\"},\n", maxHeld/55))
	for name, plain := range map[string]bool{"scrubbed": false, "as it is": true} {
		b.Run(name, func(b *testing.B) {
			p := &Proxy{cfg: Config{Set: set, Redacted: func([]redact.Count) {}}, plain: plain}
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				r := httptest.NewRequest("POST", "/", bytes.NewReader(body))
				out, _, err := p.scrubBody(httptest.NewRecorder(), r)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, out); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
