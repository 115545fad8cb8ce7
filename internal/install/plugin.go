package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/semver"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

const catalogPath = "sys/plugins/catalog/secret/" + PluginName

// mountConfig is what every mount of the engine is tuned to. Nothing of a request
// or an answer goes to the audit device in the clear, and no header of a caller
// reaches the plug-in. Lists are empty on purpose.
func mountConfig() map[string]any {
	return map[string]any{
		"default_lease_ttl": 3600, "max_lease_ttl": 86400, "listing_visibility": "hidden",
		"audit_non_hmac_request_keys": []string{}, "audit_non_hmac_response_keys": []string{},
		"passthrough_request_headers": []string{}, "allowed_response_headers": []string{},
	}
}

// auditDevice only warns: which device an enterprise has is its own choice.
func (t target) auditDevice() step {
	return step{name: "audit", what: "audit device of Vault", look: func(ctx context.Context) (found, error) {
		devices, err := read(ctx, t.c, "sys/audit", nil)
		if errors.Is(err, sealed.ErrDenied) {
			return found{Refused, Warn, "this token may not look; see that there is one"}, nil
		}
		if err != nil {
			return found{}, err
		}
		var names, raw []string
		for name, v := range devices {
			d, _ := v.(map[string]any)
			options, _ := d["options"].(map[string]any)
			names = append(names, name)
			if text(options, "log_raw") == "true" {
				raw = append(raw, name)
			}
		}
		switch {
		case len(names) == 0:
			return found{Absent, Warn, "none: Vault keeps no trace of who called what; vault audit enable"}, nil
		case len(raw) > 0:
			return found{Different, Warn, list(raw) + " writes tokens in the clear (log_raw)"}, nil
		}
		return same(list(names))
	}}
}

// plugin is the build in the catalog. That its file is where Vault looks for it is
// proven by Vault: it starts the file with this checksum to read its version.
func (t target) plugin() step {
	s := step{name: "plugin", what: "plug-in " + PluginName + " " + t.Plugin.Version + " in the catalog"}
	s.look = func(ctx context.Context) (found, error) {
		have, err := read(ctx, t.c, catalogPath, map[string]string{"version": t.Plugin.Version})
		if err != nil {
			return found{}, err
		}
		switch {
		case have == nil && t.Plugin.SHA256 == "":
			return conflict("version %s is not in the catalog; name its file", t.Plugin.Version)
		case have == nil:
			return absent(fmt.Sprintf("before that, copy it to %s in plugin_directory on every server of Vault; SHA-256 %s", t.Plugin.Command, t.Plugin.SHA256))
		case t.Plugin.SHA256 != "" && text(have, "sha256") != t.Plugin.SHA256:
			return different("another build with this version: SHA-256 " + text(have, "sha256"))
		case t.Plugin.SHA256 != "" && text(have, "command") != t.Plugin.Command:
			return different("its file is " + text(have, "command"))
		}
		return same("SHA-256 " + text(have, "sha256"))
	}
	s.apply = func(ctx context.Context) error {
		_, err := t.c.Write(ctx, catalogPath, map[string]any{
			"version": t.Plugin.Version, "sha256": t.Plugin.SHA256, "command": t.Plugin.Command,
		})
		if err != nil && !errors.Is(err, sealed.ErrDenied) {
			return fmt.Errorf("is %s in plugin_directory on every server, executable, and that very build? %w", t.Plugin.Command, err)
		}
		return err
	}
	return s
}

// ownMount reads the entry of the mount; another kind of engine is a conflict.
func (t target) ownMount(ctx context.Context) (map[string]any, error) {
	m, err := entry(ctx, t.c, "sys/mounts", t.Mount)
	if err != nil || m == nil {
		return nil, err
	}
	if kind := text(m, "type"); kind != PluginName {
		return nil, fmt.Errorf("%s/ is a mount of %s: %w", t.Mount, kind, sealed.ErrConflict)
	}
	return m, nil
}

// mount is the engine's mount, bound to the version. How it is tuned counts, too:
// a tuned-in header or audit key would be a leak.
func (t target) mount() step {
	s := step{name: "mount", what: "mount " + t.Mount + "/, version " + t.Plugin.Version}
	s.look = func(ctx context.Context) (found, error) {
		m, err := t.ownMount(ctx)
		if err != nil {
			return found{}, err
		}
		if m == nil {
			return absent("tenant " + string(t.Tenant))
		}
		config, _ := m["config"].(map[string]any)
		off := drift(mountConfig(), config)
		if v := text(m, "plugin_version"); v != t.Plugin.Version {
			off = append(off, "plugin_version (is "+orNone(v)+")")
		}
		if len(off) > 0 {
			return different(strings.Join(off, ", "))
		}
		return same("")
	}
	s.apply = func(ctx context.Context) error {
		m, err := t.ownMount(ctx)
		if err != nil {
			return err
		}
		config := mountConfig()
		config["plugin_version"] = t.Plugin.Version
		if m != nil {
			_, err = t.c.Write(ctx, "sys/mounts/"+t.Mount+"/tune", config)
			return err
		}
		_, err = t.c.Write(ctx, "sys/mounts/"+t.Mount, map[string]any{
			"type": PluginName, "description": "Sealed, tenant " + string(t.Tenant), "config": config,
		})
		return err
	}
	return s
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// running is the process behind the mount: after a change of version or build it
// has to be started again.
func (t target) running() step {
	s := step{name: "running", what: "the running plug-in is that build"}
	s.look = func(ctx context.Context) (found, error) {
		m, err := t.ownMount(ctx)
		if err != nil {
			return found{}, err
		}
		if m == nil {
			return absent("")
		}
		sum := t.Plugin.SHA256
		if sum == "" {
			have, err := read(ctx, t.c, catalogPath, map[string]string{"version": t.Plugin.Version})
			if err != nil {
				return found{}, err
			}
			sum = text(have, "sha256")
		}
		version := text(m, "running_plugin_version")
		switch {
		case version != t.Plugin.Version:
			return different(orNone(version) + " runs; it is reloaded, and leases live on")
		case text(m, "running_sha256") != sum:
			return different("another build runs; it is reloaded, and leases live on")
		}
		return same(version)
	}
	s.apply = func(ctx context.Context) error {
		_, err := t.c.Write(ctx, "sys/plugins/reload/backend", map[string]any{"mounts": t.Mount + "/"})
		return err
	}
	return s
}

// mounted is the first step of what needs a mount.
func (t target) mounted() step {
	return step{name: "mounted", what: "mount " + t.Mount + "/", look: func(ctx context.Context) (found, error) {
		m, err := t.ownMount(ctx)
		if err != nil {
			return found{}, err
		}
		if m == nil {
			return conflict("%s/ is not there; install makes it", t.Mount)
		}
		return same("runs " + orNone(text(m, "running_plugin_version")))
	}}
}

// answers asks the engine itself, through the plug-in, after it was reloaded.
func (t target) answers() step {
	return step{name: "answers", what: "the engine answers from its storage", look: func(ctx context.Context) (found, error) {
		cfg, err := read(ctx, t.c, t.Mount+"/config", nil)
		switch {
		case errors.Is(err, sealed.ErrDenied):
			return found{Refused, Warn, "this token may not read the configuration; ask doctor"}, nil
		case err != nil:
			return found{}, err
		case cfg == nil:
			return same("it is not configured yet")
		}
		return same("tenant " + text(cfg, "tenant"))
	}}
}

// LatestVersion returns the highest version of the plug-in in the catalog.
// sealed.ErrNotFound means that there is none with a version.
func LatestVersion(ctx context.Context, c *vaultclient.Client) (string, error) {
	versions, err := catalogVersions(ctx, c)
	if err != nil {
		return "", err
	}
	latest := slices.MaxFunc(append(versions, ""), semver.Compare)
	if latest == "" {
		return "", fmt.Errorf("looking for the plug-in: no version is in the catalog: %w", sealed.ErrNotFound)
	}
	return latest, nil
}

// catalogVersions lists the registered versions; "" is one without a version.
func catalogVersions(ctx context.Context, c *vaultclient.Client) ([]string, error) {
	all, err := c.Read(ctx, "sys/plugins/catalog", nil)
	if err != nil {
		return nil, err
	}
	detailed, _ := all["detailed"].([]any)
	var out []string
	for _, v := range detailed {
		p, _ := v.(map[string]any)
		if text(p, "name") == PluginName && text(p, "type") == "secret" {
			out = append(out, text(p, "version"))
		}
	}
	return out, nil
}
