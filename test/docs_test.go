package test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// goFiles calls f for every Go file of the project.
func goFiles(t *testing.T, f func(path string, src []byte)) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata" || path == "../test/stack") {
			return filepath.SkipDir
		}
		if !d.IsDir() && strings.HasSuffix(path, ".go") {
			src, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			f(path, src)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Every package says what it is, and every exported name its contract.
func TestExportedNamesAreDocumented(t *testing.T) {
	documented, seen := map[string]bool{}, map[string]string{}
	goFiles(t, func(path string, src []byte) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ParseComments)
		if err != nil {
			t.Error(err)
			return
		}
		dir := filepath.Dir(path)
		seen[dir] = path
		if file.Doc != nil {
			documented[dir] = true
		}
		for _, d := range file.Decls {
			undocumented(d, func(name string) { t.Errorf("%s: exported %s has no comment", path, name) })
		}
	})
	for dir := range seen {
		if !documented[dir] {
			t.Errorf("%s: package has no comment", dir)
		}
	}
}

// wellKnown are methods whose contract is that of a standard interface.
var wellKnown = []string{"Error", "Unwrap", "String", "Read", "Write", "Close"}

func undocumented(d ast.Decl, report func(string)) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && !slices.Contains(wellKnown, d.Name.Name) && (d.Recv == nil || exportedReceiver(d.Recv)) {
			report(d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			if ts, ok := s.(*ast.TypeSpec); ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil {
				report(ts.Name.Name)
			}
		}
	}
}

func exportedReceiver(r *ast.FieldList) bool {
	typ := r.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

// A file over 400 lines is a question; over 600 (tests: 1,000) a defect.
func TestFileSizes(t *testing.T) {
	goFiles(t, func(path string, src []byte) {
		limit := 600
		if strings.HasSuffix(path, "_test.go") {
			limit = 1000
		}
		if n := bytes.Count(src, []byte("\n")); n > limit {
			t.Errorf("%s has %d lines, limit %d", path, n, limit)
		}
	})
}

// No init functions, no stand-ins, nothing that mentions where it was built.
func TestForbiddenText(t *testing.T) {
	goFiles(t, func(path string, src []byte) {
		if strings.HasSuffix(path, "docs_test.go") {
			return
		}
		for _, bad := range []string{"func init() {", "TODO", "FIXME", "XXX:", "not implemented", "/work/"} {
			if bytes.Contains(src, []byte(bad)) {
				t.Errorf("%s contains %q", path, bad)
			}
		}
	})
}
