package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"sealed.dev/sealed/internal/sealed"
)

// How values and answers come in. A value is read from a file, from standard
// input, or from the terminal without echo; it is never an argument, for every
// process of the machine can read those. A question is asked only where a
// person can answer it; anything but a clear yes is a no.

// maxValue bounds a value, in bytes. It is the engine's limit too.
const maxValue = 64 << 10

// errDeclined means that the person said no, or nothing.
var errDeclined = errors.New("nothing was done")

// value reads a secret value from a file, or from standard input when from is
// "" or "-"; on a terminal it asks without echo. The caller wipes it.
func (a *app) value(what, from string) ([]byte, error) {
	if from != "" && from != "-" {
		f, err := os.Open(from)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", what, err)
		}
		defer func() { _ = f.Close() }()
		return limited(what, f)
	}
	in, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return limited(what, a.stdin)
	}
	_, _ = fmt.Fprintf(a.stderr, "%s (not shown): ", what)
	b, err := term.ReadPassword(int(in.Fd()))
	_, _ = fmt.Fprintln(a.stderr)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	return notEmpty(what, b)
}

func limited(what string, r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxValue*4/3+4))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	return notEmpty(what, b)
}

func notEmpty(what string, b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("reading %s: it is empty: %w", what, sealed.ErrInvalid)
	}
	return b, nil
}

// oneLine drops the line break at the end of a value of one line, which an
// editor or echo(1) put there. Values of several lines, such as PEM keys, keep
// theirs.
func oneLine(b []byte) []byte {
	cut := bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if bytes.ContainsAny(cut, "\r\n") {
		return b
	}
	return cut
}

// fromBase64 decodes a value; the error does not quote it.
func fromBase64(b []byte) ([]byte, error) {
	out := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	n, err := base64.StdEncoding.Decode(out, bytes.TrimSpace(b))
	if err != nil {
		return nil, fmt.Errorf("decoding value: not base64: %w", sealed.ErrInvalid)
	}
	return out[:n], nil
}

// confirm asks the person at the terminal. Only "y" and "yes" mean yes.
func (a *app) confirm(question string) error {
	_, _ = fmt.Fprintf(a.stderr, "%s [y/N] ", printable(question))
	answer, err := bufio.NewReader(io.LimitReader(a.stdin, 256)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errDeclined
}

// sure asks on a terminal unless yes was given already. Elsewhere nobody could
// answer, and the command line said what to do.
func (a *app) sure(question string, yes bool) error {
	if yes || !isTerminal(a.stdin) {
		return nil
	}
	return a.confirm(question)
}

// document reads a file that holds no secret, or standard input for "-".
func (a *app) document(from string, limit int64) ([]byte, error) {
	src := a.stdin
	if from != "-" {
		f, err := os.Open(from)
		if err != nil {
			return nil, fmt.Errorf("reading document: %w", err)
		}
		defer func() { _ = f.Close() }()
		src = f
	}
	b, err := io.ReadAll(io.LimitReader(src, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading document: %w", err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("reading document: more than %d bytes: %w", limit, sealed.ErrInvalid)
	}
	return b, nil
}
