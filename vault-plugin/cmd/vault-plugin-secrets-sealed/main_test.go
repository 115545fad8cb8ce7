package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

func TestScrub(t *testing.T) {
	got, changed := scrub([]string{"VAULT_TOKEN=x", "AWS_SECRET_ACCESS_KEY=y", "GODEBUG=http2debug=2", "GOTRACEBACK=all", "VAULT_BACKEND_PLUGIN=c", "TMPDIR=/t", "SSL_CERT_FILE=/x"})
	want := []string{"GOTRACEBACK=none", "TMPDIR=/t", "VAULT_BACKEND_PLUGIN=c"}
	if diff := cmp.Diff(want, got); diff != "" || !changed {
		t.Errorf("changed %v, %s", changed, diff)
	}
	if _, changed := scrub(got); changed {
		t.Error("a clean environment would start again forever")
	}
}

func TestOpenSource(t *testing.T) {
	cred := secret.New([]byte("canary-token"))
	if _, err := openSource(sealed.SourceConfig{Name: "x", Type: "aws"}, cred); err == nil {
		t.Error("an unknown type was opened")
	}
	_ = cred.Reveal(func(b []byte) error {
		if len(b) > 0 {
			t.Error("the credential outlived the refusal")
		}
		return nil
	})
	cfg := sealed.SourceConfig{Name: "kv", Type: sealed.SourceVaultKV, Address: "https://localhost:1", Mount: "kv"}
	if _, err := openSource(cfg, secret.New([]byte("t"))); err != nil {
		t.Error(err)
	}
}

// TestProcess runs the real program: it tells its version, and started with a
// foreign variable it keeps nothing of it, not even for /proc.
func TestProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	exe := filepath.Join(t.TempDir(), "plugin")
	if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	out, err := exec.Command(exe, "-version").Output()
	if err != nil || !strings.HasPrefix(string(out), "v") {
		t.Errorf("version: %q, %v", out, err)
	}
	// Without go-plugin's cookie the program explains itself and leaves, after
	// it has started again: its second life must not see the variable.
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "SEALED_CANARY=canary")
	text, err := cmd.CombinedOutput()
	if err == nil || strings.Contains(string(text), "canary") {
		t.Errorf("run by hand: %v\n%s", err, text)
	}
}
