package install

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// drift names the fields of want that have another value in got, both as Vault's
// JSON has them. Vault leaves out what is empty, so a missing field, null, "", 0,
// false and an empty list or object are the same.
func drift(want, got map[string]any) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if canonical(want[name]) != canonical(got[name]) {
			out = append(out, name)
		}
	}
	return out
}

// canonical is the JSON of a value with empty values made equal. Text is compared
// without the line break at its end, which PEM files have and Vault drops.
func canonical(v any) string {
	if s, ok := v.(string); ok {
		v = strings.TrimSpace(s)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "unencodable"
	}
	switch string(b) {
	case "null", `""`, "0", "false", "[]", "{}":
		return ""
	}
	return string(b)
}

// read is a read of what may not be there: then it is nil.
func read(ctx context.Context, c *vaultclient.Client, path string, query map[string]string) (map[string]any, error) {
	data, err := c.Read(ctx, path, query)
	if errors.Is(err, sealed.ErrNotFound) {
		return nil, nil
	}
	return data, err
}

// entry is one object of a table such as sys/mounts, nil if it is not there.
func entry(ctx context.Context, c *vaultclient.Client, table, name string) (map[string]any, error) {
	all, err := c.Read(ctx, table, nil)
	if err != nil {
		return nil, err
	}
	e, _ := all[name+"/"].(map[string]any)
	return e, nil
}

func text(m map[string]any, name string) string {
	s, _ := m[name].(string)
	return s
}
