package devstack

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Two users at once build a server once, and both find it.
func TestServerIsBuiltOnce(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "test", "stack", "tiny")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"go.mod": "module example.com/tiny\n\ngo 1.26\n",
		// The directory's name makes the source new: from Go's cache nothing
		// would be compiled.
		"main.go": "package main\n\n// " + root + "\nfunc main() { println(\"Tiny v1.2.3\") }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var compiled atomic.Int64
	cfg := Config{Module: root, Progress: func(step string, done, _ int64) {
		if strings.Contains(step, "building tiny: example.com/tiny") {
			compiled.Add(1)
		}
	}}
	s := Server{Name: "tiny", stack: "tiny", pkg: "."}
	path := filepath.Join(t.TempDir(), "bin", "tiny-1.2.3-x")
	build := func(ctx context.Context) error { return s.build(ctx, cfg, path) }
	if err := parallel(t.Context(), build, build, build); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path).CombinedOutput()
	if v, e := parseVersion(string(out)); err != nil || e != nil || v != "v1.2.3" {
		t.Errorf("%q, %v, %v", out, err, e)
	}
	if n := compiled.Load(); n != 1 {
		t.Errorf("compiled %d times", n)
	}
}

// A build that fails leaves nothing behind, and says why.
func TestServerBuildFails(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "test", "stack", "tiny")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/tiny\n\ngo 1.26\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() { undefinedName() }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bin", "tiny")
	err := Server{Name: "tiny", stack: "tiny", pkg: "."}.build(t.Context(), Config{Module: root}, path)
	if err == nil || !strings.Contains(err.Error(), "undefinedName") {
		t.Errorf("error: %v", err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}

// TestBuildOwn builds what the product builds and installs it.
func TestBuildOwn(t *testing.T) {
	cfg := realConfig(t, IdentityEmbedded)
	l := layout{cfg.Dir}
	if err := l.make(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		begun := time.Now()
		if err := installOwn(t.Context(), cfg, l); err != nil {
			t.Fatal(err)
		}
		t.Logf("built and installed after %v", time.Since(begun))
	}
	for path, mode := range map[string]fs.FileMode{
		l.bin(binInit): 0o711, l.bin(binAgent): 0o711,
		l.private("plugins", binPlugin): 0o755, l.private("plugins", binAttestor): 0o755,
	} {
		st, err := os.Stat(path)
		if err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", path, st, err, mode)
		}
	}
	entries, err := os.ReadDir(l.bin(""))
	if err != nil || len(entries) != 2 {
		t.Errorf("bin holds %v, %v", entries, err)
	}
}

// Without a compiler the go command would build SPIRE's server without SQLite,
// and it would not start: that is said first, before Vault is built.
func TestServersWantCompiler(t *testing.T) {
	cfg := Config{Identity: IdentitySPIRE, CacheDir: t.TempDir()}
	if err := cfg.findModule(); err != nil {
		t.Fatal(err)
	}
	built := false
	cfg.Progress = func(string, int64, int64) { built = true }
	t.Setenv("PATH", t.TempDir())
	if _, err := findServers(t.Context(), cfg); !errors.Is(err, ErrNoCompiler) || built {
		t.Errorf("%v, built %v", err, built)
	}
	cfg.Identity = IdentityEmbedded // the control: Vault needs none, only Go
	if _, err := findServers(t.Context(), cfg); !errors.Is(err, exec.ErrNotFound) || !built {
		t.Errorf("%v, built %v", err, built)
	}
}
