package sealed

import (
	"slices"
	"strings"
)

// Kinds of source.
const (
	SourceBuiltin      = "builtin"       // the engine's own encrypted store
	SourceVaultKV      = "vault-kv"      // a KV version 2 mount of a Vault
	SourceVaultDynamic = "vault-dynamic" // a Vault path that returns a lease
)

// A SourceConfig is the readable part of a source. Its credential is written
// apart and never read back; changing Address drops it.
type SourceConfig struct {
	Name          Name   `json:"name"`
	Type          string `json:"type"`
	Address       string `json:"address,omitempty"` // https://host:port
	CA            string `json:"ca,omitempty"`      // PEM; empty: the system's roots
	Mount         string `json:"mount,omitempty"`
	Namespace     string `json:"namespace,omitempty"`
	HasCredential bool   `json:"has_credential"`
	// Levels are those whose profiles may name the source; empty: system and
	// workflow. With user, anybody who writes a profile of their own may.
	Levels []string `json:"levels,omitempty"`
}

// AllowsLevel reports whether a profile of a level may take values from the source.
func (s SourceConfig) AllowsLevel(level string) bool {
	if len(s.Levels) == 0 {
		return level == LevelSystem || level == LevelWorkflow
	}
	return slices.Contains(s.Levels, level)
}

// Kind is "static" or "dynamic", as policies see it.
func (s SourceConfig) Kind() string {
	if s.Type == SourceVaultDynamic {
		return "dynamic"
	}
	return "static"
}

// Validate checks the fields that its type needs.
func (s SourceConfig) Validate() error {
	if _, err := ParseName("name", string(s.Name)); err != nil {
		return err
	}
	for _, l := range s.Levels {
		if !slices.Contains([]string{LevelSystem, LevelWorkflow, LevelUser}, l) {
			return fieldErr("levels", "wants system, workflow or user")
		}
	}
	switch s.Type {
	case SourceBuiltin:
		if s.Address != "" || s.Mount != "" {
			return fieldErr("address", "the built-in store has none")
		}
	case SourceVaultKV, SourceVaultDynamic:
		if !strings.HasPrefix(s.Address, "https://") {
			return fieldErr("address", "wants https://host:port")
		}
		if s.Mount == "" || strings.Contains(s.Mount, "..") {
			return fieldErr("mount", "wants the path of a mount")
		}
	default:
		return fieldErr("type", "wants builtin, vault-kv or vault-dynamic")
	}
	return nil
}
