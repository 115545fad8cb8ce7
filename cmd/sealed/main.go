// Command sealed is what an agent runs inside a sandbox to see which keys its
// run has and to ask for one that a person must allow. It deals in names,
// handles and placeholders; it never sees a value.
//
//	sealed keys    key, state (granted, pending, available, denied), delivery, and the approval of a pending one
//	sealed request KEY --reason "why" [--wait 2m]
//
// Exit status: 0 granted, 1 failure, 2 usage, 3 denied, 4 pending.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const (
	exitFailure = 1
	exitUsage   = 2
	exitDenied  = 3
	exitPending = 4
)

// A client speaks to init's endpoint on the loopback of the sandbox.
type client struct {
	base, token string
	http        *http.Client
}

// A state mirrors what init answers about one key.
type state struct {
	Key         string `json:"key"`
	State       string `json:"state"`
	Delivery    string `json:"delivery,omitempty"`
	Placeholder string `json:"placeholder,omitempty"`
	BaseURL     string `json:"base_url,omitempty"`
	Approval    string `json:"approval,omitempty"`
	Reasons     []struct {
		Code string `json:"code"`
		Msg  string `json:"msg"`
	} `json:"reasons,omitempty"`
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	c := &client{base: os.Getenv("SEALED_API"), token: os.Getenv("SEALED_TOKEN"), http: &http.Client{
		Timeout: 30 * time.Second, Transport: &http.Transport{Proxy: nil},
	}}
	if c.base == "" || c.token == "" {
		_, _ = fmt.Fprintln(stderr, "sealed: not inside a Sealed sandbox (SEALED_API is not set)")
		return exitFailure
	}
	switch {
	case len(args) == 1 && args[0] == "keys":
		return c.keys(stdout, stderr)
	case len(args) >= 2 && args[0] == "request":
		return c.request(args[1], args[2:], stdout, stderr)
	}
	_, _ = fmt.Fprintln(stderr, "usage: sealed keys | sealed request KEY --reason TEXT [--wait DURATION]")
	return exitUsage
}

func (c *client) keys(stdout, stderr io.Writer) int {
	var out []state
	status, err := c.do(http.MethodGet, "/keys", nil, &out)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("init answered status %d", status)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "sealed:", err)
		return exitFailure
	}
	for _, s := range out {
		_, _ = fmt.Fprintf(stdout, "%s\t%s\t%s", s.Key, s.State, s.Delivery)
		if s.Approval != "" {
			_, _ = fmt.Fprintf(stdout, "\t%s", s.Approval)
		}
		_, _ = fmt.Fprintln(stdout)
	}
	return 0
}

func (c *client) request(key string, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("request", flag.ContinueOnError)
	fs.SetOutput(stderr)
	reason := fs.String("reason", "", "why you need it; a person reads this")
	wait := fs.Duration("wait", 0, "how long to wait for the person")
	if fs.Parse(args) != nil || fs.NArg() > 0 || *reason == "" {
		_, _ = fmt.Fprintln(stderr, "usage: sealed request KEY --reason TEXT [--wait DURATION]")
		return exitUsage
	}
	deadline := time.Now().Add(*wait)
	for told := false; ; {
		var s state
		status, err := c.do(http.MethodPost, "/requests", map[string]string{"key": key, "reason": *reason}, &s)
		if err != nil {
			_, _ = fmt.Fprintln(stderr, "sealed:", err)
			return exitFailure
		}
		if status != http.StatusAccepted {
			return report(s, status, stdout, stderr)
		}
		if !told {
			_, _ = fmt.Fprintf(stderr, "sealed: waiting for a person to allow %s (approval %s)\n", key, s.Approval)
			told = true
		}
		if !time.Now().Before(deadline) {
			return exitPending
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func report(s state, status int, stdout, stderr io.Writer) int {
	if status == http.StatusOK {
		_ = json.NewEncoder(stdout).Encode(s)
		return 0
	}
	for _, r := range s.Reasons {
		_, _ = fmt.Fprintf(stderr, "sealed: %s %s: %s (%s)\n", s.Key, s.State, r.Msg, r.Code)
	}
	if status == http.StatusForbidden {
		return exitDenied
	}
	return exitFailure
}

func (c *client) do(method, path string, in, out any) (int, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, fmt.Errorf("encoding request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, c.base+path, body)
	if err != nil {
		return 0, fmt.Errorf("building request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, fmt.Errorf("calling init: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(out); err != nil {
		return resp.StatusCode, fmt.Errorf("reading init's answer (status %d): %w", resp.StatusCode, err)
	}
	return resp.StatusCode, nil
}
