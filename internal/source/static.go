package source

import (
	"context"
	"fmt"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// Static is what a source of values at rest does beside reading them: nothing.
// It is there to be embedded.
type Static struct{}

// Prepare prepares nothing: there is nothing to revoke later.
func (Static) Prepare(context.Context, sealed.KeyRef) (string, error) { return "", nil }

// Renew fails: there is nothing to renew.
func (Static) Renew(context.Context, string) (time.Duration, error) {
	return 0, fmt.Errorf("renewing: a value at rest has no lease: %w", sealed.ErrUnavailable)
}

// Revoke does nothing: the value is not ours to take back.
func (Static) Revoke(context.Context, string) error { return nil }

// Keep does nothing: the login needs no renewing.
func (Static) Keep(context.Context) error { return nil }

// Revocable reports false.
func (Static) Revocable() bool { return false }
