package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "sealed.dev/sealed"

// Imports point down: mains → components → internal parts → leaves. Each
// package of ours may import what its line names, and its own sub-packages.
// Tests may import more. After Go's own go/build/deps_test.go.
var allowedImports = map[string][]string{
	// leaves
	"internal/sealed": {},
	"internal/secret": {},
	"internal/redact": {},
	"rego":            {},
	"rego/schema":     {},

	// internal parts
	"internal/audit":                     {"internal/sealed"},
	"internal/workspace":                 {"internal/sealed", "internal/redact"},
	"internal/relay":                     {"internal/sealed"},
	"internal/sandbox":                   {"internal/sealed"},
	"internal/sandbox/local":             {"internal/sandbox", "internal/sealed"},
	"internal/sandbox/sandboxtest":       {"internal/sandbox", "internal/sandbox/local", "internal/sealed"},
	"internal/sandbox/sandboxtest/probe": {"internal/relay", "internal/sandbox", "internal/sealed"},
	"internal/supervise":                 {"internal/relay", "internal/sandbox", "internal/sandbox/local", "internal/sealed", "internal/workspace", "spire-attestor/registry"},
	"internal/sandboxinit":               {"internal/audit", "internal/redact", "internal/relay", "internal/sealed", "internal/secret", "internal/workspace"},
	"internal/sandboxinit/proxy":         {"internal/redact", "internal/sealed", "internal/secret"},
	"internal/agent":                     {"internal/sealed"},
	"internal/vaultclient":               {"internal/audit", "internal/sealed"},
	"internal/source":                    {"internal/sealed", "internal/secret"},
	"internal/source/sourcetest":         {"internal/source", "internal/sealed", "internal/secret"},
	"internal/source/bitwarden":          {"internal/source", "internal/sealed", "internal/secret"},
	"internal/source/onepassword":        {"internal/source", "internal/sealed", "internal/secret"},
	"internal/source/helper":             {"internal/source", "internal/sealed", "internal/secret"},
	"internal/source/vaultkv":            {"internal/source", "internal/sealed", "internal/secret"},
	"internal/source/vaultdynamic":       {"internal/source", "internal/sealed", "internal/secret"},
	"internal/demo":                      {"internal/audit", "internal/devstack", "internal/redact", "internal/sealed", "internal/supervise", "internal/vaultclient", "opa-bundle", "rego"},
	"internal/demo/agent":                {},
	"internal/devstack":                  {"internal/sealed", "internal/vaultclient", "opa-bundle", "rego", "spire-attestor", "vault-plugin/policies"},
	"internal/cascade":                   {"internal/sealed"},
	"internal/decisionlog":               {"internal/sealed"},
	"internal/install":                   {"internal/sealed", "internal/vaultclient", "vault-plugin/policies"},
	"internal/devstack/authority":        {"internal/sealed", "spire-attestor"},

	// components; they never import each other
	"vault-plugin":            {"internal/audit", "internal/cascade", "internal/decisionlog", "internal/sealed", "internal/secret"},
	"vault-plugin/policies":   {},
	"opa-bundle":              {"internal/sealed"},
	"spire-attestor":          {"internal/sealed"},
	"spire-attestor/registry": {"internal/sealed"},

	// mains
	"vault-plugin/cmd/vault-plugin-secrets-sealed": {"vault-plugin", "opa-bundle", "internal/sealed", "internal/secret", "internal/source"},
	"spire-attestor/cmd/spire-attestor-sealed":     {"spire-attestor"},
	"cmd/sealed-init": {"internal/sandboxinit"},
	"cmd/sealed":      {},
	"cmd/sealedctl": {"internal/agent", "internal/audit", "internal/decisionlog", "internal/demo", "internal/devstack", "internal/install", "internal/redact", "internal/relay", "internal/sandbox", "internal/sealed", "internal/supervise",
		"internal/vaultclient", "internal/workspace", "opa-bundle", "rego", "spire-attestor/registry", "vault-plugin/policies"},
}

// Some modules are confined to one place each.
var confined = map[string][]string{
	"github.com/hashicorp/go-plugin":     {"internal/source/helper"},
	"github.com/hashicorp/vault/sdk":     {"vault-plugin"},
	"github.com/hashicorp/vault/api":     {"internal/vaultclient", "vault-plugin/cmd"},
	"github.com/open-policy-agent/opa":   {"opa-bundle"},
	"github.com/spiffe/spire-plugin-sdk": {"spire-attestor"},
	"github.com/spf13/cobra":             {"cmd/sealedctl"},
	"github.com/creack/pty":              {"internal/sandboxinit", "cmd/sealedctl"},
	"github.com/sigstore/sigstore":       {"internal/audit", "cmd/sealedctl"},
}

// What sealed-init links runs beside untrusted code. Each module needs a reason.
var initModules = map[string]string{
	"github.com/spiffe/go-spiffe/v2":                    "Workload API client and SVID types",
	"google.golang.org/grpc":                            "transport of the Workload API",
	"google.golang.org/protobuf":                        "messages of the Workload API",
	"google.golang.org/genproto/googleapis/rpc":         "status messages of gRPC",
	"github.com/go-jose/go-jose/v4":                     "JWT-SVID parsing in go-spiffe",
	"github.com/hashicorp/yamux":                        "streams over the relay descriptor",
	"github.com/oklog/ulid/v2":                          "run and grant ids",
	"github.com/creack/pty":                             "terminal for interactive agents",
	"github.com/sigstore/sigstore":                      "DSSE signature of the record",
	"github.com/secure-systems-lab/go-securesystemslib": "DSSE encoding under sigstore",
	"github.com/sigstore/protobuf-specs":                "algorithm names; linked by sigstore/pkg/signature",
	"google.golang.org/genproto/googleapis/api":         "annotations of protobuf-specs",
	"github.com/google/go-containerregistry":            "linked by sigstore/pkg/signature; not called",
	"github.com/opencontainers/go-digest":               "linked by go-containerregistry; not called",
	"github.com/youmark/pkcs8":                          "linked by sigstore/pkg/cryptoutils; not called",
	"golang.org/x/crypto":                               "linked by sigstore",
	"golang.org/x/mod":                                  "signed notes and tree proofs of the log",
	"golang.org/x/net":                                  "HTTP/2 under gRPC",
	"golang.org/x/sys":                                  "prctl, seccomp, mounts",
	"golang.org/x/term":                                 "linked by sigstore",
	"golang.org/x/text":                                 "linked by x/net",
}

type pkg struct {
	ImportPath string
	Imports    []string
	Module     *struct{ Path string }
	Standard   bool
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Module,Standard"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(out); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	return pkgs
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if strings.HasPrefix(name, "test") {
			continue
		}
		allowed, known := allowedImports[name]
		if !known {
			t.Errorf("%s is not in the table of allowed imports", name)
			continue
		}
		for _, i := range p.Imports {
			in, ours := strings.CutPrefix(i, module+"/")
			if !ours || strings.HasPrefix(in, name+"/") || slices.ContainsFunc(allowed, func(a string) bool { return in == a || strings.HasPrefix(in, a+"/") }) {
				continue
			}
			t.Errorf("%s imports %s", name, in)
		}
	}
}

func TestConfinedModules(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if strings.HasPrefix(name, "test") {
			continue
		}
		for _, i := range p.Imports {
			for mod, homes := range confined {
				if (i == mod || strings.HasPrefix(i, mod+"/")) && !slices.ContainsFunc(homes, func(h string) bool { return name == h || strings.HasPrefix(name, h+"/") }) {
					t.Errorf("%s imports %s, which is confined to %s", name, i, strings.Join(homes, ", "))
				}
			}
		}
	}
}

// TestPluginDependencies: what is heavy lives in helper processes, and the
// engine links none of it.
func TestPluginDependencies(t *testing.T) {
	for _, p := range list(t, "-deps", "./vault-plugin/cmd/vault-plugin-secrets-sealed") {
		for _, heavy := range []string{"github.com/aws/", "github.com/getsops/", "filippo.io/age", "github.com/ProtonMail/", "github.com/Azure/", "github.com/1Password/", module + "/internal/source/sourcetest"} {
			if strings.HasPrefix(p.ImportPath, heavy) {
				t.Errorf("the plug-in links %s", p.ImportPath)
			}
		}
	}
}

func TestInitDependencies(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range list(t, "-deps", "./cmd/sealed-init") {
		if p.Standard || p.Module == nil || p.Module.Path == module || seen[p.Module.Path] {
			continue
		}
		seen[p.Module.Path] = true
		if initModules[p.Module.Path] == "" {
			t.Errorf("sealed-init links %s (by %s) without a reason in the table", p.Module.Path, p.ImportPath)
		}
	}
	for mod := range initModules {
		if !seen[mod] {
			t.Errorf("sealed-init does not link %s any more: drop it from the table", mod)
		}
	}
	for _, p := range list(t, "-deps", "./cmd/sealed-init") {
		if p.ImportPath == "net/http/pprof" || p.ImportPath == "expvar" {
			t.Errorf("sealed-init links %s", p.ImportPath)
		}
	}
}
