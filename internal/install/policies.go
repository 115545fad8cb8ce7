package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/vault-plugin/policies"
)

const policyPath = "sys/policies/acl"

// mark is the first line of a policy that this package has written.
func mark(mount string) string {
	return "# Sealed, mount " + mount + ". Written by sealedctl: the next install undoes edits.\n"
}

// RenderPolicies returns the text of every ready-made policy for a mount, by the
// policy's name in Vault.
func RenderPolicies(mount string) (map[string]string, error) {
	if _, err := ParseMount(mount); err != nil {
		return nil, fmt.Errorf("rendering policies: %w", err)
	}
	files, err := fs.Glob(policies.Policies, "*.hcl")
	if err != nil {
		return nil, fmt.Errorf("rendering policies: %w", err)
	}
	out := make(map[string]string, len(files))
	for _, file := range files {
		body, err := fs.ReadFile(policies.Policies, file)
		if err != nil {
			return nil, fmt.Errorf("rendering policies: %w", err)
		}
		role := strings.TrimSuffix(path.Base(file), ".hcl")
		out[PolicyName(mount, role)] = mark(mount) + strings.ReplaceAll(string(body), "{{mount}}", mount)
	}
	return out, nil
}

// Policies returns the job that writes the ready-made policies of a mount and
// removes those of ours that are not ready-made any more.
func Policies(c *vaultclient.Client, mount string) (*Job, error) {
	if _, err := ParseMount(mount); err != nil {
		return nil, fmt.Errorf("planning policies: %w", err)
	}
	return &Job{steps: policySteps(c, mount)}, nil
}

func policySteps(c *vaultclient.Client, mount string) []step {
	return []step{writePolicies(c, mount), prunePolicies(c, mount)}
}

// offPolicies names the policies that are missing and those that are otherwise.
func offPolicies(ctx context.Context, c *vaultclient.Client, want map[string]string) (missing, changed []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		have, err := read(ctx, c, policyPath+"/"+name, nil)
		switch {
		case err != nil:
			return nil, nil, err
		case have == nil:
			missing = append(missing, name)
		case text(have, "policy") != want[name]:
			changed = append(changed, name)
		}
	}
	return missing, changed, nil
}

func writePolicies(c *vaultclient.Client, mount string) step {
	s := step{name: "policies", what: "policies " + PolicyName(mount, "*")}
	s.look = func(ctx context.Context) (found, error) {
		want, err := RenderPolicies(mount)
		if err != nil {
			return found{}, err
		}
		missing, changed, err := offPolicies(ctx, c, want)
		switch {
		case err != nil:
			return found{}, err
		case len(changed) > 0:
			detail := "not as written by this version: " + list(changed)
			if len(missing) > 0 {
				detail += "; missing: " + list(missing)
			}
			return different(detail)
		case len(missing) > 0:
			return absent(list(missing))
		}
		return same(fmt.Sprintf("%d policies", len(want)))
	}
	s.apply = func(ctx context.Context) error {
		want, err := RenderPolicies(mount)
		if err != nil {
			return err
		}
		missing, changed, err := offPolicies(ctx, c, want)
		if err != nil {
			return err
		}
		for _, name := range append(missing, changed...) {
			if _, err := c.Write(ctx, policyPath+"/"+name, map[string]any{"policy": want[name]}); err != nil {
				return err
			}
		}
		return nil
	}
	return s
}

// ownPolicies lists the policies that carry our mark for the mount.
func ownPolicies(ctx context.Context, c *vaultclient.Client, mount string) ([]string, error) {
	names, err := c.List(ctx, policyPath)
	if err != nil {
		return nil, err
	}
	var own []string
	for _, name := range names {
		if !strings.HasPrefix(name, PolicyName(mount, "")) {
			continue
		}
		have, err := read(ctx, c, policyPath+"/"+name, nil)
		if errors.Is(err, sealed.ErrDenied) && strings.Contains(strings.TrimPrefix(name, PolicyName(mount, "")), "-") {
			continue // of a mount whose name begins like ours: roles have no hyphen
		}
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(text(have, "policy"), mark(mount)) {
			own = append(own, name)
		}
	}
	return own, nil
}

// stalePolicies are ours, and not wanted any more.
func stalePolicies(ctx context.Context, c *vaultclient.Client, mount string) ([]string, error) {
	want, err := RenderPolicies(mount)
	if err != nil {
		return nil, err
	}
	own, err := ownPolicies(ctx, c, mount)
	return slices.DeleteFunc(own, func(name string) bool { _, ok := want[name]; return ok }), err
}

func prunePolicies(c *vaultclient.Client, mount string) step {
	return removal("policies-old", "policies of an older version", func(ctx context.Context) ([]string, error) {
		return stalePolicies(ctx, c, mount)
	}, func(ctx context.Context, name string) error { return c.Delete(ctx, policyPath+"/"+name) })
}

// removal is a step that removes whatever find names.
func removal(name, what string, find func(context.Context) ([]string, error), remove func(context.Context, string) error) step {
	return step{name: name, what: what, look: func(ctx context.Context) (found, error) {
		names, err := find(ctx)
		if err != nil {
			return found{}, err
		}
		if len(names) == 0 {
			return gone()
		}
		return present(list(names))
	}, apply: func(ctx context.Context) error {
		names, err := find(ctx)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := remove(ctx, name); err != nil {
				return err
			}
		}
		return nil
	}}
}
