package spireattestor_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/plugintest"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sealed.dev/sealed/internal/sealed"
	spireattestor "sealed.dev/sealed/spire-attestor"
)

const goodDigest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

const goodConfig = `
registry_socket = "/run/sealed/attestor/registry.sock"
trust_file      = "/etc/sealed/trust.json"
init_sha256     = ["` + goodDigest + `"]
run_uids        = "700000-799999"
launchers "0"    { tenant = "acme" agents = ["claude-code", "codex"] }
launchers "1000" { tenant = "beta" agents = ["claude-code"] }
`

func TestParseConfig(t *testing.T) {
	got, err := spireattestor.ParseConfig(goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	want := spireattestor.Config{
		RegistrySocket: "/run/sealed/attestor/registry.sock", TrustFile: "/etc/sealed/trust.json",
		InitSHA256: []string{goodDigest},
		RunUIDs:    spireattestor.UIDRange{Min: 700000, Max: 799999},
		Launchers: map[uint32]spireattestor.Launcher{
			0:    {Tenant: "acme", Agents: []sealed.Name{"claude-code", "codex"}},
			1000: {Tenant: "beta", Agents: []sealed.Name{"claude-code"}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

// TestParseConfigRefused: each case changes one thing of the good text.
func TestParseConfigRefused(t *testing.T) {
	tests := map[string]struct{ old, new, field string }{
		"unknown key":                {"run_uids  ", "run_uid   ", "run_uid"},
		"unknown key of a launcher":  {`tenant = "beta"`, `tenant = "beta" sudo = true`, "launchers.1000.sudo"},
		"key twice":                  {"trust_file ", "trust_file = \"/x\"\ntrust_file ", ""},
		"launcher twice":             {`"1000"`, `"0"`, "launchers.0"},
		"launcher by name":           {`"1000"`, `"root"`, "launchers.root"},
		"launcher with sign":         {`"1000"`, `"+1000"`, "launchers.+1000"},
		"launcher with leading zero": {`"1000"`, `"01000"`, "launchers.01000"},
		"launcher nobody":            {`"1000"`, `"65534"`, "launchers.65534"},
		"launcher inside run_uids":   {`"1000"`, `"700001"`, "launchers.700001"},
		"launcher without tenant":    {`tenant = "beta" `, ``, "launchers.1000.tenant"},
		"tenant with slash (D06)":    {`"beta"`, `"beta/x"`, "launchers.1000.tenant"},
		"tenant with dots (D06)":     {`"beta"`, `".."`, "launchers.1000.tenant"},
		"tenant in upper case (D06)": {`"beta"`, `"Beta"`, "launchers.1000.tenant"},
		"tenant percent (D06)":       {`"beta"`, `"%2e"`, "launchers.1000.tenant"},
		"tenant Unicode (D06)":       {`"beta"`, `"bеta"`, "launchers.1000.tenant"},
		"no agents":                  {`agents = ["claude-code"]`, `agents = []`, "launchers.1000.agents"},
		"agent with colon":           {`["claude-code"]`, `["x:y"]`, "launchers.1000.agents"},
		"relative socket":            {`"/run`, `"run`, "registry_socket"},
		"relative trust file":        {`"/etc`, `"etc`, "trust_file"},
		"trust file with dots":       {`/etc/sealed`, `/etc/x/../sealed`, "trust_file"},
		"no digest":                  {`["` + goodDigest + `"]`, `[]`, "init_sha256"},
		"upper-case digest":          {goodDigest, strings.ToUpper(goodDigest), "init_sha256"},
		"short digest":               {goodDigest, goodDigest[2:], "init_sha256"},
		"range with root":            {"700000-", "0-", "run_uids"},
		"range with nobody":          {"700000-", "60000-", "run_uids"},
		"range backwards":            {"700000-799999", "799999-700000", "run_uids"},
		"range of one number":        {"700000-799999", "700000", "run_uids"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(goodConfig, tt.old, tt.new, 1)
			if text == goodConfig {
				t.Fatal("the case changes nothing")
			}
			_, err := spireattestor.ParseConfig(text)
			if !errors.Is(err, sealed.ErrInvalid) {
				t.Fatalf("ParseConfig = %v, want ErrInvalid", err)
			}
			var field *sealed.FieldError
			if errors.As(err, &field) && field.Field != tt.field {
				t.Errorf("field = %q, want %q", field.Field, tt.field)
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(goodConfig)
	f.Add(`launchers "0" "1" {}`)
	f.Add(`launchers = [1]`)
	f.Fuzz(func(t *testing.T, text string) {
		if cfg, err := spireattestor.ParseConfig(text); err == nil && cfg.Validate() != nil {
			t.Error("accepted what Validate refuses")
		}
	})
}

// TestPluginOverGRPC drives the plugin through SPIRE's own plugin framework.
func TestPluginOverGRPC(t *testing.T) {
	plugin := new(spireattestor.Plugin)
	client := new(workloadattestorv1.WorkloadAttestorPluginClient)
	config := new(configv1.ConfigServiceClient)
	plugintest.ServeInBackground(t, plugintest.Config{
		PluginServer:   workloadattestorv1.WorkloadAttestorPluginServer(plugin),
		PluginClient:   client,
		ServiceServers: []pluginsdk.ServiceServer{configv1.ConfigServiceServer(plugin)},
		ServiceClients: []pluginsdk.ServiceClient{config},
	})
	ctx := t.Context()
	if _, err := client.Attest(ctx, &workloadattestorv1.AttestRequest{Pid: 1}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Attest before Configure: %v, want FailedPrecondition", err)
	}
	if resp, err := config.Validate(ctx, &configv1.ValidateRequest{HclConfiguration: "x = 1"}); err != nil || resp.Valid || len(resp.Notes) != 1 {
		t.Errorf("Validate of a bad configuration = %v, %v", resp, err)
	}
	if resp, err := config.Validate(ctx, &configv1.ValidateRequest{HclConfiguration: goodConfig}); err != nil || !resp.Valid {
		t.Errorf("Validate of a good configuration = %v, %v", resp, err)
	}
	core := &configv1.CoreConfiguration{TrustDomain: "example.org"}
	if _, err := config.Configure(ctx, &configv1.ConfigureRequest{CoreConfiguration: core, HclConfiguration: "x = 1"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("Configure with a bad configuration: %v, want InvalidArgument", err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.sock", "a.sock", "b.sock"} { // the same again, then moved
		text := strings.Replace(goodConfig, "/run/sealed/attestor/registry.sock", filepath.Join(dir, name), 1)
		if _, err := config.Configure(ctx, &configv1.ConfigureRequest{CoreConfiguration: core, HclConfiguration: text}); err != nil {
			t.Fatalf("Configure: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("registry socket: %v", err)
		}
	}
	resp, err := client.Attest(ctx, &workloadattestorv1.AttestRequest{Pid: int32(os.Getpid())})
	if err != nil || len(resp.SelectorValues) != 0 {
		t.Errorf("Attest of a stranger = %v, %v; want nothing", resp, err)
	}
}

func TestListenRegistryRefuses(t *testing.T) {
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	private := t.TempDir()
	file := filepath.Join(private, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(private, "link")
	if err := os.Symlink(private, link); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"directory others may write to": filepath.Join(open, "r.sock"),
		"file that is no socket":        file,
		"directory behind a link":       filepath.Join(link, "r.sock"),
	} {
		t.Run(name, func(t *testing.T) {
			if l, err := spireattestor.ListenRegistry(path); err == nil {
				_ = l.Close()
				t.Error("listens")
			}
		})
	}
}
