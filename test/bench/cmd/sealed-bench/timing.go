package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/supervise"
	"sealed.dev/sealed/test/bench"
)

// A timing is one run, from this process, its supervisor and Vault's audit
// file: three clocks that are one on one machine.
type timing struct {
	begun, enqueued, started, loginSent, loggedIn, claimSent, claimed, ended time.Time

	total, cpu float64 // milliseconds; cpu is that of all processes of the run
}

func (timing) between(from, to time.Time) float64 { return bench.Milliseconds(to.Sub(from)) }

// place fills in what happened between the begin and the end of a run. Runs
// are measured one at a time, so the last login before a claim is its own.
func (s *stack) place(t *timing, a *auditFile, id sealed.RunID) error {
	status, err := supervise.ReadStatus(s.runDir(id))
	if err != nil {
		return err
	}
	t.started = status.Started
	lines, err := a.read()
	if err != nil {
		return err
	}
	for _, l := range lines {
		request := l.Type == "request"
		switch l.Request.Path {
		case devstack.Mount + "/runs":
			if !request {
				t.enqueued = l.Time
			}
		case "auth/" + devstack.AuthMount + "/login":
			if request {
				t.loginSent = l.Time
			} else {
				t.loggedIn = l.Time
			}
		case devstack.Mount + "/runs/" + string(id) + "/claim":
			if request {
				t.claimSent = l.Time
			} else {
				t.claimed = l.Time
			}
		}
	}
	for _, at := range []time.Time{t.enqueued, t.loginSent, t.loggedIn, t.claimSent, t.claimed} {
		if at.Before(t.begun) || at.After(t.ended) {
			return errors.New("reading Vault's audit file: a step of the run is missing")
		}
	}
	return nil
}

// An auditFile reads what Vault has appended since the last time.
type auditFile struct {
	path string
	at   int64
}

// newAuditFile begins at the end of what is there.
func newAuditFile(path string) *auditFile {
	a := &auditFile{path: path}
	if st, err := os.Stat(path); err == nil {
		a.at = st.Size()
	}
	return a
}

// An auditLine is the part of a line that is read; it is in clear.
type auditLine struct {
	Time    time.Time `json:"time"`
	Type    string    `json:"type"`
	Request struct {
		Path string `json:"path"`
	} `json:"request"`
}

func (a *auditFile) read() ([]auditLine, error) {
	f, err := os.Open(a.path)
	if err != nil {
		return nil, fmt.Errorf("reading Vault's audit file: %w", err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Seek(a.at, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading Vault's audit file: %w", err)
	}
	var out []auditLine
	for r := bufio.NewReader(f); ; {
		text, err := r.ReadString('\n')
		if err != nil { // a line that is being written is read next time
			return out, nil
		}
		a.at += int64(len(text))
		var l auditLine
		if err := json.NewDecoder(strings.NewReader(text)).Decode(&l); err != nil {
			return nil, fmt.Errorf("reading Vault's audit file: %w", err)
		}
		out = append(out, l)
	}
}
