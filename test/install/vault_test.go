package install

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/install"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness"
)

// TestVault is everything that a Vault alone is enough for. Every test has a Vault
// of its own.
func TestVault(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	t.Parallel()
	vaultBinary(t)
	p := buildPlugins(t)
	for name, f := range map[string]func(*testing.T, *vault){
		"Fresh": testFresh, "Drift": testDrift, "Interrupted": testInterrupted, "TwoAtOnce": testTwoAtOnce,
		"Privileges": testPrivileges, "Refused": testRefused, "Foreign": testForeign, "Tenants": testTenants,
		"SecondPerson": testSecondPerson, "Upgrade": testUpgrade, "WrongPlugin": testWrongPlugin, "Uninstall": testUninstall,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, startVault(t, p))
		})
	}
}

func testFresh(t *testing.T, v *vault) {
	job := v.install(t, v.target())
	before := plan(t, job)
	if r := row(t, before, "plugin"); r.Action != install.Create || !strings.Contains(r.Detail, v.plugins.v1.SHA256) || !strings.Contains(r.Detail, "plugin_directory") {
		t.Errorf("the plan does not say where the plug-in goes: %+v", r)
	}
	// A plan changes nothing.
	if again := plan(t, job); before.Pending() != again.Pending() || before.Pending() < 10 {
		t.Errorf("planned %d changes, then %d", before.Pending(), again.Pending())
	}
	var told []install.Row
	harness.Must(t, job.Apply(t.Context(), func(r install.Row) { told = append(told, r) }))
	if len(told) != len(before) {
		t.Errorf("told of %d steps, planned %d", len(told), len(before))
	}
	wantSettled(t, job)
	// Nothing is done twice.
	harness.Must(t, job.Apply(t.Context(), func(r install.Row) {
		if r.Action != install.Keep {
			t.Errorf("done again: %+v", r)
		}
	}))
	e := v.root.Engine("sealed")
	kind, version, err := e.PluginVersion(t.Context())
	if err != nil || kind != install.PluginName || version != v1 {
		t.Errorf("mounted: %s %s, %v", kind, version, err)
	}
	role, err := v.root.Read(t.Context(), "auth/jwt-sealed/role/sealed-agent", nil)
	harness.Must(t, err)
	for name, want := range map[string]string{
		"token_period": "120", "token_type": "service", "token_no_default_policy": "true", "token_policies": "[sealed-agent]",
		"bound_audiences": "[vault://sealed]", "bound_claims": "map[sub:spiffe://corp.example/sealed/tenant/acme/agent/*]",
	} {
		if got := fmt.Sprint(role[name]); got != want {
			t.Errorf("role: %s is %s, want %s", name, got, want)
		}
	}
}

// testSecondPerson: a mount that is installed without saying anything about it
// asks a second person as soon as it is complete, and the installer is one person.
func testSecondPerson(t *testing.T, v *vault) {
	target := v.target()
	target.OnePerson = false
	job := v.install(t, target)
	if r := row(t, plan(t, job), "second-person"); r.Action != install.Create {
		t.Errorf("planned: %+v", r)
	}
	harness.Must(t, job.Apply(t.Context(), nil))
	wantSettled(t, job)
	cfg, err := v.root.Read(t.Context(), "sealed/config", nil)
	if err != nil || cfg["second_person"] != true {
		t.Fatalf("second_person is %v, %v", cfg["second_person"], err)
	}
	for path, body := range map[string]map[string]any{
		"sealed/config":              {"second_person": false},
		"sealed/config/trust-bundle": {"endpoint": v.endpoint + "/other", "ca": v.ca},
	} {
		if _, err := v.root.Write(t.Context(), path, body); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("%s by a token that is nobody's: %v", path, err)
		}
	}
	wantSettled(t, job)
}

// testDrift edits one thing after the other by hand. Each shows as a change of its
// own step, and is undone by the next run.
func testDrift(t *testing.T, v *vault) {
	job := v.install(t, v.target())
	harness.Must(t, job.Apply(t.Context(), nil))
	for _, edit := range []struct {
		step, path string
		body       map[string]any
		says       string
	}{
		{"policies", "sys/policies/acl/sealed-agent", map[string]any{"policy": `path "secret/*" { capabilities = ["read"] }`}, "sealed-agent"},
		{"mount", "sys/mounts/sealed/tune", map[string]any{"audit_non_hmac_response_keys": []string{"answer"}}, "audit_non_hmac_response_keys"},
		{"mount", "sys/mounts/sealed/tune", map[string]any{"passthrough_request_headers": []string{"Authorization"}}, "passthrough_request_headers"},
		{"mount", "sys/mounts/sealed/tune", map[string]any{"max_lease_ttl": "8760h"}, "max_lease_ttl"},
		{"role", "auth/jwt-sealed/role/sealed-agent", map[string]any{"role_type": "jwt", "user_claim": "sub", "token_policies": []string{"sealed-agent", "root-like"}}, "token_policies"},
		{"role", "auth/jwt-sealed/role/sealed-agent", map[string]any{"role_type": "jwt", "user_claim": "sub", "bound_claims": map[string]any{"sub": "*"}}, "bound_claims"},
		{"auth-config", "auth/jwt-sealed/config", map[string]any{"jwks_url": v.endpoint + "/other", "jwks_ca_pem": v.ca}, "jwks_url"},
		{"config", "sealed/config", map[string]any{"agent_accessor": "auth_jwt_other"}, "agent_accessor"},
		{"trust-bundle", "sealed/config/trust-bundle", map[string]any{"endpoint": v.endpoint + "/other", "ca": v.ca}, "endpoint"},
	} {
		t.Run(edit.step+" "+edit.says, func(t *testing.T) {
			_, err := v.root.Write(t.Context(), edit.path, edit.body)
			harness.Must(t, err)
			p := plan(t, job)
			if r := row(t, p, edit.step); r.State != install.Different || r.Action != install.Change || !strings.Contains(r.Detail, edit.says) {
				t.Errorf("planned: %+v", r)
			}
			if p.Pending() != 1 {
				t.Errorf("other steps change, too: %+v", p)
			}
			harness.Must(t, job.Apply(t.Context(), nil))
			wantSettled(t, job)
		})
	}
	t.Run("old policy", func(t *testing.T) {
		have, err := v.root.Read(t.Context(), "sys/policies/acl/sealed-agent", nil)
		harness.Must(t, err)
		for name, text := range map[string]any{"sealed-retired": have["policy"], "sealed-mine": `path "x" { capabilities = ["read"] }`} {
			_, err := v.root.Write(t.Context(), "sys/policies/acl/"+name, map[string]any{"policy": text})
			harness.Must(t, err)
		}
		if r := row(t, plan(t, job), "policies-old"); r.Action != install.Remove || r.Detail != "sealed-retired" {
			t.Errorf("planned: %+v", r)
		}
		harness.Must(t, job.Apply(t.Context(), nil))
		names, err := v.root.List(t.Context(), "sys/policies/acl")
		if err != nil || slices.Contains(names, "sealed-retired") || !slices.Contains(names, "sealed-mine") {
			t.Errorf("policies: %v, %v", names, err)
		}
	})
}

// testInterrupted stops after every step in turn: what is left is continued.
func testInterrupted(t *testing.T, v *vault) {
	steps := len(plan(t, v.install(t, v.target())))
	for n := range steps {
		ctx, cancel := context.WithCancel(t.Context())
		done := 0
		err := v.install(t, v.target()).Apply(ctx, func(install.Row) {
			if done++; done == n {
				cancel()
			}
		})
		if n == 0 {
			cancel() // never inside: this one completes
			harness.Must(t, err)
		} else {
			var stopped *install.StepError
			if !errors.As(err, &stopped) || !errors.Is(err, context.Canceled) || stopped.Done != n || !strings.Contains(err.Error(), "running the same again continues") {
				t.Fatalf("after step %d: %v", n, err)
			}
		}
		cancel()
		job := v.install(t, v.target())
		harness.Must(t, job.Apply(t.Context(), nil))
		wantSettled(t, job)
		v.wipe(t)
	}
}

// wipe takes everything out again.
func (v *vault) wipe(t *testing.T) {
	t.Helper()
	out, err := install.Uninstall(v.root, install.Removal{Mount: "sealed", AuthMount: "jwt-sealed"})
	harness.Must(t, err)
	harness.Must(t, out.Apply(background(t), nil))
}

func testTwoAtOnce(t *testing.T, v *vault) {
	var all sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		job := v.install(t, v.target())
		all.Go(func() { errs[i] = job.Apply(t.Context(), nil) })
	}
	all.Wait()
	harness.Must(t, errors.Join(errs...))
	wantSettled(t, v.install(t, v.target()))
}

// testPrivileges: the printed policy is enough for everything, and names nothing
// outside.
func testPrivileges(t *testing.T, v *vault) {
	text, err := install.Privileges("sealed", "jwt-sealed")
	harness.Must(t, err)
	_, err = v.root.Write(t.Context(), "sys/policies/acl/installer", map[string]any{"policy": text})
	harness.Must(t, err)
	c := v.token(t, "installer")
	job, err := install.Install(c, v.target())
	harness.Must(t, err)
	harness.Must(t, job.Apply(t.Context(), nil))
	wantSettled(t, job)
	target := v.target()
	target.Plugin = v.plugins.v2
	up, err := install.Upgrade(c, target)
	harness.Must(t, err)
	harness.Must(t, up.Apply(t.Context(), nil))
	dir := filepath.Join(t.TempDir(), "log")
	out, err := install.Uninstall(c, install.Removal{Mount: "sealed", AuthMount: "jwt-sealed", Checkpoint: filepath.Join(dir, "checkpoint"),
		Export: func(ctx context.Context) error { return audit.WriteDir(ctx, c.Engine("sealed").LogReader(), dir) }})
	harness.Must(t, err)
	harness.Must(t, out.Apply(t.Context(), nil))
	wantSettled(t, out)
}

// testRefused: a token that lacks one power is told at which step, and another
// token goes on from there.
func testRefused(t *testing.T, v *vault) {
	text, err := install.Privileges("sealed", "jwt-sealed")
	harness.Must(t, err)
	less := strings.Replace(text, `path "auth/jwt-sealed/role/sealed-agent" {`, `path "auth/jwt-sealed/role/other" {`, 1)
	if less == text {
		t.Fatal("the policy does not grant the role")
	}
	_, err = v.root.Write(t.Context(), "sys/policies/acl/lesser", map[string]any{"policy": less})
	harness.Must(t, err)
	job, err := install.Install(v.token(t, "lesser"), v.target())
	harness.Must(t, err)
	if r := row(t, plan(t, job), "role"); r.State != install.Refused || r.Action != install.Stop {
		t.Errorf("planned: %+v", r)
	}
	err = job.Apply(t.Context(), nil)
	var stopped *install.StepError
	if !errors.As(err, &stopped) || stopped.Step != "role" || !errors.Is(err, sealed.ErrDenied) {
		t.Fatalf("error: %v", err)
	}
	if r := row(t, plan(t, v.install(t, v.target())), "mount"); r.State != install.Same {
		t.Errorf("the steps before are not done: %+v", r)
	}
	if err := job.Skip("role"); err != nil {
		t.Fatal(err)
	}
	harness.Must(t, job.Apply(t.Context(), nil))
	harness.Must(t, v.install(t, v.target()).Apply(t.Context(), nil))
}

// testForeign: what belongs to others stops the job before it is touched.
func testForeign(t *testing.T, v *vault) {
	write := func(path string, body map[string]any) {
		_, err := v.root.Write(t.Context(), path, body)
		harness.Must(t, err)
	}
	write("sys/mounts/taken", map[string]any{"type": "kv"})
	write("sys/auth/people", map[string]any{"type": "userpass"})
	write("sys/auth/ci", map[string]any{"type": "jwt", "description": "CI"})
	write("auth/ci/config", map[string]any{"jwks_url": v.endpoint + "/ci", "jwks_ca_pem": v.ca})
	for name, change := range map[string]func(*install.Target){
		"mount":       func(x *install.Target) { x.Mount = "taken" },
		"auth":        func(x *install.Target) { x.AuthMount = "people" },
		"auth-config": func(x *install.Target) { x.AuthMount = "ci" },
	} {
		t.Run(name, func(t *testing.T) {
			target := v.target()
			change(&target)
			job := v.install(t, target)
			if r := row(t, plan(t, job), name); r.State != install.Conflict || r.Action != install.Stop {
				t.Errorf("planned: %+v", r)
			}
			if err := job.Apply(t.Context(), nil); !errors.Is(err, sealed.ErrConflict) {
				t.Errorf("applied: %v", err)
			}
		})
	}
	have, err := v.root.Read(t.Context(), "auth/ci/config", nil)
	if err != nil || have["jwks_url"] != v.endpoint+"/ci" {
		t.Errorf("the other auth mount was changed: %v, %v", have["jwks_url"], err)
	}
	t.Run("tenant", func(t *testing.T) {
		harness.Must(t, v.install(t, v.target()).Apply(t.Context(), nil))
		target := v.target()
		target.Tenant = "other"
		if r := row(t, plan(t, v.install(t, target)), "config"); r.State != install.Conflict {
			t.Errorf("planned: %+v", r)
		}
	})
}

// testTenants: a second mount shares plug-in and auth mount, and no path.
func testTenants(t *testing.T, v *vault) {
	harness.Must(t, v.install(t, v.target()).Apply(t.Context(), nil))
	beta := v.target()
	beta.Mount, beta.Tenant, beta.Plugin = "tenants/beta/sealed", "beta", install.Plugin{Version: v1}
	harness.Must(t, v.install(t, beta).Apply(t.Context(), nil))
	wantSettled(t, v.install(t, v.target()))
	wantSettled(t, v.install(t, beta))
	ours := v.token(t, "sealed-root", "sealed-secrets", "sealed-auditor")
	theirs := v.token(t, "tenants.beta.sealed-root", "tenants.beta.sealed-secrets", "tenants.beta.sealed-auditor")
	for _, path := range []string{"config", "config/trust-bundle", "log/checkpoint", "sources/builtin"} {
		if _, err := ours.Read(t.Context(), "sealed/"+path, nil); err != nil {
			t.Errorf("control: %v", err)
		}
		if _, err := theirs.Read(t.Context(), "tenants/beta/sealed/"+path, nil); err != nil {
			t.Errorf("control: %v", err)
		}
		if _, err := ours.Read(t.Context(), "tenants/beta/sealed/"+path, nil); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("the first tenant reads %s of the second: %v", path, err)
		}
		if _, err := theirs.Read(t.Context(), "sealed/"+path, nil); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("the second tenant reads %s of the first: %v", path, err)
		}
	}
	// What is shared stays with the first when the second goes.
	out, err := install.Uninstall(v.root, install.Removal{Mount: beta.Mount, AuthMount: beta.AuthMount})
	harness.Must(t, err)
	for _, step := range []string{"auth", "plugin"} {
		if r := row(t, plan(t, out), step); r.Action != install.Keep {
			t.Errorf("planned: %+v", r)
		}
	}
	harness.Must(t, out.Apply(t.Context(), nil))
	wantSettled(t, v.install(t, v.target()))
}

func testUpgrade(t *testing.T, v *vault) {
	harness.Must(t, v.install(t, v.target()).Apply(t.Context(), nil))
	before, err := v.root.Read(t.Context(), "sealed/config", nil)
	harness.Must(t, err)
	target := v.target()
	for _, p := range []install.Plugin{v.plugins.v2, {Version: v1}} { // up, and back by the version alone
		target.Plugin = p
		job, err := install.Upgrade(v.root, target)
		harness.Must(t, err)
		if r := row(t, plan(t, job), "running"); r.Action != install.Change {
			t.Errorf("planned: %+v", r)
		}
		harness.Must(t, job.Apply(t.Context(), nil))
		wantSettled(t, job)
		_, version, err := v.root.Engine("sealed").PluginVersion(t.Context())
		if err != nil || version != p.Version {
			t.Errorf("runs %s, want %s: %v", version, p.Version, err)
		}
	}
	after, err := v.root.Read(t.Context(), "sealed/config", nil)
	if err != nil || after["answer_key"] != before["answer_key"] {
		t.Errorf("the keys of the mount changed: %v", err)
	}
	if latest, err := install.LatestVersion(t.Context(), v.root); err != nil || latest != v2 {
		t.Errorf("latest: %s, %v", latest, err)
	}
}

// testWrongPlugin: a digest that is not the file's, and a file that is not there,
// come to nothing.
func testWrongPlugin(t *testing.T, v *vault) {
	for name, change := range map[string]func(*install.Plugin){
		"digest":  func(p *install.Plugin) { p.SHA256 = strings.Repeat("ab", 32) },
		"file":    func(p *install.Plugin) { p.Command = "not-there" },
		"version": func(p *install.Plugin) { p.Version = "v9.9.9" },
	} {
		t.Run(name, func(t *testing.T) {
			target := v.target()
			change(&target.Plugin)
			err := v.install(t, target).Apply(t.Context(), nil)
			var stopped *install.StepError
			if !errors.As(err, &stopped) || stopped.Step != "plugin" && stopped.Step != "mount" {
				t.Fatalf("applied: %v", err)
			}
			mounts, err := v.root.Read(t.Context(), "sys/mounts", nil)
			if err != nil || mounts["sealed/"] != nil {
				t.Errorf("it is mounted all the same: %v", err)
			}
		})
	}
}

func testUninstall(t *testing.T, v *vault) {
	_, err := v.root.Write(t.Context(), "sys/policies/acl/sealed-mine", map[string]any{"policy": `path "x" { capabilities = ["read"] }`})
	harness.Must(t, err)
	harness.Must(t, v.install(t, v.target()).Apply(t.Context(), nil))
	cfg, err := v.root.Read(t.Context(), "sealed/config", nil)
	harness.Must(t, err)
	dir := filepath.Join(t.TempDir(), "log")
	out, err := install.Uninstall(v.root, install.Removal{Mount: "sealed", AuthMount: "jwt-sealed", Checkpoint: filepath.Join(dir, "checkpoint"),
		Export: func(ctx context.Context) error { return audit.WriteDir(ctx, v.root.Engine("sealed").LogReader(), dir) }})
	harness.Must(t, err)
	if r := row(t, plan(t, out), "mount"); r.Action != install.Remove || !strings.Contains(r.Detail, "entries") {
		t.Errorf("the plan does not say what goes: %+v", r)
	}
	harness.Must(t, out.Apply(t.Context(), nil))
	wantSettled(t, out)
	key, _ := cfg["log_key"].(string)
	if report, err := audit.VerifyDir(dir, audit.Options{VerifierKey: key}); err != nil || report.Size < 3 {
		t.Errorf("the export does not verify: %d entries, %v", report.Size, err)
	}
	names, err := v.root.List(t.Context(), "sys/policies/acl")
	if err != nil || strings.Contains(fmt.Sprint(names), "sealed-agent") || !slices.Contains(names, "sealed-mine") {
		t.Errorf("policies: %v, %v", names, err)
	}
	for path, name := range map[string]string{"sys/mounts": "sealed/", "sys/auth": "jwt-sealed/"} {
		have, err := v.root.Read(t.Context(), path, nil)
		if err != nil || have[name] != nil {
			t.Errorf("%s is still in %s: %v", name, path, err)
		}
	}
	if _, err := install.LatestVersion(t.Context(), v.root); !errors.Is(err, sealed.ErrNotFound) {
		t.Errorf("the catalog: %v", err)
	}
}
