package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// build builds a program of this repository, static, for everyone to run.
func build(ctx context.Context, module, to, pkg string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w"}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "-o", to, pkg)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w: %s", pkg, err, out)
	}
	return os.Chmod(to, 0o755)
}

// Build builds a program of this repository into a directory that sandboxes
// can be shown with --read-only, and returns its path.
func (s *Stack) Build(t testing.TB, pkg string) string {
	t.Helper()
	to := filepath.Join(s.Base, "built", filepath.Base(pkg))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := build(t.Context(), s.Module, to, pkg); err != nil {
		t.Fatal(err)
	}
	return to
}

// link makes a copy of a program for everyone to run, without copying where
// the file system allows.
func link(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o755), out.Close())
}

// Link makes a program available under another path, for every uid.
func Link(t testing.TB, from, to string) {
	t.Helper()
	Must(t, link(from, to))
}

// Programs returns a new directory with this stack's programs, fit for
// Options.Programs. Every uid may read it.
func (s *Stack) Programs(t testing.TB) string {
	t.Helper()
	dir := s.Dir(t, 0)
	private := filepath.Join(s.Status.Dir, "private", "plugins")
	for _, from := range []string{
		s.Sealedctl, s.Status.InitPath, s.Status.AgentPath,
		filepath.Join(private, "vault-plugin-secrets-sealed"), filepath.Join(private, "spire-attestor-sealed"),
	} {
		b, err := os.ReadFile(from) // not a link: the mode differs
		Must(t, err)
		to := filepath.Join(dir, filepath.Base(from))
		Must(t, os.WriteFile(to, b, 0o755))
		Must(t, os.Chmod(to, 0o755))
	}
	return dir
}

// A Mutation switches one control of sealed-init off, for the test that shows
// that its absence is noticed. No program that is shipped has such a switch:
// the source is changed on its way to the compiler (go build -overlay).
type Mutation struct {
	Package string // directory, below the repository
	Func    string // Name, or Type.Name of a method with a pointer receiver
	Insert  string // statements put before the first one
}

// Mutant is Programs with a sealed-init that was built with mutations.
func (s *Stack) Mutant(t testing.TB, ms ...Mutation) string {
	t.Helper()
	dir, scratch := s.Programs(t), t.TempDir()
	replace := map[string]string{}
	for _, m := range ms {
		file, text := m.apply(t, s.Module, replace)
		to := filepath.Join(scratch, fmt.Sprintf("%d.go", len(replace)))
		Must(t, os.WriteFile(to, text, 0o600))
		replace[file] = to
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	Must(t, err)
	Must(t, os.WriteFile(filepath.Join(scratch, "overlay.json"), overlay, 0o600))
	Must(t, build(t.Context(), s.Module, filepath.Join(dir, "sealed-init"), "./cmd/sealed-init", "-overlay", filepath.Join(scratch, "overlay.json")))
	return dir
}

// apply returns the file that holds the function, and its text with the
// insertion. Earlier mutations of the same file are in replaced.
func (m Mutation) apply(t testing.TB, module string, replaced map[string]string) (file string, text []byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(module, m.Package, "*.go"))
	Must(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		from := file
		if to, ok := replaced[file]; ok {
			from = to
		}
		text, err := os.ReadFile(from)
		Must(t, err)
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, file, text, 0)
		Must(t, err)
		for _, d := range tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && funcName(f) == m.Func {
				at := set.Position(f.Body.Lbrace).Offset + 1
				return file, bytes.Join([][]byte{text[:at], []byte(" " + m.Insert + "\n"), text[at:]}, nil)
			}
		}
	}
	t.Fatalf("%s has no function %s", m.Package, m.Func)
	return "", nil
}

func funcName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	if star, ok := f.Recv.List[0].Type.(*ast.StarExpr); ok {
		if id, ok := star.X.(*ast.Ident); ok {
			return id.Name + "." + f.Name.Name
		}
	}
	return ""
}
