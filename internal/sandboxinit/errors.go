package sandboxinit

import (
	"errors"

	"sealed.dev/sealed/internal/sealed"
)

// ErrNotRunnable means that the command exists but can't be executed.
var ErrNotRunnable = errors.New("not runnable")

// exitStatus maps a failure of init itself to the status of sealedctl run.
func exitStatus(err error) int {
	switch {
	case errors.Is(err, ErrNotRunnable):
		return sealed.ExitNotRunnable
	case errors.Is(err, sealed.ErrNotFound):
		return sealed.ExitNotFound
	}
	return sealed.ExitSealed
}
