package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

// TestPresets: every preset makes a definition that the engine accepts, and
// holds no variable that could carry a value itself.
func TestPresets(t *testing.T) {
	for _, name := range Presets() {
		env, ok := Preset(name)
		if !ok || len(env) == 0 {
			t.Fatalf("preset %s is empty", name)
		}
		doc, err := json.Marshal(sealed.AgentDefinition{Name: name, AnyBinary: true, AgentEnv: env})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sealed.ParseAgentDefinition(doc); err != nil {
			t.Errorf("preset %s: %v", name, err)
		}
		env["X"] = "changed"
		if again, _ := Preset(name); again["X"] != "" {
			t.Errorf("preset %s is shared", name)
		}
	}
	if _, ok := Preset("other"); ok {
		t.Error("preset for an unknown agent")
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func TestMeasure(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	native := write(t, filepath.Join(dir, "lib", "agent-1.2"), "\x7fELF one", 0o755)
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../lib/agent-1.2", filepath.Join(bin, "agent")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(bin, "plain"), "text", 0o644)
	// An npm package with a launcher script, as codex has.
	pkg := filepath.Join(dir, "node_modules", "@acme", "tool")
	write(t, filepath.Join(pkg, "package.json"), `{"name":"@acme/tool"}`, 0o644)
	script := write(t, filepath.Join(pkg, "bin", "tool.js"), "#!/usr/bin/env node\n", 0o755)
	behind := write(t, filepath.Join(dir, "node_modules", "@acme", "tool-linux-x64", "vendor", "tool"), "\x7fELF two", 0o755)
	write(t, filepath.Join(dir, "node_modules", "@acme", "tool-linux-x64", "vendor", "rg"), "\x7fELF other", 0o755)
	write(t, filepath.Join(pkg, "lib", "tool"), "not native", 0o755)
	if err := os.Symlink(script, filepath.Join(bin, "tool")); err != nil {
		t.Fatal(err)
	}
	lone := write(t, filepath.Join(bin, "lone"), "#!/bin/sh\n", 0o755)

	for _, tc := range []struct {
		name, path string
		want       []Executable
		err        error
	}{
		{"a link to a native program", filepath.Join(bin, "agent"), []Executable{{native, sum("\x7fELF one"), false}}, nil},
		{"a name in the search path", "agent", []Executable{{native, sum("\x7fELF one"), false}}, nil},
		{"a launcher script of a package", "tool", []Executable{
			{script, sum("#!/usr/bin/env node\n"), true}, {behind, sum("\x7fELF two"), false},
		}, nil},
		{"a script of no package", lone, []Executable{{lone, sum("#!/bin/sh\n"), true}}, nil},
		{"not executable", filepath.Join(bin, "plain"), nil, sealed.ErrInvalid},
		{"a directory", bin, nil, sealed.ErrInvalid},
		{"absent", "nothing", nil, sealed.ErrNotFound},
		{"absent path", filepath.Join(bin, "nothing"), nil, sealed.ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Measure(tc.path, ":.:"+bin)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestMeasureNotFromWorkingDirectory: a program in the working directory must
// not be taken for the one in the search path.
func TestMeasureNotFromWorkingDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "agent"), "\x7fELF evil", 0o755)
	t.Chdir(dir)
	for _, search := range []string{"", ".", ":", "./"} {
		if got, err := Measure("agent", search); !errors.Is(err, sealed.ErrNotFound) {
			t.Errorf("search path %q: %v %v", search, got, err)
		}
	}
	// The control: named with a slash it is found.
	if _, err := Measure("./agent", ""); err != nil {
		t.Errorf("named: %v", err)
	}
}
