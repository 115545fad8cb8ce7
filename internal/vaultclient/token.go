package vaultclient

import (
	"context"
	"fmt"

	"sealed.dev/sealed/internal/sealed"
)

// Capabilities returns what the client's own token may do on paths: by path,
// in Vault's words ("create", "read", "deny" …).
func (c *Client) Capabilities(ctx context.Context, paths []string) (map[string][]string, error) {
	const path = "sys/capabilities-self"
	data, err := c.Write(ctx, path, map[string]any{"paths": paths})
	if err != nil {
		return nil, err
	}
	f := fields{path, data}
	out := make(map[string][]string, len(paths))
	for _, p := range paths {
		if out[p], err = f.texts(p); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Entity returns the entity id of the client's own token; a token without one
// is sealed.ErrDenied.
func (c *Client) Entity(ctx context.Context) (string, error) {
	const path = "auth/token/lookup-self"
	data, err := c.Read(ctx, path, nil)
	if err != nil {
		return "", err
	}
	id, err := fields{path, data}.text("entity_id")
	if err == nil && id == "" {
		err = fmt.Errorf("reading %s: the token has no entity: %w", path, sealed.ErrDenied)
	}
	return id, err
}

// PluginVersion returns the running version and the type of a mount, from what
// every token may ask. A mount that is not there is sealed.ErrDenied, as Vault
// has it.
func (e *Engine) PluginVersion(ctx context.Context) (kind, version string, err error) {
	f, err := e.c.Read(ctx, "sys/internal/ui/mounts/"+e.mount, nil)
	if err != nil {
		return "", "", err
	}
	kind, ok := f["type"].(string)
	if !ok {
		return "", "", fmt.Errorf("reading mount %s: no type: %w", e.mount, sealed.ErrInvalid)
	}
	version, _ = f["running_plugin_version"].(string)
	return kind, version, nil
}
