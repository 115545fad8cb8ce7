package sourcetest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A behavior is what an upstream does to one call. good is its answer had it
// behaved; trap is an address that nobody may call.
type behavior struct {
	name string
	// harmless behaviors may be survived with the right value.
	harmless bool
	serve    func(w http.ResponseWriter, r *http.Request, good *httptest.ResponseRecorder, trap string)
}

// slowest is how long one get may take: two calls at the limit, and a machine
// that is busy.
const slowest = 9 * time.Second

func hostile(typ string) []behavior {
	out := []behavior{
		{name: "malformed JSON", serve: answer(http.StatusOK, typ, `{"data":{"`+Canary)},
		{name: "wrong type", serve: answer(http.StatusOK, typ, `"`+Canary+`"`)},
		{name: "number", serve: answer(http.StatusOK, typ, `7`)},
		{name: "null", serve: answer(http.StatusOK, typ, `null`)},
		{name: "empty object", serve: answer(http.StatusOK, typ, `{}`)},
		{name: "empty list", serve: answer(http.StatusOK, typ, `[]`)},
		{name: "nothing", serve: answer(http.StatusOK, typ, "")},
		{name: "no content", serve: answer(http.StatusNoContent, "", "")},
		{name: "deep JSON", serve: answer(http.StatusOK, typ, strings.Repeat(`[`, 200_000))},
		{name: "10 MiB", serve: answer(http.StatusOK, typ, `{"pad":"`+strings.Repeat(Canary, 10<<20/len(Canary))+`"}`)},
		{name: "wrong content type", serve: func(w http.ResponseWriter, _ *http.Request, good *httptest.ResponseRecorder, _ string) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write(good.Body.Bytes())
		}},
		{name: "truncated", serve: truncated(typ)},
		{name: "gzip bomb", serve: bomb(typ)},
		{name: "huge header", serve: func(w http.ResponseWriter, _ *http.Request, good *httptest.ResponseRecorder, _ string) {
			w.Header().Set("Content-Type", typ)
			w.Header().Set("X-Pad", strings.Repeat(Canary, 1<<20/len(Canary)))
			_, _ = w.Write(good.Body.Bytes())
		}},
		{name: "not HTTP", serve: raw(Canary + "\r\n\r\n")},
		{name: "broken header", serve: raw("HTTP/1.1 200 OK\r\n" + Canary + "\r\n\r\n")},
		{name: "broken chunk", serve: raw("HTTP/1.1 200 OK\r\nContent-Type: " + typ + "\r\nTransfer-Encoding: chunked\r\n\r\n" + Canary + "\r\n")},
		{name: "slow header", serve: silent},
		{name: "slow body", serve: trickle(typ)},
	}
	for _, code := range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		out = append(out, behavior{name: fmt.Sprintf("redirect %d", code), serve: func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder, trap string) {
			w.Header().Set("Location", trap+"/"+Canary)
			w.WriteHeader(code)
		}})
	}
	for _, code := range []int{400, 401, 403, 404, 405, 429, 500, 503} {
		// Vault's own sign for "write instead" is no error by itself.
		out = append(out, behavior{name: fmt.Sprintf("status %d", code), harmless: code == 405, serve: func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder, _ string) {
			w.Header().Set("Content-Type", typ)
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"errors":["`+Canary+`"],"message":"`+Canary+`","__type":"`+Canary+`"}`)
		}})
	}
	return out
}

func answer(code int, typ, body string) func(http.ResponseWriter, *http.Request, *httptest.ResponseRecorder, string) {
	return func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder, _ string) {
		w.Header().Set("Content-Type", typ)
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// raw writes bytes to the connection and closes it.
func raw(text string) func(http.ResponseWriter, *http.Request, *httptest.ResponseRecorder, string) {
	return func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder, _ string) {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_, _ = io.WriteString(conn, text)
			conn.Close()
		}
	}
}

// truncated announces the whole answer and sends half of it.
func truncated(typ string) func(http.ResponseWriter, *http.Request, *httptest.ResponseRecorder, string) {
	return func(w http.ResponseWriter, r *http.Request, good *httptest.ResponseRecorder, trap string) {
		body := good.Body.String()
		raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", typ, len(body), body[:len(body)/2]))(w, r, good, trap)
	}
}

// bomb is 16 MiB in a few KiB, for a client that did not ask for compression.
func bomb(typ string) func(http.ResponseWriter, *http.Request, *httptest.ResponseRecorder, string) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(make([]byte, 16<<20))
	_ = z.Close()
	return func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder, _ string) {
		w.Header().Set("Content-Type", typ)
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(packed.Bytes())
	}
}

// silent never answers.
func silent(_ http.ResponseWriter, r *http.Request, _ *httptest.ResponseRecorder, _ string) {
	late := time.NewTimer(2 * slowest)
	defer late.Stop()
	select {
	case <-r.Context().Done():
	case <-late.C:
	}
}

// trickle sends a byte now and then, for longer than anybody may wait.
func trickle(typ string) func(http.ResponseWriter, *http.Request, *httptest.ResponseRecorder, string) {
	return func(w http.ResponseWriter, r *http.Request, good *httptest.ResponseRecorder, _ string) {
		w.Header().Set("Content-Type", typ)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for i, b := range good.Body.Bytes() {
			_, _ = w.Write([]byte{b})
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
			if i > 4*60 {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
			}
		}
	}
}

// survive lets one call of a use go wrong and says what the source did wrong.
func (c Case) survive(use use, h behavior, step int) string {
	trapped := &counter{serve: func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }}
	trap, _ := start(trapped)
	defer trap.Close()
	good := c.Good()
	n := &counter{serve: func(call int, w http.ResponseWriter, r *http.Request) {
		if call != step {
			good.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		good.ServeHTTP(rec, r.WithContext(context.WithoutCancel(r.Context())))
		h.serve(w, r, rec, trap.URL)
	}}
	srv, ca := start(n)
	defer srv.Close()
	defer srv.CloseClientConnections()
	s, err := c.Open(c.Config(srv.URL, ca))
	if err != nil {
		return "opening: " + err.Error()
	}
	begun := time.Now()
	gave, err := use(context.Background(), s, c.Ref)
	took := time.Since(begun)
	calls, last := n.seen()
	switch traps, _ := trapped.seen(); {
	case traps > 0:
		return "the redirect was followed"
	case err == nil && !h.harmless:
		return "it gave a value"
	case err != nil && (!errors.Is(err, sealed.ErrUnavailable) || gave):
		return fmt.Sprintf("the error is %v", err)
	case err != nil && strings.Contains(err.Error(), "canary"):
		return "the error shows what the upstream sent"
	case took > slowest:
		return "it took " + took.String()
	case calls > step+1 && !h.harmless && (!c.Retries || last != http.MethodGet):
		return fmt.Sprintf("%d calls: it tried again", calls)
	}
	return ""
}

// otherCA is a certificate that signed nothing.
const otherCA = `-----BEGIN CERTIFICATE-----
MIIBWDCB/6ADAgECAgEBMAoGCCqGSM49BAMCMBMxETAPBgNVBAMTCHN0cmFuZ2Vy
MCAXDTIzMTExNDIyMTMyMFoYDzIxMjIwMjA4MTMyMDAwWjATMREwDwYDVQQDEwhz
dHJhbmdlcjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABJoWLhQcQJM6ShvcSSIu
hzHZw7cMGxT6jZGo/z8tN0nEILJZotsTT49nfbIzVqxuom4hwsY3ToElXN0me/uY
UVGjQjBAMA4GA1UdDwEB/wQEAwICBDAPBgNVHRMBAf8EBTADAQH/MB0GA1UdDgQW
BBQGO2ArZgM+ZT4rcd42QLQmx2hLBDAKBggqhkjOPQQDAgNIADBFAiBlJsmcNUO6
28PsoKk5f7jpQ8VTmjs/ptwMqIaNTHtLrAIhAOwNfRQFPiJttcH5tlYmud+9P1tm
R06FXzmjsh+eoid+
-----END CERTIFICATE-----
`
