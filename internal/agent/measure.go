package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/sealed"
)

// An Executable is one measured program.
type Executable struct {
	Path   string `json:"path"`   // with every link resolved
	SHA256 string `json:"sha256"` // plain, lower-case hex
	Script bool   `json:"script"` // begins with #!
}

// maxPackage bounds the files that are looked at in an npm package.
const maxPackage = 20_000

// Measure measures the program at path, or, without a slash in it, the one that
// the search path finds. Behind a launcher script of an npm package it also
// returns the native programs of the same name, if the package brings some.
// The first result is what execve runs. Errors wrap sealed.ErrNotFound or
// sealed.ErrInvalid.
func Measure(path, searchPath string) ([]Executable, error) {
	found, err := find(path, searchPath)
	if err != nil {
		return nil, fmt.Errorf("finding agent %s: %w", path, err)
	}
	first, err := measure(found)
	if err != nil {
		return nil, err
	}
	out := []Executable{first}
	if !first.Script {
		return out, nil
	}
	natives, err := natives(first.Path, strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)))
	if err != nil {
		return nil, fmt.Errorf("looking behind %s: %w", first.Path, err)
	}
	for _, n := range natives {
		e, err := measure(n)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// find resolves as execvp does, but never from the working directory: an empty
// or relative element of the search path is skipped.
func find(name, searchPath string) (string, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, dir := range filepath.SplitList(searchPath) {
			if filepath.IsAbs(dir) {
				candidates = append(candidates, filepath.Join(dir, name))
			}
		}
	}
	for _, c := range candidates {
		st, err := os.Stat(c)
		if err != nil {
			continue
		}
		if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			if strings.Contains(name, "/") {
				return "", fmt.Errorf("not an executable file: %w", sealed.ErrInvalid)
			}
			continue
		}
		abs, err := filepath.Abs(c)
		if err != nil {
			return "", err
		}
		return filepath.EvalSymlinks(abs)
	}
	return "", sealed.ErrNotFound
}

func measure(path string) (Executable, error) {
	f, err := os.Open(path)
	if err != nil {
		return Executable{}, fmt.Errorf("measuring: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	head := make([]byte, 2)
	n, err := io.ReadFull(f, head)
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		h.Write(head[:n])
		_, err = io.Copy(h, f)
	}
	if err != nil {
		return Executable{}, fmt.Errorf("measuring %s: %w", path, err)
	}
	return Executable{Path: path, SHA256: hex.EncodeToString(h.Sum(nil)), Script: string(head[:n]) == "#!"}, nil
}

// natives finds the native programs called name in the npm package that script
// belongs to, and in the packages that npm installs beside it for one platform
// (<package>-<os>-<arch>, an optional dependency).
func natives(script, name string) ([]string, error) {
	root, pkg := packageOf(script)
	if root == "" {
		return nil, nil
	}
	roots := []string{root}
	for _, modules := range []string{filepath.Dir(root), filepath.Join(root, "node_modules", filepath.Dir(pkg))} {
		beside, err := filepath.Glob(filepath.Join(quoteGlob(modules), quoteGlob(filepath.Base(pkg))+"-*"))
		if err != nil {
			return nil, err
		}
		roots = append(roots, beside...)
	}
	var out []string
	seen := 0
	for _, dir := range roots {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if seen++; seen > maxPackage {
				return fmt.Errorf("more than %d files: %w", maxPackage, sealed.ErrInvalid)
			}
			base := strings.TrimSuffix(d.Name(), ".exe")
			if d.Type().IsRegular() && base == name && isELF(path) && !slices.Contains(out, path) {
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(out)
	return out, nil
}

// packageOf returns the folder and the name of the npm package around a file,
// or "".
func packageOf(file string) (root, name string) {
	for dir := filepath.Dir(file); dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "package.json"))
		if err != nil {
			continue
		}
		var p struct {
			Name string `json:"name"`
		}
		if json.Unmarshal(b, &p) != nil || p.Name == "" || strings.Contains(p.Name, "..") {
			return "", ""
		}
		return dir, p.Name
	}
	return "", ""
}

func quoteGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func isELF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 4)
	_, err = io.ReadFull(f, head)
	return err == nil && bytes.Equal(head, []byte("\x7fELF"))
}
