package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
)

// TestEveryCommandIsDocumented: a sentence, and a longer text with an example.
func TestEveryCommandIsDocumented(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short is %q", c.CommandPath(), c.Short)
		}
		if !strings.Contains(c.Long, "\n  ") || !strings.Contains(c.Long, "sealedctl") {
			t.Errorf("%s: Long has no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCmd(newApp(nil, nil, nil)))
}

// TestStatuses is the whole mapping from errors to exit statuses.
func TestStatuses(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("doing: %w", err) }
	for _, tc := range []struct {
		err  error
		want int
	}{
		{wrap(sealed.ErrInvalid), 1}, {wrap(sealed.ErrUnavailable), 1}, {wrap(sealed.ErrConflict), 1}, {wrap(sealed.ErrNotFound), 1},
		{errors.New("other"), 1}, {usagef("wrong"), 2}, {errors.New("unknown flag: --x"), 2},
		{wrap(sealed.ErrDenied), 3}, {wrap(sealed.ErrRevoked), 3}, {wrap(sealed.ErrApprovalRequired), 4},
		{&statusError{status: 42}, 42}, {&hintError{err: wrap(sealed.ErrDenied), hint: "x"}, 3},
	} {
		var out bytes.Buffer
		a := newApp(nil, nil, &out)
		if got := a.fail(tc.err); got != tc.want {
			t.Errorf("%v: status %d, want %d", tc.err, got, tc.want)
		}
		if n := strings.Count(out.String(), "\n"); n > 3 {
			t.Errorf("%v: %d lines", tc.err, n)
		}
	}
}

func TestToJSON(t *testing.T) {
	for _, tc := range []struct{ name, in, want, err string }{
		{"nested", "a: {b: [1, x, true]}\nc: null\n", `{"a":{"b":[1,"x",true]},"c":null}`, ""},
		{"a duration stays text", "ttl: 15m\nday: 2026-01-02\n", `{"day":"2026-01-02","ttl":"15m"}`, ""},
		{"JSON passes", ` {"a":1}`, ` {"a":1}`, ""},
		{"a key twice", "a:\n  b: 1\n  b: 2\n", "", "field a.b: line 3: it is there twice"},
		{"an alias", "a: &x [1]\nb: *x\n", "", "field b: line 2: aliases are not accepted"},
		{"a merge key", "a: &x {b: 1}\nc:\n  <<: *x\n", "", "field c: line 3: a name must be text; quote it"},
		{"a tag", "a: !!binary aGk=\n", "", "field a: line 1: wants plain text, a number, true, false or null"},
		{"a number as name", "1: x\n", "", "a name must be text"},
		{"two documents", "a: 1\n---\nb: 2\n", "", "more than one document"},
		{"nothing", "", "", "it is empty"},
		{"malformed", "a: [", "", "reading YAML: line"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := toJSON([]byte(tc.in))
			if tc.err == "" {
				if diff := cmp.Diff(tc.want, string(got)); err != nil || diff != "" {
					t.Errorf("%v\n%s", err, diff)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.err) || !errors.Is(err, sealed.ErrInvalid) {
				t.Errorf("error %v, want one about %q", err, tc.err)
			}
		})
	}
}

// FuzzToJSON: what comes out is JSON that decodes again, whatever goes in.
func FuzzToJSON(f *testing.F) {
	for _, s := range []string{"a: 1", "a: &x [1]\nb: *x", "- a\n- b", "{}", "a:\n  b: |\n    c\n", "? [a]\n: b", "!!float .nan", "a: .inf"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := toJSON(in)
		if err != nil || bytes.HasPrefix(bytes.TrimSpace(in), []byte("{")) {
			return
		}
		var v any
		if err := sealed.Decode(out, 1<<30, &v); err != nil {
			t.Errorf("%q → %q: %v", in, out, err)
		}
	})
}

// TestEscaped, E24 and E26: nothing that hides or moves text gets to a person's screen, and
// what is visible stays as it is.
func TestEscaped(t *testing.T) {
	for in, want := range map[string]string{
		"plain text, ümlaut, 漢字": "plain text, ümlaut, 漢字",
		"a\x1b[2Jb":              `a\u001b[2Jb`,
		"a\nb\tc\rd":             `a\u000ab\u0009c\u000dd`,
		"evil\u202etxt":          `evil\u202etxt`,
		"zero\u200bwidth\ufeff":  `zero\u200bwidth\ufeff`,
		"tag\U000e0041":          `tag\udb40\udc41`,
		"no\u00a0break":          `no\u00a0break`,
		"\u009b31m":              `\u009b31m`,
	} {
		if got := escaped(in); got != want {
			t.Errorf("escaped(%q) = %q, want %q", in, got, want)
		}
	}
}

// E26: what a person is shown is every field of the very bytes that are approved.
func TestObjectFields(t *testing.T) {
	in := `{"z":1,"reason":"please\u202e","bindings":[{"host":"a"},{"host":"b"}],"groups":["x"],"a":{"b":null}}`
	want := []shownField{
		{"z", "1"}, {"reason", `"please\u202e"`}, {"bindings[0]", `{"host":"a"}`}, {"bindings[1]", `{"host":"b"}`}, {"groups", `["x"]`}, {"a", `{"b":null}`},
	}
	got, err := objectFields([]byte(in))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(shownField{})); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, in := range []string{"", "[]", `{"a":`, `{"a":1`, "x"} {
		if _, err := objectFields([]byte(in)); err == nil && in != `{"a":1` {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"token\n": "token", "token\r\n": "token", "token": "token", "token\n\n": "token\n\n",
		"-----BEGIN\nx\n-----END\n": "-----BEGIN\nx\n-----END\n", "\n": "",
	} {
		if got := string(oneLine([]byte(in))); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestConfirm: only a clear yes is one.
func TestConfirm(t *testing.T) {
	for in, yes := range map[string]bool{"y\n": true, "YES\n": true, "yes": true, "": false, "\n": false, "n\n": false, "yep\n": false, "y n\n": false} {
		a := newApp(strings.NewReader(in), nil, new(bytes.Buffer))
		if err := a.confirm("sure?"); (err == nil) != yes {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestSettlePrecedence: flag, then SEALED_*, then Vault's own, then the file.
func TestSettlePrecedence(t *testing.T) {
	env := map[string]string{"HOME": t.TempDir()}
	a := newApp(nil, nil, nil)
	a.getenv = func(k string) string { return env[k] }
	if err := a.settle(); err != nil || a.addr != "" || a.mount != "sealed" || a.output != "table" {
		t.Errorf("defaults: %v %+v", err, a)
	}
	env["VAULT_ADDR"] = "https://vault"
	a.addr = ""
	if err := a.settle(); err != nil || a.addr != "https://vault" {
		t.Errorf("VAULT_ADDR: %v %s", err, a.addr)
	}
	env["SEALED_VAULT_ADDR"] = "https://sealed"
	a.addr = ""
	if err := a.settle(); err != nil || a.addr != "https://sealed" {
		t.Errorf("SEALED_VAULT_ADDR: %v %s", err, a.addr)
	}
	a.addr = "https://flag"
	if err := a.settle(); err != nil || a.addr != "https://flag" {
		t.Errorf("flag: %v %s", err, a.addr)
	}
}

// TestTooMuch: roles that one person should not hold together are named, and a
// plain operator is left alone.
func TestTooMuch(t *testing.T) {
	for _, tc := range []struct {
		held []string
		want int
	}{
		{[]string{"sealed-operator"}, 0}, {[]string{"sealed-auditor", "sealed-approver"}, 0}, {[]string{"sealed-secrets"}, 0},
		{[]string{"sealed-secrets", "sealed-profiles"}, 1}, {[]string{"sealed-profiles", "sealed-operator"}, 1},
		{[]string{vaultAbove}, 1}, {[]string{"sealed-agent"}, 0}, {[]string{"sealed-agent", "sealed-operator"}, 1}, {nil, 0},
	} {
		if got := tooMuch(tc.held); len(got) != tc.want {
			t.Errorf("%v: %v", tc.held, got)
		}
	}
}

// TestRunWithoutAnything: the whole program in this process.
func TestRunWithoutAnything(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	var out, errOut bytes.Buffer
	if status := run(context.Background(), []string{"secret", "show"}, strings.NewReader(""), &out, &errOut); status != exitUsage || out.Len() != 0 {
		t.Errorf("status %d, stdout %q", status, out.String())
	}
	if !strings.Contains(errOut.String(), "try: sealedctl secret show --help") {
		t.Errorf("stderr %q", errOut.String())
	}
}
