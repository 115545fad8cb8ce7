package opabundle

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Build returns an unsigned bundle of the policies in fsys: every *.rego and
// data.json, under the path it has in fsys. Tests (*_test.rego), folders named
// schema, and *.go and *.md files are left out; any other file is an error, so
// that nothing is dropped by accident.
//
// The result is loaded the way Open loads it, without the signature: a policy
// that Open would refuse fails here, with the same sentinels. Equal input
// gives equal bytes (for one version of Go).
func Build(ctx context.Context, fsys fs.FS, m Manifest) ([]byte, error) {
	doc, err := m.marshal()
	if err != nil {
		return nil, fmt.Errorf("building bundle: %w", err)
	}
	files, err := collect(fsys)
	if err != nil {
		return nil, fmt.Errorf("building bundle: %w", err)
	}
	raw, err := writeArchive(append(files, file{name: manifestName, data: doc}))
	if err != nil {
		return nil, fmt.Errorf("building bundle: %w", err)
	}
	limits := Limits{}.withDefaults()
	files, err = readArchive(raw, limits)
	if err != nil {
		return nil, fmt.Errorf("building bundle: %w", err)
	}
	if _, err := load(ctx, files, nil, limits); err != nil {
		return nil, fmt.Errorf("building bundle: %w", err)
	}
	return raw, nil
}

func collect(fsys fs.FS) ([]file, error) {
	var files []file
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "schema" {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(name, "_test.rego") || slices.Contains([]string{".go", ".md"}, path.Ext(name)) {
			return nil
		}
		if !d.Type().IsRegular() || (path.Base(name) != dataName && path.Ext(name) != regoSuffix) {
			return fmt.Errorf("%w: %s: not a policy, a data.json or a test", ErrMalformed, name)
		}
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		files = append(files, file{name: name, data: data})
		return nil
	})
	return files, err
}
