package vaultclient

import (
	"context"
	"fmt"

	"sealed.dev/sealed/internal/sealed"
)

// A StoredAgent is an agent definition with its digest, which runs pin.
type StoredAgent struct {
	sealed.AgentDefinition
	Digest sealed.Digest `json:"digest"`
}

// Agents lists the names of the agents.
func (e *Engine) Agents(ctx context.Context) ([]string, error) {
	names, _, err := e.list(ctx, nil, "agents")
	return names, err
}

// Agent reads a definition. The digest is checked.
func (e *Engine) Agent(ctx context.Context, name sealed.Name) (StoredAgent, error) {
	var out StoredAgent
	if err := segment("agent", string(name)); err != nil {
		return out, err
	}
	f, err := e.read(ctx, nil, "agents", string(name))
	if err != nil {
		return out, err
	}
	text, err := f.text("agent")
	if err != nil {
		return out, err
	}
	digest, err := f.text("digest")
	if err != nil {
		return out, err
	}
	out.Digest = sealed.DigestOf(sealed.DomainAgent, []byte(text))
	if string(out.Digest) != digest {
		return out, fmt.Errorf("reading answer of %s: the definition does not have its digest: %w", f.path, sealed.ErrInvalid)
	}
	if out.AgentDefinition, err = sealed.ParseAgentDefinition([]byte(text)); err != nil {
		return out, fmt.Errorf("reading answer of %s: %w", f.path, err)
	}
	return out, nil
}

// WriteAgent writes a definition where def.Version is the one there is now (0:
// none), and returns the new version. Otherwise it is sealed.ErrConflict.
func (e *Engine) WriteAgent(ctx context.Context, def sealed.AgentDefinition) (version int, err error) {
	if err := segment("agent", string(def.Name)); err != nil {
		return 0, err
	}
	doc, err := encode("agent", def)
	if err != nil {
		return 0, err
	}
	f, err := e.write(ctx, map[string]any{"agent": doc}, "agents", string(def.Name))
	if err != nil {
		return 0, err
	}
	return f.int("version")
}

// DeleteAgent deletes a definition. One that is not there is no error.
func (e *Engine) DeleteAgent(ctx context.Context, name sealed.Name) error {
	if err := segment("agent", string(name)); err != nil {
		return err
	}
	return e.remove(ctx, nil, "agents", string(name))
}
