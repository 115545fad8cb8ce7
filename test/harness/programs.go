package harness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/devstack"
)

// A recipe is how a program of this repository is built: static, in the cache,
// where Go skips linking what is up to date, one at a time.
type recipe struct {
	module  string            // root of this repository
	pkg     string            // below it
	variant string            // folder in the cache
	replace map[string][]byte // text of files that the compiler gets another of
}

// build puts a copy at to, for everyone to run.
func (r recipe) build(ctx context.Context, to string) error {
	if err := r.buildLocked(ctx, to); err != nil {
		return fmt.Errorf("building %s: %w", r.pkg, err)
	}
	return nil
}

func (r recipe) buildLocked(ctx context.Context, to string) error {
	// The folder's name holds a digest of the path, so that two trees do not
	// fight over it.
	sum := sha256.Sum256([]byte(r.module))
	dir := filepath.Join(devstack.CacheDir(os.Getenv), "own", hex.EncodeToString(sum[:6]), "test", r.variant)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	program := filepath.Join(dir, filepath.Base(r.pkg))
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", program}
	if len(r.replace) > 0 {
		overlay, err := r.overlay(dir)
		if err != nil {
			return err
		}
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, r.pkg)...)
	cmd.Dir = r.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return copyFile(program, to)
}

// overlay writes the replacements for go build -overlay.
func (r recipe) overlay(dir string) (path string, err error) {
	names := map[string]string{}
	for i, file := range slices.Sorted(maps.Keys(r.replace)) {
		names[file] = filepath.Join(dir, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(names[file], r.replace[file], 0o600); err != nil {
			return "", err
		}
	}
	doc, err := json.Marshal(map[string]any{"Replace": names})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, doc, 0o600)
}

// BuildChanged builds a program of this repository from other texts of some
// files, by path, and puts a copy at to. Nothing in the tree changes; name
// says what the change is.
func BuildChanged(t testing.TB, name, to, pkg string, texts map[string][]byte) {
	t.Helper()
	module, err := findModule()
	Must(t, err)
	sum := sha256.Sum256([]byte(name))
	r := recipe{module: module, pkg: pkg, variant: "changed-" + hex.EncodeToString(sum[:6]), replace: texts}
	Must(t, r.build(t.Context(), to))
}

// plain is the variant without changes.
const plain = "plain"

// Build builds a program of this repository into a directory that sandboxes
// can be shown with --read-only, and returns its path.
func (s *Stack) Build(t testing.TB, pkg string) string {
	t.Helper()
	to := filepath.Join(s.Base, "built", filepath.Base(pkg))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	Must(t, recipe{module: s.Module, pkg: pkg, variant: plain}.build(t.Context(), to))
	return to
}

// copyFile makes a copy of a program for everyone to run.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o755), out.Close())
}

// link is copyFile, without copying where the file system allows.
func link(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	return copyFile(from, to)
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
		Must(t, copyFile(from, filepath.Join(dir, filepath.Base(from)))) // not a link: the mode differs
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
	dir, texts := s.Programs(t), map[string][]byte{}
	for _, m := range ms {
		m.apply(t, s.Module, texts)
	}
	BuildChanged(t, fmt.Sprint(ms), filepath.Join(dir, "sealed-init"), "./cmd/sealed-init", texts)
	return dir
}

// apply puts the text of the file that holds the function, with the insertion,
// into texts, where earlier mutations of the same file are.
func (m Mutation) apply(t testing.TB, module string, texts map[string][]byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(module, m.Package, "*.go"))
	Must(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, ok := texts[file]
		if !ok {
			text, err = os.ReadFile(file)
			Must(t, err)
		}
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, file, text, 0)
		Must(t, err)
		for _, d := range tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && funcName(f) == m.Func {
				at := set.Position(f.Body.Lbrace).Offset + 1
				texts[file] = bytes.Join([][]byte{text[:at], []byte(" " + m.Insert + "\n"), text[at:]}, nil)
				return
			}
		}
	}
	t.Fatalf("%s has no function %s", m.Package, m.Func)
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
