package devstack

import (
	"context"
	"fmt"
)

// BuildServers makes sure that every server which a stack with cfg.Identity
// needs is there, and builds what is not into cfg.CacheDir, which is required.
// Nothing is started and cfg.Dir is not used, so anyone may call it, for SPIRE
// too.
func BuildServers(ctx context.Context, cfg Config) ([]ServerStatus, error) {
	found, err := findServers(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("building servers: %w", err)
	}
	out := make([]ServerStatus, len(found))
	for i, v := range found {
		out[i] = ServerStatus(v)
	}
	return out, nil
}
