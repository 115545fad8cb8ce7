package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

func newPolicyInitCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "init [DIR]", Short: "Make a folder to write policies in", Args: cobra.MaximumNArgs(1),
		Long: `Init writes the default policies with their tests and schemas, examples, and
requests to try them with into a new folder (default: policy). README.md there
says what to do next. A folder that is not empty is left alone.

  sealedctl policy init policy`,
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "policy"
			if len(args) == 1 {
				dir = args[0]
			}
			files, err := writeStarter(dir)
			if err != nil {
				return err
			}
			out := struct {
				Dir   string   `json:"dir"`
				Files []string `json:"files"`
			}{dir, files}
			return a.line(out, func() { a.printf("%s: %d files; read %s\n", dir, len(files), filepath.Join(dir, "README.md")) })
		},
	}
}

// writeStarter fills dir, which must be absent or empty.
func writeStarter(dir string) (files []string, err error) {
	if there, err := os.ReadDir(dir); err == nil && len(there) > 0 {
		return nil, fmt.Errorf("making policy folder: %s is not empty: %w", dir, fs.ErrExist)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("making policy folder: %w", err)
	}
	for _, from := range []struct {
		fsys     fs.FS
		trim, to string
	}{{rego.FS(), "", "policies"}, {rego.Examples(), "", ""}, {rego.Starter(), "starter", ""}} {
		err := fs.WalkDir(from.fsys, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := fs.ReadFile(from.fsys, name)
			if err != nil {
				return err
			}
			to := filepath.Join(dir, from.to, strings.TrimPrefix(name, from.trim))
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			files = append(files, to)
			return newFile(to, data, 0o644)
		})
		if err != nil {
			return nil, fmt.Errorf("making policy folder: %w", err)
		}
	}
	return files, nil
}

func newPolicyFmtCmd(a *app) *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use: "fmt [--check] DIR", Short: "Format Rego files in place", Args: cobra.ExactArgs(1),
		Long: `Fmt writes every *.rego below DIR as opa fmt does, and names the files that it
changed. --check changes nothing, and fails if there is something to change.

  sealedctl policy fmt --check policies`,
		RunE: func(_ *cobra.Command, args []string) error {
			changed, err := formatDir(args[0], !check)
			if err != nil {
				return err
			}
			for _, name := range changed {
				if err := a.line(struct {
					File string `json:"file"`
				}{name}, func() { a.printf("%s\n", name) }); err != nil {
					return err
				}
			}
			if check && len(changed) > 0 {
				return &hintError{err: fmt.Errorf("formatting policies: %d files are not formatted", len(changed)), hint: "sealedctl policy fmt " + args[0]}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "change nothing; fail if a file is not formatted")
	return cmd
}

// formatDir returns the files that are not formatted, and writes them if told
// so. A file that does not parse stops it before anything is written.
func formatDir(dir string, write bool) (changed []string, err error) {
	formatted := map[string][]byte{}
	err = fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path.Ext(name) != ".rego" {
			return err
		}
		file := filepath.Join(dir, name)
		src, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		out, err := opabundle.Format(file, src)
		if err == nil && !bytes.Equal(src, out) {
			changed = append(changed, file)
			formatted[file] = out
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("formatting policies: %w", err)
	}
	for _, name := range changed {
		if !write {
			break
		}
		if err := replaceFile(name, formatted[name]); err != nil {
			return nil, fmt.Errorf("formatting policies: %w", err)
		}
	}
	return changed, nil
}

// replaceFile swaps the whole file at once.
func replaceFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".sealed-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func newPolicyCheckCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "check (DIR | default)", Short: "Find mistakes in policies", Args: cobra.ExactArgs(1),
		Long: `Check parses the policies, checks what they read against the JSON schemas of
their inputs, refuses what the engine would refuse (functions, roots, files), and
wants METADATA on every answer. It fails if it finds anything.

  sealedctl policy check policies`,
		RunE: func(cmd *cobra.Command, args []string) error {
			fsys, err := policySource(args[0])
			if err != nil {
				return err
			}
			schemas, err := fs.Sub(rego.FS(), "schema")
			if err != nil {
				return err
			}
			problems, err := opabundle.Check(cmd.Context(), fsys, schemas)
			if err != nil {
				return err
			}
			for _, p := range problems {
				if err := a.line(p, func() { a.printf("%s\n", p.String()) }); err != nil {
					return err
				}
			}
			if len(problems) > 0 {
				return fmt.Errorf("checking policies: %d problems", len(problems))
			}
			a.talk("%s: no problems", args[0])
			return nil
		},
	}
}

// policySource is a directory of policies, or those that come with sealedctl.
func policySource(arg string) (fs.FS, error) {
	if arg == "default" {
		return rego.FS(), nil
	}
	st, err := os.Stat(arg)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is not a directory: %w", arg, sealed.ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	return os.DirFS(arg), nil
}

func newPolicyTestCmd(a *app) *cobra.Command {
	var least float64
	cmd := &cobra.Command{
		Use: "test (DIR | default) [--coverage-min PERCENT]", Short: "Run the tests of policies", Args: cobra.ExactArgs(1),
		Long: `Test runs the rules test_… of *_test.rego and shows how much of the policies they
evaluate. It fails if a test fails, if there is none, or if the coverage is too low.
Tests reach neither network nor environment.

  sealedctl policy test policies --coverage-min 100`,
		RunE: func(cmd *cobra.Command, args []string) error {
			fsys, err := policySource(args[0])
			if err != nil {
				return err
			}
			r, err := opabundle.Test(cmd.Context(), fsys)
			if err != nil {
				return err
			}
			if err := a.print(r, func(w io.Writer) { testTable(w, r) }); err != nil {
				return err
			}
			switch {
			case r.Failed > 0:
				return fmt.Errorf("testing policies: %d of %d tests failed", r.Failed, len(r.Tests))
			case len(r.Tests) == 0:
				return errors.New("testing policies: there are no tests")
			case r.Coverage < least:
				return fmt.Errorf("testing policies: coverage is %.1f %%, wants %.1f %%", r.Coverage, least)
			}
			return nil
		},
	}
	cmd.Flags().Float64Var(&least, "coverage-min", 0, "fail below this coverage, in percent of lines")
	return cmd
}

func testTable(w io.Writer, r opabundle.TestReport) {
	for _, t := range r.Tests {
		if t.Problem != "" {
			row(w, "FAILED", t.Name, fmt.Sprintf("%s:%d", t.File, t.Line), t.Problem)
		}
	}
	for _, f := range r.Files {
		missed := ""
		if len(f.Missed) > 0 {
			missed = "not reached: " + strings.Trim(strings.ReplaceAll(fmt.Sprint(f.Missed), " ", ", "), "[]")
		}
		row(w, fmt.Sprintf("%.1f %%", f.Coverage), f.File, missed)
	}
	row(w, fmt.Sprintf("%.1f %%", r.Coverage), fmt.Sprintf("%d tests, %d failed", len(r.Tests), r.Failed))
}
