package attack

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// off are controls of sealed-init, switched off.
var off = []harness.Mutation{
	{Package: "internal/redact", Func: "Writer.Write", Insert: "return w.dst.Write(p)"},                             // A01 and all that prints
	{Package: "internal/sandboxinit", Func: "runner.lookBack", Insert: "return nil"},                                // the second look at all that prints
	{Package: "internal/redact", Func: "Bytes", Insert: "return p"},                                                 // headers of upstream answers
	{Package: "internal/redact", Func: "Scan", Insert: "return nil, nil"},                                           // B07
	{Package: "internal/sandboxinit", Func: "foreignEnviron", Insert: "return nil"},                                 // C18
	{Package: "internal/sandboxinit", Func: "eventLog.add", Insert: "return"},                                       // every "audited"
	{Package: "internal/sandboxinit", Func: "InstallSeccomp", Insert: "return nil"},                                 // B03, B04
	{Package: "internal/sandboxinit/proxy", Func: "Proxy.control", Insert: "p.cfg.Control.ServeHTTP(w, r); return"}, // R15
}

// The other half of the tests above: with a sealed-init whose controls are
// switched off, on a stack that takes it for the real one, each attack works
// and the oracle sees it. So what keeps the real one clean is the control, and
// not that there was nothing to find.
func TestControlsOfInitSwitchedOff(t *testing.T) {
	t.Parallel()
	w := own(t, harness.Options{Identity: devstack.IdentityEmbedded, Programs: get(t).Mutant(t, off...)})
	t.Run("A01 A03 B07 what the agent prints and leaves behind", func(t *testing.T) {
		profile, c := w.profile(t)
		r := w.Ctl(t, harness.Caller{}, shell(profile, `echo $KEY; printf %s "$KEY" | base64 -w0 >&2; printf %s "$KEY" > raw`)...).Want(t, 0)
		var found []string
		for _, hit := range w.sinks(t, r, c) {
			found = append(found, hit.Form+" in "+hit.Sink)
		}
		dir := r.RunDir(t)
		for _, want := range []string{"raw in stdout", "base64+0 in stderr", "raw in " + filepath.Join(dir, "stdout.log"), "base64+0 in " + filepath.Join(dir, "stderr.log"),
			"raw in " + filepath.Join(r.Dir, "raw")} {
			if !slices.Contains(found, want) {
				t.Errorf("not found: %s; only %q", want, found)
			}
		}
	})
	t.Run("B15 what an upstream repeats", func(t *testing.T) {
		profile, c := w.profile(t, binding("api.test"))
		w.Upstream.Handle(t, "api.test", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("X-Echo", r.Header.Get("Authorization"))
			_, _ = fmt.Fprint(rw, "body ", r.Header.Get("Authorization"))
		}))
		r := w.Ctl(t, harness.Caller{}, shell(profile, `curl -sS -D headers -o body -H "Authorization: Bearer $KEY" https://api.test/v1/x`)...).Want(t, 0)
		for _, name := range []string{"headers", "body"} {
			b, err := os.ReadFile(filepath.Join(r.Dir, name))
			if err != nil || len(canary.Scan(name, b, c)) == 0 {
				t.Errorf("%s: not found, %v", name, err)
			}
		}
	})
	t.Run("C18 a variable in the environment of init", func(t *testing.T) {
		out, exit := w.startInit(t, "GODEBUG=http2debug=2")
		if exit != sealed.ExitSealed || !strings.Contains(out, "reading trust file") {
			t.Errorf("exit %d: %s", exit, out)
		}
	})
	t.Run("what was refused is not in the log", func(t *testing.T) {
		profile, _ := w.profile(t, binding("api.test"))
		r := w.Ctl(t, harness.Caller{}, shell(profile, curl("https://other.test/v1/echo"), "--no-workspace")...)
		if w.entry(t, r.RunID(t), "egress.denied") {
			t.Error("it is")
		}
	})
	t.Run("B03 B04 system calls", func(t *testing.T) {
		r := w.Ctl(t, harness.Caller{}, shell("", w.probe+" reach", "--no-workspace", "--read-only", filepath.Dir(w.probe))...).Want(t, 0)
		if got := worked(strings.Split(r.Stdout, "\n")); !slices.Contains(got, "keyctl") && !slices.Contains(got, "socket alg") {
			t.Errorf("only %q works", got)
		}
	})
	t.Run("R15 the side door without a token", func(t *testing.T) {
		profile, _ := w.profile(t, binding("api.test"))
		r := w.Ctl(t, harness.Caller{}, shell(profile, sideDoor, "--no-workspace")...).Want(t, 0)
		if got := strings.Fields(r.Stdout); len(got) != 6 || got[0] != "200" || got[1] != "200" {
			t.Errorf("statuses %q\n%s", got, r.Stderr)
		}
	})
}
