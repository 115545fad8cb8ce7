package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

func (b *backend) pathProfiles() []*framework.Path {
	level := &framework.FieldSchema{Type: framework.TypeString, Description: "system, workflow or user."}
	listing := &framework.PathOperation{Summary: "List the profiles of a level.", Callback: b.profileList}
	return append(b.pathPreview(), []*framework.Path{
		{
			Pattern:         "profiles/(?P<level>[^/]+)/?$",
			DisplayAttrs:    display("profiles"),
			Fields:          map[string]*framework.FieldSchema{"level": level},
			Operations:      map[logical.Operation]framework.OperationHandler{logical.ListOperation: listing},
			HelpSynopsis:    "List profiles.",
			HelpDescription: "A profile is a set of named keys at one level of the cascade system, workflow, user.",
		},
		{
			Pattern:      "profiles/(?P<level>[^/]+)/(?P<name>.+)",
			DisplayAttrs: display("profile"),
			Fields: map[string]*framework.FieldSchema{
				"level":   level,
				"name":    {Type: framework.TypeString, Description: "Name of the profile, one to four segments; at level user the first is the entity id of its owner."},
				"profile": {Type: framework.TypeString, Description: "The profile (JSON); its version is the one expected: 0 for a new profile. On patch: what changes, as a JSON merge patch (RFC 7396)."},
				"version": {Type: framework.TypeInt, Description: "On read: this version instead of the newest. On patch: the one expected.", Query: true},
				"force":   {Type: framework.TypeBool, Description: "On delete: also when live runs pin it.", Query: true},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   b.op("Read a profile.", b.profileRead),
				logical.UpdateOperation: b.op("Write a new version of a profile, check-and-set.", b.profileWrite),
				logical.PatchOperation:  b.op("Change fields of a profile, check-and-set.", b.profilePatch),
				logical.DeleteOperation: b.op("Delete a profile; its versions stay for the runs that pin them.", b.profileDelete),
				logical.ListOperation:   listing,
			},
			HelpSynopsis: "Versioned sets of named keys.",
			HelpDescription: "A run has the levels that exist under its profile's name: system/default, system, workflow, and user below the requester's entity id. " +
				"Per key the last that names a source defines it, and every other can only take away. Every version is kept; a change that widens is logged as such.",
		},
	}...)
}

func (b *backend) profileList(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	level, below := text(d, "level"), ""
	if !slices.Contains(levels[:], level) {
		return nil, b.edge(invalid("level", "wants system, workflow or user"))
	}
	if _, ok := d.Schema["name"]; ok { // below a prefix
		name, err := sealed.ParseProfileName(strings.TrimSuffix(text(d, "name"), "/"))
		if err != nil {
			return nil, b.edge(err)
		}
		below = string(name) + "/"
	}
	names, err := profileNames(ctx, req.Storage, level, below)
	if err != nil {
		return nil, b.edge(err)
	}
	return logical.ListResponse(stringsOf(names)), nil
}

func (b *backend) profileRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	ref := sealed.ProfileRef{Level: text(d, "level"), Name: sealed.ProfileName(text(d, "name"))}
	if err := validateProfileRef(ref.Level, ref.Name); err != nil {
		return nil, err
	}
	head, err := b.profileHead(ctx, req.Storage, ref.Level, ref.Name)
	if err != nil {
		return nil, err
	}
	ref.Version, _ = d.Get("version").(int)
	if ref.Version == 0 {
		if !head.exists() {
			return nil, nil
		}
		ref.Version = head.Version
	}
	if ref.Version < 0 || ref.Version > head.Version {
		return nil, nil
	}
	p, err := b.profileVersion(ctx, req.Storage, ref)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding profile: %w", err)
	}
	history, err := json.Marshal(head.Notes)
	if err != nil {
		return nil, fmt.Errorf("encoding profile: %w", err)
	}
	return map[string]any{
		"profile": string(doc), "version": p.Version, "newest": head.Version, "deleted": head.Deleted, "history": string(history),
	}, nil
}
