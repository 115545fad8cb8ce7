package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// agentRow is one agent definition. A deleted one keeps its version, so that
// versions never repeat. Document is the exact text its digest covers.
type agentRow struct {
	Version  int    `json:"version"`
	Deleted  bool   `json:"deleted,omitempty"`
	Document string `json:"document,omitempty"`
}

func (b *backend) pathAgents() []*framework.Path {
	name := &framework.FieldSchema{Type: framework.TypeString, Description: "Name of the agent."}
	return []*framework.Path{
		{
			Pattern:      "agents/?$",
			DisplayAttrs: display("agents"),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.list("List the agents.", b.agentNames),
			},
			HelpSynopsis:    "List agent definitions.",
			HelpDescription: "An agent definition says how to recognize an agent and how to start it.",
		},
		{
			Pattern:      "agents/(?P<name>[^/]+)$",
			DisplayAttrs: display("agent"),
			Fields: map[string]*framework.FieldSchema{
				"name":  name,
				"agent": {Type: framework.TypeString, Description: "Agent definition (JSON). version is the one expected: 0 for a new agent."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   b.op("Read an agent definition.", b.agentRead),
				logical.UpdateOperation: b.op("Write an agent definition, check-and-set.", b.agentWrite),
				logical.DeleteOperation: b.op("Delete an agent definition.", b.agentDelete),
			},
			HelpSynopsis:    "Define an agent by the digests of its executable.",
			HelpDescription: "A run pins the digest of the definition; when the definition changes, runs that pinned the old one are refused at claim.",
		},
	}
}

// agent returns a definition and its digest, or sealed.ErrNotFound.
func (b *backend) agent(ctx context.Context, s logical.Storage, name sealed.Name) (sealed.AgentDefinition, sealed.Digest, error) {
	if _, err := sealed.ParseName("agent", string(name)); err != nil {
		return sealed.AgentDefinition{}, "", err
	}
	row, err := b.agentRow(ctx, s, name)
	if err != nil {
		return sealed.AgentDefinition{}, "", err
	}
	if row.Version == 0 || row.Deleted {
		return sealed.AgentDefinition{}, "", fmt.Errorf("loading agent %s: %w", name, sealed.ErrNotFound)
	}
	def, err := sealed.ParseAgentDefinition([]byte(row.Document))
	if err != nil || def.Name != name || def.Version != row.Version {
		return sealed.AgentDefinition{}, "", fmt.Errorf("decoding stored %s: malformed", storeAgents+string(name))
	}
	return def, sealed.DigestOf(sealed.DomainAgent, []byte(row.Document)), nil
}

// agentRow returns the zero row for an agent that never was.
func (b *backend) agentRow(ctx context.Context, s logical.Storage, name sealed.Name) (agentRow, error) {
	return b.nouns.agents.get(string(name), func() (row agentRow, err error) {
		_, err = get(ctx, s, storeAgents+string(name), &row)
		return row, err
	})
}

func (b *backend) agentNames(ctx context.Context, s logical.Storage) ([]string, error) {
	all, err := s.List(ctx, storeAgents)
	if err != nil {
		return nil, fmt.Errorf("listing agents: %w", err)
	}
	out := []string{}
	for _, name := range all {
		row, err := b.agentRow(ctx, s, sealed.Name(name))
		if err != nil {
			return nil, err
		}
		if !row.Deleted {
			out = append(out, name)
		}
	}
	return out, nil
}

func (b *backend) agentRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	name, err := sealed.ParseName("name", text(d, "name"))
	if err != nil {
		return nil, err
	}
	row, err := b.agentRow(ctx, req.Storage, name)
	if err != nil || row.Version == 0 || row.Deleted {
		return nil, err
	}
	_, digest, err := b.agent(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	return map[string]any{"agent": row.Document, "digest": string(digest), "version": row.Version}, nil
}

func (b *backend) agentWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	name, err := sealed.ParseName("name", text(d, "name"))
	if err != nil {
		return nil, err
	}
	def, err := sealed.ParseAgentDefinition([]byte(text(d, "agent")))
	if err != nil {
		return nil, err
	}
	if def.Name != name {
		return nil, invalid("agent.name", "differs from the path")
	}
	defer b.locks.lock(storeAgents + string(name))()
	var old agentRow
	if _, err := get(ctx, req.Storage, storeAgents+string(name), &old); err != nil {
		return nil, err
	}
	if err := checkAndSet(def.Version, old.Version, old.Deleted); err != nil {
		return nil, err
	}
	def.Version = old.Version + 1
	document, err := json.Marshal(def)
	if err != nil {
		return nil, fmt.Errorf("encoding agent: %w", err)
	}
	digest := sealed.DigestOf(sealed.DomainAgent, document)
	if err := b.change(ctx, req, "agent.changed", map[string]any{"agent": name, "version": def.Version, "digest": digest, "any_binary": def.AnyBinary}); err != nil {
		return nil, err
	}
	defer b.nouns.agents.drop()
	if err := put(ctx, req.Storage, storeAgents+string(name), agentRow{Version: def.Version, Document: string(document)}); err != nil {
		return nil, err
	}
	return map[string]any{"version": def.Version, "digest": string(digest)}, nil
}

func (b *backend) agentDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	name, err := sealed.ParseName("name", text(d, "name"))
	if err != nil {
		return nil, err
	}
	defer b.locks.lock(storeAgents + string(name))()
	var row agentRow
	if _, err := get(ctx, req.Storage, storeAgents+string(name), &row); err != nil {
		return nil, err
	}
	if row.Version == 0 || row.Deleted {
		return nil, nil
	}
	if err := b.change(ctx, req, "agent.deleted", map[string]any{"agent": name, "version": row.Version}); err != nil {
		return nil, err
	}
	defer b.nouns.agents.drop()
	return nil, put(ctx, req.Storage, storeAgents+string(name), agentRow{Version: row.Version, Deleted: true})
}

// checkAndSet compares the version a writer expects with the stored one; what
// was deleted or never was has version 0 to the writer.
func checkAndSet(expected, stored int, deleted bool) error {
	if deleted {
		stored = 0
	}
	if expected != stored {
		return fmt.Errorf("writing version: expected %d, stored is %d: %w", expected, stored, sealed.ErrConflict)
	}
	return nil
}

// list adapts a function that returns names.
func (b *backend) list(summary string, names func(context.Context, logical.Storage) ([]string, error)) *framework.PathOperation {
	return &framework.PathOperation{
		Summary: summary,
		Callback: func(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
			out, err := names(ctx, req.Storage)
			if err != nil {
				return nil, b.edge(err)
			}
			return logical.ListResponse(out), nil
		},
	}
}
