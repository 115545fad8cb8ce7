package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// A profileChange is one line of a profile's history.
type profileChange struct {
	Version int       `json:"version"`
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	Deleted bool      `json:"deleted,omitempty"`
	Fields  []string  `json:"fields"` // that differ from the version before
}

func newProfileHistoryCmd(a *app) *cobra.Command {
	var level string
	var limit int
	cmd := &cobra.Command{
		Use: "history NAME", Short: "Show who changed a profile, and what", Args: cobra.ExactArgs(1),
		Long: `History shows the latest versions, the newest first: when each was made, by whom,
and which fields differ from the version before. Older ones are in the log.

  sealedctl profile history team/release`,
		ValidArgsFunction: a.complete(profileNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			changes, err := profileHistory(cmd.Context(), e, level, args[0], limit)
			if err != nil {
				return err
			}
			return a.print(changes, func(w io.Writer) {
				row(w, "VERSION", "WHEN", "BY", "CHANGED")
				for _, c := range changes {
					what := join(c.Fields)
					if c.Deleted {
						what = "deleted"
					}
					row(w, c.Version, stamp(c.At), c.By, what)
				}
			})
		},
	}
	levelFlag(cmd, &level)
	cmd.Flags().IntVar(&limit, "limit", 20, "at most so many")
	return cmd
}

func profileHistory(ctx context.Context, e *vaultclient.Engine, level, name string, limit int) ([]profileChange, error) {
	newest, err := findProfile(ctx, e, level, name, 0)
	if errors.Is(err, sealed.ErrNotFound) { // deleted; its versions are there
		newest, err = findProfile(ctx, e, level, name, 1)
	}
	if err != nil {
		return nil, err
	}
	at := newest.Profile
	known := map[int]sealed.Profile{at.Version: at, 0: {}}
	version := func(n int) (sealed.Profile, error) {
		if p, ok := known[n]; ok {
			return p, nil
		}
		p, err := e.Profile(ctx, at.Level, at.Name, n)
		known[n] = p.Profile
		return p.Profile, err
	}
	out := []profileChange{}
	for i := len(newest.History) - 1; i >= 0 && len(out) < limit; i-- {
		n := newest.History[i]
		c := profileChange{Version: n.Version, At: n.At, By: n.By, Deleted: n.Deleted, Fields: []string{}}
		if !n.Deleted {
			after, err := version(n.Version)
			if err != nil {
				return nil, err
			}
			before, err := version(n.Version - 1)
			if err != nil {
				return nil, err
			}
			for _, d := range diffProfiles(before, after) {
				c.Fields = append(c.Fields, d.Field)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

func newProfileDiffCmd(a *app) *cobra.Command {
	var level string
	cmd := &cobra.Command{
		Use: "diff NAME@VERSION [NAME@VERSION]", Short: "Compare two versions, field by field", Args: cobra.RangeArgs(1, 2),
		Long: `Diff prints each field that differs between two versions, or between one and the
newest. A name without a version is its newest.

  sealedctl profile diff team/release@1 team/release@3`,
		ValidArgsFunction: a.complete(profileNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				name, _, _ := strings.Cut(args[0], "@")
				args = append(args, name)
			}
			var two [2]sealed.Profile
			for i, arg := range args {
				if two[i], err = versionOf(cmd.Context(), e, level, arg); err != nil {
					return err
				}
			}
			diff := diffProfiles(two[0], two[1])
			return a.print(diff, func(w io.Writer) {
				row(w, "FIELD", ref(sealed.ProfileRef{Level: two[0].Level, Name: two[0].Name, Version: two[0].Version}),
					ref(sealed.ProfileRef{Level: two[1].Level, Name: two[1].Name, Version: two[1].Version}))
				for _, d := range diff {
					row(w, d.Field, dash(d.Before), dash(d.After))
				}
			})
		},
	}
	levelFlag(cmd, &level)
	return cmd
}

// versionOf reads NAME@VERSION.
func versionOf(ctx context.Context, e *vaultclient.Engine, level, arg string) (sealed.Profile, error) {
	name, number, given := strings.Cut(arg, "@")
	version := 0
	if given {
		var err error
		if version, err = strconv.Atoi(number); err != nil || version < 1 {
			return sealed.Profile{}, usagef("%q: wants NAME@VERSION", arg)
		}
	}
	p, err := findProfile(ctx, e, level, name, version)
	return p.Profile, err
}

// A fieldDiff is one field that differs; a missing one is "".
type fieldDiff struct {
	Field  string `json:"field"`
	Before string `json:"before"`
	After  string `json:"after"`
}

// diffProfiles compares all but the version. A list of plain values is one field.
func diffProfiles(before, after sealed.Profile) []fieldDiff {
	before.Version, after.Version = 0, 0
	a, b := flat(before), flat(after)
	out := []fieldDiff{}
	all := maps.Clone(a)
	maps.Copy(all, b)
	for _, field := range slices.Sorted(maps.Keys(all)) {
		if a[field] != b[field] {
			out = append(out, fieldDiff{Field: field, Before: a[field], After: b[field]})
		}
	}
	return out
}

// flat are the fields of a profile by path. Empty ones are left out.
func flat(p sealed.Profile) map[string]string {
	out := map[string]string{}
	doc, err := json.Marshal(p)
	var v any
	if err == nil {
		err = json.Unmarshal(doc, &v)
	}
	if err == nil {
		flatten(out, "", v)
	}
	return out
}

func flatten(out map[string]string, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			flatten(out, strings.TrimPrefix(path+"."+name, "."), member)
		}
	case []any:
		var plain []string
		for i, element := range v {
			if _, object := element.(map[string]any); object {
				flatten(out, fmt.Sprintf("%s[%d]", path, i), element)
			} else {
				plain = append(plain, fmt.Sprint(element))
			}
		}
		if len(plain) > 0 {
			out[path] = strings.Join(plain, ", ")
		}
	default:
		if text := fmt.Sprint(v); v != nil && text != "" && text != "0" && text != "0s" && text != "false" {
			out[path] = text
		}
	}
}
