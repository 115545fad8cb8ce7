package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// A Removal says what is to go.
type Removal struct {
	Mount, AuthMount string // both required
	// Export takes the log away before the mount goes; nil: it is lost. It has to
	// write Checkpoint last: where that file is, the log was exported.
	Export     func(context.Context) error
	Checkpoint string
	// SPIRESocket is SPIRE server's own API. Empty: entries stay. Tenant and
	// TrustDomain say whose entries go.
	SPIRESocket string
	Tenant      sealed.Name
	TrustDomain string
	// TrustFile is removed if it is for this mount. Empty: it stays.
	TrustFile string
}

// Uninstall returns the job that removes what Install made for one mount: first a
// hard revocation of the tenant stops every run, then leases end, then credentials
// of sources that can take them back are dead there, then the log is exported, and
// only then the mount goes, with its keys, secrets, profiles and log. What tenants
// share goes with the last of them.
func Uninstall(c *vaultclient.Client, r Removal) (*Job, error) {
	if _, err := parseMount("mount", r.Mount); err != nil {
		return nil, fmt.Errorf("planning removal: %w", err)
	}
	if _, err := parseMount("auth_mount", r.AuthMount); err != nil {
		return nil, fmt.Errorf("planning removal: %w", err)
	}
	if r.SPIRESocket != "" && (r.Tenant == "" || r.TrustDomain == "") {
		return nil, &sealed.FieldError{Field: "tenant", Reason: "wants tenant and trust domain, to know whose entries of SPIRE go"}
	}
	t := target{Target{Mount: r.Mount, AuthMount: r.AuthMount, Tenant: r.Tenant, TrustDomain: r.TrustDomain, SPIRE: &SPIRE{Socket: r.SPIRESocket}}, c}
	steps := []step{t.stop(), t.leases(), t.undone()}
	if r.Export != nil {
		steps = append(steps, t.export(r))
	}
	steps = append(steps, t.unmount(r.Export != nil), t.dropRole(), t.dropPolicies(), t.dropAuth(), t.dropPlugin())
	if r.SPIRESocket != "" {
		steps = append(steps, t.dropEntries())
	}
	if r.TrustFile != "" {
		steps = append(steps, t.dropTrustFile(r.TrustFile))
	}
	return &Job{steps: steps}, nil
}

// configured returns the engine's configuration, nil without a mount or before it
// was configured.
func (t target) configured(ctx context.Context) (map[string]any, error) {
	m, err := t.ownMount(ctx)
	if err != nil || m == nil {
		return nil, err
	}
	return read(ctx, t.c, t.Mount+"/config", nil)
}

func tenantStop(cfg map[string]any) sealed.Revocation {
	return sealed.Revocation{Kind: sealed.RevokeTenant, Target: text(cfg, "tenant"), Hard: true, Reason: "uninstall"}
}

// stop makes a standing no for the whole tenant: nothing is issued any more.
func (t target) stop() step {
	s := step{name: "stop", what: "stop every run of the tenant"}
	s.look = func(ctx context.Context) (found, error) {
		cfg, err := t.configured(ctx)
		if err != nil || cfg == nil {
			f, _ := gone()
			return f, err
		}
		all, err := t.engine().Revocations(ctx)
		if err != nil {
			return found{}, err
		}
		want := tenantStop(cfg)
		if slices.ContainsFunc(all, func(r vaultclient.StoredRevocation) bool {
			return r.Standing && r.Hard && r.Kind == want.Kind && r.Target == want.Target
		}) {
			return same("nothing is issued any more")
		}
		p, err := t.engine().PreviewRevocation(ctx, want)
		if err != nil {
			return found{}, err
		}
		return different(fmt.Sprintf("%d live runs end, %d credentials die", len(p.Runs), p.Grants))
	}
	s.apply = func(ctx context.Context) error {
		cfg, err := t.configured(ctx)
		if err != nil || cfg == nil {
			return err
		}
		_, err = t.engine().Revoke(ctx, tenantStop(cfg))
		return err
	}
	return s
}

// countLeases counts below a prefix that ends in a slash.
func countLeases(ctx context.Context, c *vaultclient.Client, prefix string, depth int) (int, error) {
	keys, err := c.List(ctx, "sys/leases/lookup/"+prefix)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, key := range keys {
		if !strings.HasSuffix(key, "/") {
			n++
			continue
		}
		if depth == 0 {
			continue
		}
		below, err := countLeases(ctx, c, prefix+key, depth-1)
		if err != nil {
			return 0, err
		}
		n += below
	}
	return n, nil
}

// Leases counts the leases of a mount. The token needs sudo on
// sys/leases/lookup/<mount>/*.
func Leases(ctx context.Context, c *vaultclient.Client, mount string) (int, error) {
	const depth = 4 // runs/<id>/creds/<key>/<lease>
	return countLeases(ctx, c, mount+"/", depth)
}

func (t target) leases() step {
	s := step{name: "leases", what: "leases below " + t.Mount + "/"}
	s.look = func(ctx context.Context) (found, error) {
		n, err := Leases(ctx, t.c, t.Mount)
		if err != nil {
			return found{}, err
		}
		if n == 0 {
			return gone()
		}
		return present(fmt.Sprintf("%d leases are revoked", n))
	}
	s.apply = func(ctx context.Context) error {
		_, err := t.c.Write(ctx, "sys/leases/revoke-prefix/"+t.Mount, map[string]any{"sync": true})
		return err
	}
	return s
}

// export is done where its checkpoint is. It asks whether there is a log at all:
// a mount that was never configured has none.
func (t target) export(r Removal) step {
	s := step{name: "export", what: "log to " + filepath.Dir(r.Checkpoint)}
	s.look = func(ctx context.Context) (found, error) {
		if _, err := os.Stat(r.Checkpoint); err == nil {
			return same("")
		} else if !errors.Is(err, fs.ErrNotExist) {
			return found{}, err
		}
		cfg, err := t.configured(ctx)
		if err != nil || cfg == nil {
			f, _ := gone()
			return f, err
		}
		return absent("")
	}
	s.apply = r.Export
	return s
}

func (t target) unmount(exported bool) step {
	s := step{name: "mount", what: "mount " + t.Mount + "/ with its keys, secrets, profiles and log"}
	s.look = func(ctx context.Context) (found, error) {
		m, err := t.ownMount(ctx)
		if err != nil {
			return found{}, err
		}
		if m == nil {
			return gone()
		}
		cfg, err := read(ctx, t.c, t.Mount+"/config", nil)
		if err != nil {
			return found{}, err
		}
		if cfg == nil {
			return present("it was never configured")
		}
		size, err := logSize(ctx, t.engine())
		if err != nil {
			return found{}, err
		}
		detail := fmt.Sprintf("a log of %d entries", size)
		if !exported {
			detail += " is lost: nothing exports it"
		}
		return present(detail)
	}
	s.apply = func(ctx context.Context) error { return t.c.Delete(ctx, "sys/mounts/"+t.Mount) }
	return s
}

// logSize is the second line of the checkpoint.
func logSize(ctx context.Context, e *vaultclient.Engine) (uint64, error) {
	head, err := e.LogReader().Checkpoint(ctx)
	if err != nil {
		return 0, err
	}
	lines := strings.SplitN(string(head), "\n", 3)
	var size uint64
	if len(lines) < 3 {
		return 0, fmt.Errorf("reading checkpoint: malformed: %w", sealed.ErrInvalid)
	}
	if _, err := fmt.Sscanf(lines[1], "%d", &size); err != nil {
		return 0, fmt.Errorf("reading checkpoint: malformed: %w", sealed.ErrInvalid)
	}
	return size, nil
}

func (t target) dropRole() step {
	return removal("role", "role of agents "+t.role(), func(ctx context.Context) ([]string, error) {
		have, err := read(ctx, t.c, t.rolePath(), nil)
		if err != nil || have == nil {
			return nil, err
		}
		return []string{t.role()}, nil
	}, func(ctx context.Context, _ string) error { return t.c.Delete(ctx, t.rolePath()) })
}

func (t target) dropPolicies() step {
	return removal("policies", "policies of the mount", func(ctx context.Context) ([]string, error) {
		return ownPolicies(ctx, t.c, t.Mount)
	}, func(ctx context.Context, name string) error { return t.c.Delete(ctx, policyPath+"/"+name) })
}

// dropAuth removes an auth mount of ours that no other tenant has a role in.
func (t target) dropAuth() step {
	s := step{name: "auth", what: "auth mount auth/" + t.AuthMount + "/"}
	s.look = func(ctx context.Context) (found, error) {
		m, err := entry(ctx, t.c, "sys/auth", t.AuthMount)
		switch {
		case err != nil:
			return found{}, err
		case m == nil:
			return gone()
		case text(m, "type") != "jwt" || text(m, "description") != authDescription:
			return found{Present, Keep, "stays: install has not made it"}, nil
		}
		roles, err := t.c.List(ctx, "auth/"+t.AuthMount+"/role")
		if err != nil {
			return found{}, err
		}
		if roles = slices.DeleteFunc(roles, func(r string) bool { return r == t.role() }); len(roles) > 0 {
			return found{Present, Keep, "stays: others have roles in it: " + list(roles)}, nil
		}
		return present("")
	}
	s.apply = func(ctx context.Context) error { return t.c.Delete(ctx, "sys/auth/"+t.AuthMount) }
	return s
}

// dropPlugin takes the plug-in out of the catalog when no other mount uses it.
func (t target) dropPlugin() step {
	s := step{name: "plugin", what: "plug-in " + PluginName + " in the catalog"}
	s.look = func(ctx context.Context) (found, error) {
		mounts, err := t.c.Read(ctx, "sys/mounts", nil)
		if err != nil {
			return found{}, err
		}
		var others []string
		for name, v := range mounts {
			if m, _ := v.(map[string]any); text(m, "type") == PluginName && name != t.Mount+"/" {
				others = append(others, name)
			}
		}
		if len(others) > 0 {
			return found{Present, Keep, "stays: mounted at " + list(others)}, nil
		}
		versions, err := catalogVersions(ctx, t.c)
		if err != nil {
			return found{}, err
		}
		if len(versions) == 0 {
			return gone()
		}
		return present(fmt.Sprintf("%d versions; the files in plugin_directory stay", len(versions)))
	}
	s.apply = func(ctx context.Context) error {
		versions, err := catalogVersions(ctx, t.c)
		if err != nil {
			return err
		}
		for _, v := range versions {
			if err := t.c.DeleteWith(ctx, catalogPath, map[string]string{"version": v}); err != nil {
				return err
			}
		}
		return nil
	}
	return s
}

// dropEntries removes every entry of the tenant that is ours, whatever its parent.
func (t target) dropEntries() step {
	find := func(ctx context.Context, client entryv1.EntryClient) ([]string, error) {
		all, err := listEntries(ctx, client)
		var ids []string
		for _, e := range all {
			if _, ours := t.registered(e); ours {
				ids = append(ids, e.Id)
			}
		}
		return ids, err
	}
	s := step{name: "spire", what: "entries of SPIRE for tenant " + string(t.Tenant)}
	s.look = func(ctx context.Context) (out found, err error) {
		err = t.withSPIRE(func(client entryv1.EntryClient) error {
			ids, err := find(ctx, client)
			if out, _ = gone(); len(ids) > 0 {
				out, _ = present(fmt.Sprintf("%d entries", len(ids)))
			}
			return err
		})
		return out, err
	}
	s.apply = func(ctx context.Context) error {
		return t.withSPIRE(func(client entryv1.EntryClient) error {
			ids, err := find(ctx, client)
			if err != nil {
				return err
			}
			return deleteEntries(ctx, client, ids)
		})
	}
	return s
}

func (t target) dropTrustFile(path string) step {
	return removal("trust-file", "trust file "+path, func(context.Context) ([]string, error) {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading trust file: %w", err)
		}
		if f, err := sealed.ParseTrustFile(b); err != nil || f.VaultMount != t.Mount {
			return nil, nil
		}
		return []string{path}, nil
	}, func(context.Context, string) error { return os.Remove(path) })
}
