package install

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/install"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/test/harness/require"
)

// A site is a stack with SPIRE that plays an enterprise's Vault and SPIRE.
type site struct {
	*harness.Stack
	admin   harness.Caller // with Vault's root token
	private string
	old     sealed.TrustFile // as it was
	plugins plugins
	conn    *grpc.ClientConn
}

// TestStack takes Sealed out of a whole stack and puts it in again, both by the
// command, and then uses what the command has made.
func TestStack(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	require.Root(t, "SPIRE attests other users' processes")
	t.Parallel()
	s := openSite(t)
	s.uninstall(t)
	s.install(t)
	s.entries(t)
	s.run(t)
	s.upgrade(t)
	s.end(t)
}

func openSite(t *testing.T) *site {
	t.Helper()
	s := &site{Stack: harness.Open(t, harness.Options{Identity: devstack.IdentitySPIRE}), plugins: buildPlugins(t)}
	s.private = filepath.Join(s.Status.Dir, "private")
	b, err := os.ReadFile(filepath.Join(s.private, "vault-keys.json"))
	harness.Must(t, err)
	var keys struct {
		Root string `json:"root_token"`
	}
	harness.Must(t, json.Unmarshal(b, &keys))
	s.admin = harness.Caller{User: "-", Env: []string{"VAULT_TOKEN=" + keys.Root}}
	b, err = os.ReadFile(s.Status.TrustFile)
	harness.Must(t, err)
	s.old, err = sealed.ParseTrustFile(b)
	harness.Must(t, err)
	for _, p := range []install.Plugin{s.plugins.v1, s.plugins.v2} {
		b, err := os.ReadFile(filepath.Join(s.plugins.dir, p.Command))
		harness.Must(t, err)
		harness.Must(t, os.WriteFile(filepath.Join(s.private, "plugins", p.Command), b, 0o755))
	}
	s.conn, err = grpc.NewClient("unix:"+s.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	harness.Must(t, err)
	t.Cleanup(func() { _ = s.conn.Close() })
	return s
}

func (s *site) socket() string { return filepath.Join(s.private, "spire", "server.sock") }

func (s *site) listEntries(t *testing.T) []*types.Entry {
	t.Helper()
	out, err := entryv1.NewEntryClient(s.conn).ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
	harness.Must(t, err)
	return out.Entries
}

// uninstall takes away what the stack had: a mount, a role, a catalog entry,
// entries and a trust file with the names that install uses. What has no mark of
// install stays.
func (s *site) uninstall(t *testing.T) {
	s.Ctl(t, s.admin, "uninstall", "--yes").Want(t, 2)
	s.Ctl(t, s.admin, "uninstall", "--yes", "--confirm", "other").Want(t, 2)
	foreign := &types.Entry{
		SpiffeId: &types.SPIFFEID{TrustDomain: s.Status.TrustDomain, Path: "/sealed/tenant/other/agent/custom"},
		ParentId: &types.SPIFFEID{TrustDomain: s.Status.TrustDomain, Path: "/some/agent"}, Selectors: []*types.Selector{{Type: "sealed", Value: "tenant:other"}},
	}
	_, err := entryv1.NewEntryClient(s.conn).BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{foreign}})
	harness.Must(t, err)
	export := filepath.Join(t.TempDir(), "log")
	args := []string{"uninstall", "--export", export, "--spire-socket", s.socket(), "--tenant", "acme", "--trust-domain", s.Status.TrustDomain, "--trust-file", s.Status.TrustFile}
	r := s.Ctl(t, s.admin, append(args, "--dry-run")...).Want(t, 0)
	if !strings.Contains(r.Stdout, "entries") || !strings.Contains(r.Stdout, "remove") {
		t.Errorf("the plan: %s", r.Stdout)
	}
	s.Ctl(t, s.admin, append(args, "--yes", "--confirm", "sealed")...).Want(t, 0)
	r = s.Ctl(t, s.admin, append(args, "--yes", "--confirm", "sealed")...).Want(t, 0)
	if !strings.Contains(r.Stderr, "nothing to do") {
		t.Errorf("again: %s%s", r.Stdout, r.Stderr)
	}
	s.Ctl(t, harness.Caller{}, "audit", "verify", export, "--key", s.old.LogKey).Want(t, 0)
	if left := s.listEntries(t); len(left) != 1 || left[0].SpiffeId.Path != foreign.SpiffeId.Path {
		t.Errorf("entries left: %v", left)
	}
	if _, err := os.Stat(s.Status.TrustFile); !os.IsNotExist(err) {
		t.Errorf("the trust file: %v", err)
	}
}

func (s *site) installArgs(t *testing.T) []string {
	t.Helper()
	agents, err := agentv1.NewAgentClient(s.conn).ListAgents(t.Context(), &agentv1.ListAgentsRequest{})
	harness.Must(t, err)
	if len(agents.Agents) != 1 {
		t.Fatalf("%d agents of SPIRE", len(agents.Agents))
	}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	harness.Must(t, os.WriteFile(roots, []byte(s.old.UpstreamRoots), 0o600))
	args := []string{
		"install", "--tenant", "acme", "--trust-domain", s.Status.TrustDomain, "--person-claim", "person", "--second-person=false",
		"--plugin", filepath.Join(s.plugins.dir, s.plugins.v1.Command),
		"--bundle-endpoint", s.Status.BundleURL, "--bundle-ca", s.Status.VaultCA,
		"--policy-key", filepath.Join(s.private, "policy-key.pem"),
		"--trust-file", s.Status.TrustFile, "--upstream-roots", roots,
		"--spiffe-socket", s.Status.SPIFFESocket, "--registry-socket", s.Status.AttestSocket,
		"--init", s.Status.InitPath, "--attestor", filepath.Join(s.private, "plugins", "spire-attestor-sealed"),
		"--spire-socket", s.socket(), "--spire-parent", "spiffe://" + agents.Agents[0].Id.TrustDomain + agents.Agents[0].Id.Path,
	}
	for _, uid := range s.Status.Launchers {
		args = append(args, "--launcher", strconv.Itoa(uid))
	}
	for from, to := range s.old.Relay {
		args = append(args, "--relay", from+"="+to)
	}
	return args
}

func (s *site) install(t *testing.T) {
	args := s.installArgs(t)
	// Nobody can be asked, so nothing happens.
	r := s.Ctl(t, s.admin, args...).Want(t, 2)
	if !strings.Contains(r.Stderr, "--yes") || !strings.Contains(r.Stdout, "create") {
		t.Errorf("unconfirmed: %s%s", r.Stdout, r.Stderr)
	}
	p := s.StartTTY(t, s.admin, 24, 200, args...)
	p.Await(t, "[y/N]")
	p.Type(t, "n\n")
	if r := p.Wait(t); r.Exit != 1 {
		t.Errorf("a no: %d %s", r.Exit, r.Stdout)
	}
	s.Ctl(t, s.admin, append(args, "--yes")...).Want(t, 0)
	r = s.Ctl(t, s.admin, args...).Want(t, 0)
	if !strings.Contains(r.Stderr, "nothing to do") || !strings.Contains(r.Stdout, `WorkloadAttestor "sealed"`) {
		t.Errorf("again: %s%s", r.Stdout, r.Stderr)
	}
	var out struct {
		Plan install.Plan `json:"plan"`
	}
	r = s.Ctl(t, s.admin, append(args, "-o", "json")...).Want(t, 0)
	if err := json.Unmarshal([]byte(r.Stdout), &out); err != nil || out.Plan.Pending() != 0 || len(out.Plan) < 14 {
		t.Errorf("as JSON: %v: %s", err, r.Stdout)
	}
	st, err := os.Stat(s.Status.TrustFile)
	if err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("the trust file: %v, %v", st, err)
	}
}

// entries changes one behind install's back: it is mended, and foreign ones stay.
func (s *site) entries(t *testing.T) {
	all := s.listEntries(t)
	if len(all) != 1+4*len(s.Status.Launchers) {
		t.Fatalf("%d entries", len(all))
	}
	i := slices.IndexFunc(all, func(e *types.Entry) bool { return strings.Contains(e.SpiffeId.Path, "/tenant/acme/agent/custom") })
	all[i].DnsNames = []string{"own-uid.isolation.sealed.internal", "more.example"}
	_, err := entryv1.NewEntryClient(s.conn).BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: all[i : i+1]})
	harness.Must(t, err)
	_, err = entryv1.NewEntryClient(s.conn).BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{all[(i+1)%len(all)].Id}})
	harness.Must(t, err)
	args := s.installArgs(t)
	r := s.Ctl(t, s.admin, append(args, "--dry-run")...).Want(t, 0)
	if !strings.Contains(r.Stdout, "1 otherwise") {
		t.Errorf("the plan: %s", r.Stdout)
	}
	s.Ctl(t, s.admin, append(args, "--yes")...).Want(t, 0)
	for _, e := range s.listEntries(t) {
		if slices.Contains(e.DnsNames, "more.example") {
			t.Errorf("not mended: %v", e)
		}
	}
}

// profile makes a profile with one key, for the run that uses it.
func (s *site) profile(t *testing.T) (name, value string) {
	t.Helper()
	name, value = s.Name("team/p"), s.Name("canary-of-an-installation-")
	s.Secret(t, name+"/value", value)
	s.Profile(t, harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{
		"API_TOKEN": harness.Key(name+"/value", []string{"custom"}, sealed.Binding{Host: "api.test", Methods: []string{"GET"}, Paths: []string{"/**"}}),
	}))
	return name, value
}

// run is a run through what only install has made.
func (s *site) run(t *testing.T) {
	s.Agent(t, "custom")
	profile, value := s.profile(t)
	var r harness.Result
	harness.Eventually(t, time.Minute, "SPIRE's agent to learn of the entries", func() bool {
		r = s.Ctl(t, harness.Caller{}, "run", "--agent", "custom", "--profile", profile, "--no-workspace", "--", "sh", "-c",
			`curl -sS -H "Authorization: Bearer $API_TOKEN" https://api.test/installed/echo`)
		return r.Exit == 0 || !strings.Contains(r.Stderr, "no identity issued")
	})
	r.Want(t, 0)
	seen := s.Upstream.Requests("api.test", "/installed/echo")
	if len(seen) != 1 || seen[0].Header.Get("Authorization") != "Bearer "+value {
		t.Errorf("the upstream did not see the value: %d requests", len(seen))
	}
	if strings.Contains(r.Stdout+r.Stderr, value) {
		t.Error("the value is in the output")
	}
	s.Verify(t)
}

// upgrade changes the version below a run that uses a key: it goes on, its lease
// can be renewed, and ends with it.
func (s *site) upgrade(t *testing.T) {
	root, err := s.Root()
	harness.Must(t, err)
	profile, _ := s.profile(t)
	p := s.Start(t, harness.Caller{Timeout: 3 * time.Minute}, "run", "--agent", "custom", "--profile", profile, "--no-workspace", "--", "sh", "-c",
		`while sleep 0.1; do curl -sS -o /dev/null -H "Authorization: Bearer $API_TOKEN" https://api.test/upgraded/echo; done`)
	run := p.RunID(t)
	used := func() int { return len(s.Upstream.Requests("api.test", "/upgraded/echo")) }
	harness.Eventually(t, 30*time.Second, "the first request", func() bool { return used() > 0 })
	prefix := "sealed/runs/" + string(run) + "/creds/API_TOKEN/"
	for _, step := range []struct{ args, version string }{
		{"--plugin=" + filepath.Join(s.plugins.dir, s.plugins.v2.Command), v2}, {"--plugin-version=" + v1, v1},
	} {
		r := s.Ctl(t, s.admin, "upgrade", step.args, "--yes").Want(t, 0)
		if !strings.Contains(r.Stderr, "runs "+step.version) || !strings.Contains(r.Stderr, "1 lease before, 1 now") || !strings.Contains(r.Stderr, "to go back: sealedctl upgrade --plugin-version") {
			t.Errorf("upgrade says: %s", r.Stderr)
		}
		before := used()
		harness.Eventually(t, 30*time.Second, "a request after the upgrade to "+step.version, func() bool { return used() > before+2 })
		ids, err := root.List(t.Context(), "sys/leases/lookup/"+prefix)
		harness.Must(t, err)
		if len(ids) != 1 {
			t.Fatalf("%d leases", len(ids))
		}
		if _, err := root.Write(t.Context(), "sys/leases/renew", map[string]any{"lease_id": prefix + ids[0]}); err != nil {
			t.Errorf("renewing after the upgrade to %s: %v", step.version, err)
		}
	}
	s.Ctl(t, harness.Caller{}, "runs", "stop", string(run), "--reason", "the test is over").Want(t, 0)
	p.Wait(t)
	harness.Eventually(t, 30*time.Second, "the lease to end", func() bool {
		n, err := install.Leases(t.Context(), root, "sealed")
		return err == nil && n == 0
	})
	s.Verify(t)
}

// end uninstalls below a run that holds a credential which its source can take
// back: it is dead there before the mount is gone.
func (s *site) end(t *testing.T) {
	root, err := s.Root()
	harness.Must(t, err)
	write := func(path string, data map[string]any) {
		t.Helper()
		_, err := root.Write(t.Context(), path, data)
		harness.Must(t, err)
	}
	write("sys/mounts/upstream", map[string]any{"type": "pki"})
	write("upstream/root/generate/internal", map[string]any{"common_name": "install test", "key_type": "ec", "key_bits": 256})
	write("upstream/roles/ci", map[string]any{"allow_any_name": true, "enforce_hostnames": false, "require_cn": false, "key_type": "ec", "key_bits": 256, "generate_lease": true, "ttl": "1h"})
	write("sys/policies/acl/upstream", map[string]any{"policy": `path "auth/token/create" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "upstream/issue/ci" { capabilities = ["read", "update"] }`})
	l, err := root.Login(t.Context(), "auth/token/create", map[string]any{"policies": []string{"upstream"}, "no_default_policy": true, "period": "1h"})
	harness.Must(t, err)
	_, err = s.Engine(t, "admin").WriteSource(t.Context(), sealed.SourceConfig{
		Name: "dynamic", Type: sealed.SourceVaultDynamic, Address: s.old.VaultAddr, CA: s.old.VaultCA, Mount: "upstream",
	}, []byte(l.Token))
	harness.Must(t, err)
	spec := harness.Key("issue/ci", []string{"custom"}, sealed.Binding{Host: "api.test", Methods: []string{"GET"}, Paths: []string{"/**"}})
	spec.Source, spec.Ref.Field = "dynamic", "serial_number"
	profile := s.Name("team/p")
	s.Profile(t, harness.Profile1(profile, map[sealed.KeyName]sealed.KeySpec{"API_TOKEN": spec}))
	p := s.Start(t, harness.Caller{Timeout: 3 * time.Minute}, "run", "--agent", "custom", "--profile", profile, "--no-workspace", "--", "sh", "-c",
		`while sleep 0.1; do curl -sS -o /dev/null -H "Authorization: Bearer $API_TOKEN" https://api.test/ending/echo; done`)
	p.RunID(t)
	harness.Eventually(t, 30*time.Second, "the first request", func() bool { return len(s.Upstream.Requests("api.test", "/ending/echo")) > 0 })
	alive := func() int {
		n, err := install.Leases(t.Context(), root, "upstream")
		harness.Must(t, err)
		return n
	}
	if alive() != 1 {
		t.Fatalf("control: %d credentials upstream", alive())
	}
	r := s.Ctl(t, s.admin, "uninstall", "--dry-run").Want(t, 0)
	for _, want := range []string{"1 live runs end", "1 leases are revoked", "1 are not; after the mount is gone nobody can do it", "nothing exports it"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("the plan does not say %q: %s", want, r.Stdout)
		}
	}
	s.Ctl(t, s.admin, "uninstall", "--yes", "--confirm", "sealed").Want(t, 0)
	if n := alive(); n != 0 {
		t.Errorf("%d credentials are alive upstream, and nobody can take them back", n)
	}
	if r := p.Wait(t); r.Exit == 0 {
		t.Errorf("the run ended well: %s", r.Stderr)
	}
}
