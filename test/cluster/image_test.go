package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/testcontainers/testcontainers-go"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/test/harness"
)

const dockerfile = `FROM scratch
COPY root /
ENTRYPOINT ["/vault", "server"]
`

// image lays out what a node's image is made of: Vault with its libraries, the
// engine, certificate and configurations.
func image(t *testing.T, s *harness.Stack, net subnet) testcontainers.FromDockerfile {
	t.Helper()
	dir := t.TempDir()
	private := filepath.Join(s.Status.Dir, "private")
	vault := vaultBinary(t, s)
	copies := map[string]string{
		"vault":     vault,
		"cert.pem":  filepath.Join(private, "vault-cert.pem"),
		"key.pem":   filepath.Join(private, "vault-key.pem"),
		"ca.pem":    s.Status.VaultCA,
		"tmp/empty": os.DevNull, "raft/empty": os.DevNull,
		// The audit device of the stack writes here; the node that can't does not start.
		filepath.Join(filepath.Dir(s.Status.AuditFile), "empty"): os.DevNull,
		"plugins/vault-plugin-secrets-sealed":                    filepath.Join(private, "plugins", "vault-plugin-secrets-sealed"),
	}
	for _, lib := range libraries(t, vault) {
		copies[lib] = lib
	}
	for to, from := range copies {
		harness.Must(t, place(from, filepath.Join(dir, "root", to)))
	}
	for i := range nodes + 1 {
		doc, err := json.Marshal(configuration(net, i))
		harness.Must(t, err)
		harness.Must(t, os.WriteFile(filepath.Join(dir, "root", fmt.Sprintf("node%d.json", i)), doc, 0o644))
	}
	harness.Must(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644))
	return testcontainers.FromDockerfile{Context: dir, Repo: "sealed-test-cluster", Tag: filepath.Base(s.Base), KeepImage: true}
}

// vaultBinary is the server that the stack runs.
func vaultBinary(t *testing.T, s *harness.Stack) string {
	t.Helper()
	for _, server := range s.Status.Servers {
		if server.Name == devstack.Servers(devstack.IdentityEmbedded)[0].Name {
			return server.Path
		}
	}
	t.Fatal("the stack has no Vault")
	return ""
}

var libraryRE = regexp.MustCompile(`(?m)(/\S+) \(0x`)

// libraries are the absolute paths of what a program is linked to, its loader too.
func libraries(t *testing.T, program string) []string {
	t.Helper()
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil {
		if strings.Contains(string(out), "not a dynamic executable") {
			return nil
		}
		t.Fatalf("ldd %s: %v: %s", program, err, out)
	}
	var paths []string
	for _, m := range libraryRE.FindAllStringSubmatch(string(out), -1) {
		paths = append(paths, m[1])
	}
	return paths
}

// place copies a file, what a link points to rather than the link.
func place(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// configuration of node i. All have the stack's certificate, which speaks for
// localhost: clients of the cluster go to 127.0.0.1, where the balancer is.
func configuration(net subnet, i int) map[string]any {
	var join []any
	for n := range nodes {
		if n != i {
			join = append(join, map[string]any{"leader_api_addr": "https://" + net.listener(n), "leader_ca_cert_file": "/ca.pem", "leader_tls_servername": "localhost"})
		}
	}
	raft := map[string]any{"path": "/raft", "node_id": fmt.Sprintf("node%d", i), "performance_multiplier": "1"}
	if i > 0 {
		raft["retry_join"] = join
	}
	storage := map[string]any{"raft": raft}
	if i == upstream {
		storage = map[string]any{"inmem": map[string]any{}}
	}
	return map[string]any{
		"storage": storage,
		"listener": []any{map[string]any{"tcp": map[string]any{
			"address": "0.0.0.0:8200", "cluster_address": "0.0.0.0:8201", "tls_cert_file": "/cert.pem", "tls_key_file": "/key.pem",
			"tls_min_version": "tls13", "tls_disable_client_certs": true,
		}}},
		"api_addr": "https://" + net.listener(i), "cluster_addr": "https://" + net.peer(i),
		"plugin_directory": "/plugins", "disable_mlock": true, "ui": false, "log_level": "info",
	}
}
