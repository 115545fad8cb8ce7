package vaultclient

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/sealed"
)

// Mounts returns the paths of the secrets engines of a kind that the client's own
// token can reach, in order and without the slash at the end. Vault shows no others
// to it.
func (c *Client) Mounts(ctx context.Context, ofKind func(string) bool) ([]string, error) {
	const path = "sys/internal/ui/mounts"
	data, err := c.Read(ctx, path, nil)
	if err != nil {
		return nil, err
	}
	engines, ok := data["secret"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("reading %s: no secrets engines: %w", path, sealed.ErrInvalid)
	}
	var out []string
	for mount, about := range engines {
		m, _ := about.(map[string]any)
		if kind, ok := m["type"].(string); ok && ofKind(kind) {
			out = append(out, strings.TrimSuffix(mount, "/"))
		}
	}
	slices.Sort(out)
	return out, nil
}
