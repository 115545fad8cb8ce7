package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness/require"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sealedctl": main, "sealedctl-loose": func() {
		// main without tighten: the negative control.
		os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}, "sigstore-kms-double": func() { kmsMain(false) }, "sigstore-kms-liar": func() { kmsMain(true) }, "talker": func() {
		// talker kept|loose writes until its reader has gone, and then exits with 7.
		if os.Args[1] == "kept" {
			outlivePipe()
		}
		for {
			if _, err := os.Stdout.WriteString("talk\n"); err != nil {
				os.Exit(7)
			}
		}
	}})
}

// TestScript runs what needs no server.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: setup(nil), Cmds: commands(nil), RequireExplicitExec: true})
}

// planted are the canaries of one script.
type planted struct{ list []*canary.Canary }

type plantedKey struct{}

// setup gives each script a home of its own; more may be nil.
func setup(more func(*testscript.Env) error) func(*testscript.Env) error {
	return func(env *testscript.Env) error {
		home := filepath.Join(env.WorkDir, "home")
		if err := os.MkdirAll(home, 0o700); err != nil {
			return err
		}
		env.Setenv("HOME", home)
		env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
		env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
		env.Values[plantedKey{}] = &planted{}
		if more != nil {
			return more(env)
		}
		return nil
	}
}

// commands are the scripts' own; more may be nil.
func commands(more map[string]func(*testscript.TestScript, bool, []string)) map[string]func(*testscript.TestScript, bool, []string) {
	out := map[string]func(*testscript.TestScript, bool, []string){
		"exits": cmdExits, "canary": cmdCanary, "noleak": cmdNoLeak, "maxlines": cmdMaxLines, "export": cmdExport, "flip": cmdFlip,
	}
	for name, f := range more {
		out[name] = f
	}
	return out
}

// cmdExits: exits STATUS PROGRAM ARG… runs a program that must end with STATUS.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM [ARG…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	status := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("running %s: %v", args[1], err)
	}
	if status != want {
		ts.Fatalf("exit status %d, want %d", status, want)
	}
}

// cmdCanary: canary NAME plants a value in the file NAME.canary.
func cmdCanary(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: canary NAME")
	}
	c, err := canary.New(args[0])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".canary"), []byte(c.Value), 0o600))
	p := ts.Value(plantedKey{}).(*planted)
	p.list = append(p.list, c)
}

// cmdNoLeak fails if a canary of this script is in the last command's output
// or in a file of the script, in any form that the redactor or the independent
// oracle of the security tests knows. The planted files themselves don't count,
// nor does the terminal: ttyin types before the program has said not to echo,
// which TestPromptDoesNotEcho waits for.
func cmdNoLeak(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 0 {
		ts.Fatalf("usage: [!] noleak")
	}
	p := ts.Value(plantedKey{}).(*planted)
	if len(p.list) == 0 {
		ts.Fatalf("noleak without a canary can't fail")
	}
	hits, err := leaks(ts, p.list)
	ts.Check(err)
	if len(hits) > 0 && !neg {
		ts.Fatalf("leaked: %s", strings.Join(hits, "; "))
	}
	if len(hits) == 0 && neg {
		ts.Fatalf("no canary was found, but there is one")
	}
}

func leaks(ts *testscript.TestScript, list []*canary.Canary) ([]string, error) {
	set := redact.NewSet()
	for _, c := range list {
		if err := set.Add(c.Name, []byte(c.Value), redact.Options{}); err != nil {
			return nil, err
		}
	}
	var hits []string
	scan := func(sink string, data []byte) error {
		for _, h := range canary.Scan(sink, data, list...) {
			hits = append(hits, h.String())
		}
		counts, err := redact.Scan(bytes.NewReader(data), set)
		for _, n := range counts {
			hits = append(hits, fmt.Sprintf("%s as %s in %s", n.Key, n.Form, sink))
		}
		return err
	}
	for _, sink := range []string{"stdout", "stderr"} {
		if err := scan(sink, []byte(ts.ReadFile(sink))); err != nil {
			return nil, err
		}
	}
	err := filepath.WalkDir(ts.Getenv("WORK"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, ".canary") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return scan(path, data)
	})
	return hits, err
}

// cmdMaxLines: maxlines N fails if the last command said more on stderr.
func cmdMaxLines(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: maxlines N")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	said := ts.ReadFile("stderr")
	if got := strings.Count(said, "\n"); got > n || got == 0 {
		ts.Fatalf("%d lines on stderr, want 1 to %d", got, n)
	}
}

// cmdFlip: flip FILE changes one bit in the middle of a file.
func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flip FILE")
	}
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(path, b, 0o600))
}

// need skips, or fails where the environment demands the real thing.
func need(t *testing.T, what, reason string) {
	t.Helper()
	require.Missing(t, what, reason)
}
