package vaultplugin

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestNoPackageState: the program serves several mounts at once, so nothing at
// package level may change, or hold what belongs to one of them. What is allowed
// is made once and never written: errors, patterns, and lists that are only read.
func TestNoPackageState(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	vars := map[string]bool{}
	for _, f := range files {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, name := range v.Names {
					vars[name.Name] = true
					if len(v.Values) <= i || !constant(v.Values[i]) {
						t.Errorf("%s is package state", name.Name)
					}
				}
			}
		}
	}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			a, ok := n.(*ast.AssignStmt)
			if !ok || a.Tok == token.DEFINE {
				return true
			}
			for _, to := range a.Lhs {
				if x, ok := to.(*ast.IndexExpr); ok {
					to = x.X
				}
				if id, ok := to.(*ast.Ident); ok && vars[id.Name] {
					t.Errorf("%s is assigned to", id.Name)
				}
			}
			return true
		})
	}
	if len(vars) < 5 {
		t.Fatalf("only %d variables were found", len(vars))
	}
}

// constant reports whether an initial value is one that nobody changes.
func constant(e ast.Expr) bool {
	switch v := e.(type) {
	case *ast.CompositeLit:
		_, list := v.Type.(*ast.ArrayType)
		return list
	case *ast.CallExpr:
		f, ok := v.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		x, ok := f.X.(*ast.Ident)
		return ok && slices.Contains([]string{"errors.New", "fmt.Errorf", "logical.CodedError", "regexp.MustCompile"}, x.Name+"."+f.Sel.Name)
	}
	return false
}
