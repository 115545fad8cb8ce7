package main

import (
	"errors"
	"fmt"
	"strings"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// The rules of what a person reads when something fails: at most three lines.
// The first says what happened, with the cause; the second, where there is
// one, the next thing to try. No stack, no type names, no blame.

// A hintError knows the next thing to try.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// A usageError is the caller's mistake on the command line.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error { return &usageError{msg: fmt.Sprintf(format, args...)} }

// A statusError carries an exit status and was reported already.
type statusError struct{ status int }

func (e *statusError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// fail prints err and returns the exit status. It is the one mapping from
// errors to statuses.
func (a *app) fail(err error) int {
	var status *statusError
	if errors.As(err, &status) {
		return status.status
	}
	var waits *vaultclient.ProposedError
	if errors.As(err, &waits) {
		if perr := a.printProposed(waits.Proposed); perr != nil {
			err = errors.Join(err, perr)
		}
	}
	msg := strings.TrimSpace(err.Error())
	_, _ = fmt.Fprintf(a.stderr, "sealedctl: %s\n", clip(msg))
	if hint := hintOf(err); hint != "" {
		_, _ = fmt.Fprintf(a.stderr, "  try: %s\n", hint)
	}
	return statusOf(err)
}

func statusOf(err error) int {
	var usage *usageError
	switch {
	case errors.As(err, &usage), cobraUsage(err):
		return exitUsage
	case errors.Is(err, sealed.ErrApprovalRequired):
		return exitPending
	case errors.Is(err, sealed.ErrDenied), errors.Is(err, sealed.ErrRevoked):
		return exitDenied
	}
	return exitFailure
}

// cobraUsage recognises cobra's own errors, which have no type.
func cobraUsage(err error) bool {
	msg := err.Error()
	for _, p := range []string{"unknown command", "unknown flag", "unknown shorthand flag", "accepts ", "requires at least", "required flag", "invalid argument", "flag needs an argument", "if any flags in the group", "at least one of the flags"} {
		if strings.HasPrefix(msg, p) {
			return true
		}
	}
	return false
}

// clip keeps an error readable; a server may say a lot.
func clip(s string) string {
	s = strings.ReplaceAll(s, "\n", "; ")
	if len(s) > 600 {
		return s[:600] + " …"
	}
	return s
}
