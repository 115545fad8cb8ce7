package supervise

import (
	"context"
	"errors"
	"fmt"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/spire-attestor/registry"
)

// An Attestor registers sandboxes on the registry socket of the host's
// attestor.
type Attestor struct{ Socket string }

var _ Registrar = Attestor{}

// Register implements Registrar. Errors wrap sealed.ErrDenied or
// sealed.ErrUnavailable.
func (a Attestor) Register(ctx context.Context, agent sealed.Name, isolation string, pid int) (Registration, error) {
	reg, err := registry.Register(ctx, a.Socket, registry.Descriptor{Agent: agent, PID: pid})
	if err != nil {
		return nil, err
	}
	if reg.Isolation != isolation {
		err := fmt.Errorf("registering sandbox: the attestor sees isolation %q, the run wants %q: %w", reg.Isolation, isolation, sealed.ErrDenied)
		return nil, errors.Join(err, reg.Close())
	}
	return reg, nil
}
