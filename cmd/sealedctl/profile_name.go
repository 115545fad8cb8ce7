package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// The profiles of a person lie below their entity id at level user. ~/NAME
// stands for one's own, and so does --level user NAME.

const ownPrefix = "~/"

// entityRE matches how Vault makes entity ids, so that --level user takes a
// name that begins with somebody's as it is.
var entityRE = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/`)

// profileAt finds which profile a person means. No level means that any but
// one's own may be meant.
func profileAt(ctx context.Context, e *vaultclient.Engine, level, name string) (string, sealed.ProfileName, error) {
	rest, own := strings.CutPrefix(name, ownPrefix)
	if own && level != "" && level != sealed.LevelUser {
		return "", "", usagef("%s is a profile at level user, not %s", name, level)
	}
	if own || (level == sealed.LevelUser && !entityRE.MatchString(name)) {
		id, err := e.Client().Entity(ctx)
		if err != nil {
			return "", "", fmt.Errorf("finding your own profiles: %w", err)
		}
		level, name = sealed.LevelUser, id+"/"+rest
	}
	n, err := sealed.ParseProfileName(name)
	return level, n, err
}

// ownDocument puts the entity id in place of ~ in the name of a document. What
// is no such document passes unchanged.
func ownDocument(ctx context.Context, e *vaultclient.Engine, doc []byte) ([]byte, error) {
	var members map[string]json.RawMessage
	var name string
	if json.Unmarshal(doc, &members) != nil || json.Unmarshal(members["name"], &name) != nil || !strings.HasPrefix(name, ownPrefix) {
		return doc, nil
	}
	_, full, err := profileAt(ctx, e, "", name)
	if err != nil {
		return nil, err
	}
	if members["name"], err = json.Marshal(full); err != nil {
		return nil, fmt.Errorf("encoding profile: %w", err)
	}
	return jsonOf(members)
}

// findProfile reads a profile at a level or, without one, at level workflow or
// else system.
func findProfile(ctx context.Context, e *vaultclient.Engine, level, name string, version int) (vaultclient.StoredProfile, error) {
	level, n, err := profileAt(ctx, e, level, name)
	if err != nil {
		return vaultclient.StoredProfile{}, err
	}
	levels := []string{level}
	if level == "" {
		levels = []string{sealed.LevelWorkflow, sealed.LevelSystem}
	}
	for _, l := range levels {
		p, err := e.Profile(ctx, l, n, version)
		if !errors.Is(err, sealed.ErrNotFound) {
			return p, err
		}
	}
	return vaultclient.StoredProfile{}, fmt.Errorf("reading profile %s: %w", name, sealed.ErrNotFound)
}

func levelFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "level", "", "system, workflow, or user for your own (default: workflow, or else system)")
	_ = cmd.RegisterFlagCompletionFunc("level", cobra.FixedCompletions(
		[]string{sealed.LevelSystem, sealed.LevelWorkflow, sealed.LevelUser}, cobra.ShellCompDirectiveNoFileComp))
}
