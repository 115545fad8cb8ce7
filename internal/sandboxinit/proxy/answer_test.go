package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A watchedBody gives one byte at a time and notes how much has come out of the
// proxy before each.
type watchedBody struct {
	text string
	out  *httptest.ResponseRecorder
	seen []int
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.seen = append(b.seen, b.out.Body.Len())
	if b.text == "" {
		return 0, io.EOF
	}
	p[0], b.text = b.text[0], b.text[1:]
	return 1, nil
}

// seen returns what an agent sees of an answer: how much is out after each byte,
// and what comes out in the end.
func (r *rig) seenOf(contentType, text string) ([]int, string) {
	r.t.Helper()
	w := httptest.NewRecorder()
	body := &watchedBody{text: text, out: w}
	if err := r.p.stream(r.t.Context(), w, r.p.scrubber(w), body, framingOf(contentType), func() {}); err != nil {
		r.t.Fatal(err)
	}
	return body.seen, w.Body.String()
}

// An agent that has an upstream repeat its guess of how the value begins can't
// tell by the delay whether it is right (R22), nor by what comes at the end.
func TestAnswerTellsNoBeginning(t *testing.T) {
	frames := map[string]string{"": "no such model '%s' here", "application/json": `{"error":"no model %s"}`,
		"text/event-stream": "event: e\ndata: %s\n\ndata: more\n\n", "application/x-ndjson": "{\"a\":\"%s\"}\n{}\n"}
	tells := func(r *rig, contentType, frame string) bool {
		for n := 1; n < len(canary); n++ {
			right, wrong := canary[:n], canary[:n-1]+"~"
			a, x := r.seenOf(contentType, fmt.Sprintf(frame, right))
			b, y := r.seenOf(contentType, fmt.Sprintf(frame, wrong))
			if !slices.Equal(a, b) || x != fmt.Sprintf(frame, right) || y != fmt.Sprintf(frame, wrong) {
				return true
			}
		}
		return false
	}
	for contentType, frame := range frames {
		r := newRig(t, nil, nil)
		if tells(r, contentType, frame) {
			t.Errorf("%s: a right guess looks unlike a wrong one", contentType)
		}
		if _, text := r.seenOf(contentType, fmt.Sprintf(frame, canary)); text != fmt.Sprintf(frame, "[sealed:API_KEY]") {
			t.Errorf("%s: the value: %q", contentType, text)
		}
		r.p.ordinary = true
		if !tells(r, contentType, frame) {
			t.Errorf("%s: control off: nothing is told", contentType)
		}
	}
}

// The same for a header that the upstream repeats.
func TestAnswerHeaderTellsNoBeginning(t *testing.T) {
	r := newRig(t, nil, nil)
	for n := 1; n < len(canary); n++ {
		if guess := "/find?q=" + canary[:n]; r.p.scrub(guess) != guess {
			t.Errorf("a beginning of %d characters shows", n)
		}
	}
	if got := r.p.scrub("/find?q=" + canary); got != "/find?q=[sealed:API_KEY]" {
		t.Errorf("the value: %q", got)
	}
}

// Whole records come at once; without a framing the end waits.
func TestRecordsProgress(t *testing.T) {
	r := newRig(t, nil, nil)
	for _, tt := range []struct {
		contentType, text string
		out               []int // after the bytes that end something, and before the end
	}{
		{"text/event-stream", "data: 1\n\ndata: 2\r\n\r\nda", []int{0, 9, 20}},
		{"text/event-stream; charset=utf-8", ":\n\n\n", []int{0, 3, 4}},
		{"application/x-ndjson", "{}\n{}\r\n{", []int{0, 3, 7}},
		{"text/plain", "one\n\ntwo\n\n", []int{0}},
		{"text/event-stream, text/html", "one\n\n", []int{0}},
	} {
		seen, text := r.seenOf(tt.contentType, tt.text)
		if got := slices.Compact(seen); !slices.Equal(got, tt.out) || text != tt.text {
			t.Errorf("%s: out after %v, want %v; in the end %q", tt.contentType, got, tt.out, text)
		}
	}
}

// The end of a record is the same however the stream arrives.
func FuzzFramingEnd(f *testing.F) {
	for _, s := range []string{"a\n\nb", "\r\n\r\n", "a\r\n\r\nb\n", "\n", "a\r\rb\n\n", ""} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, blank bool) {
		whole, single := framing{blank: blank, lines: !blank}, framing{blank: blank, lines: !blank}
		last := 0
		for i := range text {
			if single.end(text[i:i+1]) > 0 {
				last = i + 1
			}
		}
		if got := whole.end(text); got != last || whole.busy != single.busy {
			t.Errorf("%q: %d at once, %d byte by byte", text, got, last)
		}
	})
}

// An answer that pauses does not hang the agent for ever, and does not look
// complete.
func TestPauseIsCut(t *testing.T) {
	gone := make(chan struct{})
	r := newRig(t, nil, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, "started")
		w.(http.Flusher).Flush()
		<-req.Context().Done()
		close(gone)
	})
	r.p.idle = 50 * time.Millisecond
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(conn, "GET /b/API_KEY/v1/x HTTP/1.1\r\nHost: "+r.addr+"\r\n"+auth+"\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Errorf("the stream ended as if it were complete: %d %v %q", resp.StatusCode, resp.Header, body)
	}
	<-gone
}

func TestFramingOf(t *testing.T) {
	for contentType, want := range map[string]framing{
		"text/event-stream": {blank: true}, "TEXT/Event-Stream ; x=y": {blank: true}, "application/jsonl": {lines: true},
		"": {}, "application/json": {}, "text/event-stream-2": {}, ";": {},
	} {
		if diff := cmp.Diff(want, framingOf(contentType), cmp.AllowUnexported(framing{})); diff != "" {
			t.Errorf("%s: %s", contentType, diff)
		}
	}
	if !strings.Contains(fmt.Sprint(heldHeaders), "Content-Length") {
		t.Error("the length of the unscrubbed answer is passed on")
	}
}
