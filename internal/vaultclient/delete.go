package vaultclient

import "context"

// DeleteWith is Delete with query parameters, for paths of Vault's own such as a
// version in the plug-in catalog.
func (c *Client) DeleteWith(ctx context.Context, path string, query map[string]string) error {
	params := make(map[string][]string, len(query))
	for k, v := range query {
		params[k] = []string{v}
	}
	if _, err := c.api.Logical().DeleteWithDataWithContext(ctx, path, params); err != nil {
		return edge("deleting", path, err)
	}
	return nil
}
