package attack

import (
	"os/exec"
	"testing"

	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// transforms print a value that the agent holds, KEY, in a way that a person
// would still call printing.
var transforms = []struct{ name, script string }{
	{"A01 echo", `echo $KEY`},
	{"A01 to stderr", `echo $KEY >&2`},
	{"A02 env", `env`},
	{"A02 printenv", `printenv KEY`},
	{"A02 export", `export -p`},
	{"A02 set", `set`},
	{"A02 own environ", `cat /proc/self/environ`},
	{"A03 offset 0", `printf %s "$KEY" | base64 -w0`},
	{"A03 offset 1", `printf %s "x$KEY" | base64 -w0`},
	{"A03 offset 2", `printf %s "xy$KEY" | base64 -w0`},
	{"A03 with newline", `echo "$KEY" | base64`},
	{"A03 with suffix", `printf %s "$KEY-suffix" | base64 -w0`},
	{"A04 wrapped", `printf %s "$KEY" | base64 -w 16`},
	{"A05 hex", `printf %s "$KEY" | xxd -p -c 256`},
	{"A05 hex in upper case", `printf %s "$KEY" | xxd -u -p -c 256`},
	{"A08 reversed", `printf %s "$KEY" | rev`},
	{"A22 all but one, then the end", `printf %s "${KEY%?}"`},
	{"A22 all but one, then killed", `printf %s "${KEY%?}"; kill -9 $$`},
	{"A24 across 64 KiB", `head -c 65520 /dev/zero | tr '\0' x; printf %s "$KEY"; head -c 100000 /dev/zero | tr '\0' y`},
	{"A24 across 4 KiB", `head -c 4090 /dev/zero | tr '\0' x; printf %s "$KEY"; echo`},
	{"A24 at the end of a long line", `head -c 8388608 /dev/zero | tr '\0' x; printf %s "$KEY"`},
	{"A26 traced", `set -x; true "$KEY"`},
}

func TestOutput(t *testing.T) {
	w := get(t)
	profile, c := w.profile(t)
	for _, tt := range transforms {
		t.Run(tt.name, func(t *testing.T) {
			r := w.Ctl(t, harness.Caller{}, shell(profile, tt.script, "--no-workspace")...)
			w.clean(t, r, c)
			w.wantEntry(t, r.RunID(t), "redact.hit", `"KEY"`)
			t.Run("control: without Sealed it is found", func(t *testing.T) {
				cmd := exec.Command("/bin/sh", "-c", tt.script)
				cmd.Env = []string{"PATH=/usr/bin:/bin", "KEY=" + c.Value}
				out, _ := cmd.CombinedOutput() // one script kills itself
				if len(canary.Scan("output", out, c)) == 0 {
					t.Error("the oracle does not know this form")
				}
			})
		})
	}
	t.Run("what is no value goes through", func(t *testing.T) {
		const text = "commit 9fceb02d0ae598e95dc970b74767f19372d61af8 id 550e8400-e29b-41d4-a716-446655440000"
		r := w.Ctl(t, harness.Caller{}, shell(profile, "echo "+text, "--no-workspace")...).Want(t, 0)
		if r.Stdout != text+"\n" { // A34
			t.Errorf("got %q", r.Stdout)
		}
	})
}
