package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const token = "sealed-token-of-this-run"

// A side is init's side door: it wants the token and answers from a list, the
// last answer again and again.
type side struct {
	mu      sync.Mutex
	answers []answer
	bodies  []string
}

type answer struct {
	status int
	body   string
}

func (s *side) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	s.bodies = append(s.bodies, r.Method+" "+r.URL.Path+" "+string(body))
	if r.Header.Get("Authorization") != "Bearer "+token {
		http.Error(w, "forbidden", http.StatusForbidden)
		return
	}
	a := s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.body)
}

func (s *side) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bodies
}

// double starts a side door and points the environment at it.
func double(t *testing.T, answers ...answer) *side {
	t.Helper()
	s := &side{answers: answers}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	t.Setenv("SEALED_API", srv.URL+"/sealed")
	t.Setenv("SEALED_TOKEN", token)
	return s
}

func call(args ...string) (status int, stdout, stderr string) {
	var out, errs strings.Builder
	status = run(args, &out, &errs)
	return status, out.String(), errs.String()
}

const (
	granted = `{"key":"TOKEN","state":"granted","delivery":"proxy","placeholder":"sealed-00ff","base_url":"/b/TOKEN"}`
	pending = `{"key":"TOKEN","state":"pending","approval":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}`
	denied  = `{"key":"TOKEN","state":"denied","reasons":[{"code":"not_available","msg":"this run has no such key"}]}`
)

func TestKeys(t *testing.T) {
	s := double(t, answer{200, `[{"key":"A","state":"granted","delivery":"proxy","placeholder":"p"},{"key":"B","state":"available","delivery":"env"},{"key":"C","state":"denied"},{"key":"D","state":"pending","delivery":"proxy","approval":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}]`})
	status, out, errs := call("keys")
	if want := "A\tgranted\tproxy\nB\tavailable\tenv\nC\tdenied\t\nD\tpending\tproxy\t01ARZ3NDEKTSV4RRFFQ69G5FAV\n"; status != 0 || out != want || errs != "" {
		t.Errorf("got %d, %q, %q", status, out, errs)
	}
	if got := s.seen(); len(got) != 1 || got[0] != "GET /sealed/keys " {
		t.Errorf("asked %q", got)
	}
}

func TestRequest(t *testing.T) {
	cases := map[string]struct {
		a           answer
		status      int
		out, errors string // substrings; empty: nothing
	}{
		"granted":     {answer{200, granted}, 0, `"placeholder":"sealed-00ff"`, ""},
		"pending":     {answer{202, pending}, exitPending, "", "waiting for a person to allow TOKEN (approval 01ARZ3NDEKTSV4RRFFQ69G5FAV)"},
		"denied":      {answer{403, denied}, exitDenied, "", "TOKEN denied: this run has no such key (not_available)"},
		"unavailable": {answer{503, `{"key":"TOKEN","state":"unavailable","reasons":[{"code":"unavailable","msg":"try again"}]}`}, exitFailure, "", "try again"},
		"malformed":   {answer{400, denied}, exitFailure, "", "not_available"},
		"not JSON":    {answer{502, `<html>`}, exitFailure, "", "status 502"},
		"200 garbage": {answer{200, `granted`}, exitFailure, "", "reading init's answer"},
		"empty":       {answer{200, ``}, exitFailure, "", "reading init's answer"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := double(t, c.a)
			status, out, errs := call("request", "TOKEN", "--reason", `fix "it"`)
			if status != c.status || !strings.Contains(out, c.out) || (c.out == "" && out != "") || !strings.Contains(errs, c.errors) || (c.errors == "" && errs != "") {
				t.Errorf("got %d, %q, %q", status, out, errs)
			}
			if strings.Contains(out+errs, token) {
				t.Error("the token is printed")
			}
			if got := s.seen(); len(got) != 1 || got[0] != `POST /sealed/requests {"key":"TOKEN","reason":"fix \"it\""}` {
				t.Errorf("asked %q", got)
			}
		})
	}
}

func TestKeysFails(t *testing.T) {
	for name, a := range map[string]answer{"status": {500, `null`}, "forbidden": {403, `[]`}, "an object": {200, `{}`}, "not JSON": {200, `x`}, "cut off": {200, `[{"key":"A"`}} {
		t.Run(name, func(t *testing.T) {
			double(t, a)
			if status, out, errs := call("keys"); status != exitFailure || out != "" || !strings.HasPrefix(errs, "sealed: ") {
				t.Errorf("got %d, %q, %q", status, out, errs)
			}
		})
	}
	t.Run("wrong token", func(t *testing.T) {
		double(t, answer{200, `[]`})
		t.Setenv("SEALED_TOKEN", "other")
		if status, out, _ := call("keys"); status != exitFailure || out != "" {
			t.Errorf("got %d, %q", status, out)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		t.Setenv("SEALED_API", "http://127.0.0.1:1/sealed")
		t.Setenv("SEALED_TOKEN", token)
		if status, _, errs := call("keys"); status != exitFailure || !strings.Contains(errs, "calling init") || strings.Contains(errs, token) {
			t.Errorf("got %d, %q", status, errs)
		}
	})
}

func TestUsage(t *testing.T) {
	s := double(t, answer{200, granted})
	for _, args := range [][]string{
		nil, {""}, {"help"}, {"--help"}, {"keys", "x"}, {"request"}, {"request", "TOKEN"}, {"request", "TOKEN", "--reason", ""}, {"request", "TOKEN", "--reason"},
		{"request", "TOKEN", "why"}, {"request", "TOKEN", "--reason", "x", "y"}, {"request", "TOKEN", "--reason", "x", "--wait", "soon"}, {"request", "TOKEN", "--value"}, {"request", "--reason", "x", "TOKEN"},
	} {
		if status, out, errs := call(args...); status != exitUsage || out != "" || !strings.Contains(errs, "usage: sealed") {
			t.Errorf("%q: got %d, %q, %q", args, status, out, errs)
		}
	}
	if got := s.seen(); len(got) != 0 {
		t.Errorf("asked %q", got)
	}
	for _, name := range []string{"SEALED_API", "SEALED_TOKEN"} {
		t.Run("without "+name, func(t *testing.T) {
			double(t, answer{200, `[]`})
			t.Setenv(name, "")
			if status, out, errs := call("keys"); status != exitFailure || out != "" || !strings.Contains(errs, "not inside a Sealed sandbox") {
				t.Errorf("got %d, %q, %q", status, out, errs)
			}
		})
	}
}

// local serves requests in memory, so that the clock can be false.
type local struct{ http.Handler }

func (l local) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	l.ServeHTTP(w, r)
	return w.Result(), nil
}

func TestRequestWaits(t *testing.T) {
	cases := map[string]struct {
		answers []answer
		wait    string
		status  int
		asked   int
		took    time.Duration
	}{
		"granted later": {[]answer{{202, pending}, {202, pending}, {200, granted}}, "2m", 0, 3, time.Second},
		"denied later":  {[]answer{{202, pending}, {403, denied}}, "2m", exitDenied, 2, 500 * time.Millisecond},
		"nobody":        {[]answer{{202, pending}}, "2s", exitPending, 5, 2 * time.Second},
		"no wait":       {[]answer{{202, pending}}, "0s", exitPending, 1, 0},
		"negative":      {[]answer{{202, pending}, {200, granted}}, "-1m", exitPending, 1, 0},
	}
	for name, c := range cases {
		synctest.Test(t, func(t *testing.T) {
			s := &side{answers: c.answers}
			var out, errs strings.Builder
			cl := &client{base: "http://init/sealed", token: token, http: &http.Client{Transport: local{s}}}
			start := time.Now()
			status := cl.request("TOKEN", []string{"--reason", "x", "--wait", c.wait}, &out, &errs)
			if took := time.Since(start); status != c.status || len(s.seen()) != c.asked || took != c.took {
				t.Errorf("%s: got %d after %v and %d calls", name, status, took, len(s.seen()))
			}
			if n := strings.Count(errs.String(), "waiting for a person"); n != 1 {
				t.Errorf("%s: told %d times to wait", name, n)
			}
			if (status == 0) != strings.Contains(out.String(), "sealed-00ff") {
				t.Errorf("%s: got %q", name, out.String())
			}
		})
	}
}

// The agent's proxy variables point at init's proxy; the side door must be
// reached without it. 0.0.0.0 reaches this machine and is not exempt from the
// variables, as loopback is.
func TestIgnoresProxyVariables(t *testing.T) {
	var mu sync.Mutex
	used := 0
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		used++
		_, _ = fmt.Fprint(w, `[]`)
	}))
	defer proxy.Close()
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"} {
		t.Setenv(name, proxy.URL)
	}
	t.Setenv("NO_PROXY", "")
	t.Setenv("no_proxy", "")
	s := &side{answers: []answer{{200, `[]`}}}
	srv := httptest.NewServer(s)
	defer srv.Close()
	base := strings.Replace(srv.URL, "127.0.0.1", "0.0.0.0", 1)
	t.Setenv("SEALED_API", base+"/sealed")
	t.Setenv("SEALED_TOKEN", token)
	if status, _, errs := call("keys"); status != 0 || used != 0 || len(s.seen()) != 1 {
		t.Errorf("got %d, %q; the proxy was used %d times", status, errs, used)
	}
	t.Run("negative control: a client that obeys them", func(t *testing.T) {
		c := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}
		resp, err := c.Get(base + "/sealed/keys")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if used != 1 {
			t.Error("the attack does not work without the control")
		}
	})
}

// What the agent gets is what init sent, and nothing that init did not send.
func TestGrantedIsOneLineOfJSON(t *testing.T) {
	double(t, answer{200, granted})
	_, out, _ := call("request", "TOKEN", "--reason", "x")
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil || strings.Count(out, "\n") != 1 || got["value"] != nil {
		t.Errorf("got %q, %v", out, err)
	}
}
