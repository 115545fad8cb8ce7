package sealed

import (
	"errors"
	"fmt"
	"strconv"
)

// Sentinels that more than one package tests for.
var (
	// ErrInvalid is wrapped by every error of parsing and validation.
	ErrInvalid = errors.New("invalid")
	// ErrDenied means that a policy, an ACL or a revocation said no.
	ErrDenied = errors.New("denied")
	// ErrApprovalRequired means that a person has to say yes first.
	ErrApprovalRequired = errors.New("approval required")
	// ErrUnavailable means that the engine, an authority or a source cannot
	// be reached or does not answer in time. Nothing was issued.
	ErrUnavailable = errors.New("unavailable")
	// ErrConflict means that a check-and-set version or a state did not match.
	ErrConflict = errors.New("conflict")
	// ErrNotFound means that the thing does not exist or may not be known.
	ErrNotFound = errors.New("not found")
	// ErrRevoked means that a standing revocation covers the request.
	ErrRevoked = errors.New("revoked")
)

// A FieldError names the field of a document that was refused. It unwraps to
// ErrInvalid. Reason never quotes a credential value.
type FieldError struct {
	Field  string // path of the field, such as keys.GITHUB_TOKEN.ttl
	Reason string
}

func (e *FieldError) Error() string { return fmt.Sprintf("field %s: %s", e.Field, e.Reason) }

// Unwrap makes errors.Is(err, ErrInvalid) true.
func (e *FieldError) Unwrap() error { return ErrInvalid }

// fieldErr writes out what is not printable ASCII in a field's name and cuts
// it: the name may be a stranger's, and errors end up on terminals and in logs.
func fieldErr(field, format string, args ...any) error {
	const most = 160
	if q := strconv.QuoteToASCII(field); q != `"`+field+`"` {
		field = q[1 : len(q)-1]
	}
	if len(field) > most {
		field = field[:most] + "..."
	}
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...)}
}
