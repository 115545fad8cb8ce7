package attack

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/supervise"
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
	{"A05 hex", `printf %s "$KEY" | od -An -v -tx1 | tr -d ' \n'`},
	{"A05 hex in upper case", `printf %s "$KEY" | od -An -v -tx1 | tr -d ' \n' | tr a-f A-F`},
	{"A08 reversed", `printf %s "$KEY" | rev`},
	{"A22 all but one, then the end", `printf %s "${KEY%?}"`},
	{"A22 all but one, then killed", `printf %s "${KEY%?}"; kill -9 $$`},
	{"A24 across 64 KiB", `head -c 65520 /dev/zero | tr '\0' x; printf %s "$KEY"; head -c 100000 /dev/zero | tr '\0' y`},
	{"A24 across 4 KiB", `head -c 4090 /dev/zero | tr '\0' x; printf %s "$KEY"; echo`},
	{"A24 at the end of a long line", `head -c 8388608 /dev/zero | tr '\0' x; printf %s "$KEY"`},
	{"A26 traced", `set -x; true "$KEY"`},
}

func TestOutput(t *testing.T) {
	t.Parallel()
	w := get(t)
	profile, c := w.profile(t)
	for _, tt := range transforms {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
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

// A drain is the far side of a terminal that keeps up: it counts what arrives,
// keeps the end of it, and looks for canaries on the way.
type drain struct {
	mu     sync.Mutex
	n      int64
	tail   []byte
	hits   []canary.Hit
	values []*canary.Canary
}

func (d *drain) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n += int64(len(p))
	d.tail = append(d.tail, p...)
	for _, c := range d.values { // raw is how it was printed; the end is scanned for every form
		if bytes.Contains(d.tail, []byte(c.Value)) {
			d.hits = append(d.hits, canary.Hit{Canary: c.Name, Form: "raw", Sink: "terminal"})
		}
	}
	d.tail = bytes.Clone(d.tail[max(0, len(d.tail)-4096):])
	return len(p), nil
}

func (d *drain) seen() (n int64, tail string, hits []canary.Hit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n, string(d.tail), append(d.hits, canary.Scan("end of the terminal", d.tail, d.values...)...)
}

// A24: one line of 1 GiB with a value at its beginning and at its end. What
// holds it back or stores it on the way stays small, and takes no more of the
// processor than a person would wait for: how long it takes is also up to
// what else the machine does.
func TestA24OneGiBWithoutNewline(t *testing.T) {
	const (
		size           = 1 << 30
		initLimit      = 40 << 10 // KiB of resident memory, at its highest
		superviseLimit = 60 << 10
		timeLimit      = time.Minute // of the processor, for both
	)
	t.Parallel()
	w := get(t)
	profile, c := w.profile(t)
	out := &drain{values: []*canary.Canary{c}}
	script := fmt.Sprintf(`printf %%s "$KEY"; head -c %d /dev/zero | tr '\0' x; printf %%s "$KEY"; echo "it is written, all of it" >&2; `, size) + untilTold
	p := w.Start(t, harness.Caller{Stdout: out, Timeout: 7 * time.Minute}, shell(profile, script)...)
	st := awaitStatus(t, p)
	begun := time.Now()
	harness.Eventually(t, 5*time.Minute, "everything is written", func() bool { return strings.Contains(p.Stderr(), "it is written") })
	took, worked := time.Since(begun), time.Duration(0)
	for _, proc := range []struct {
		name string
		pid  int
		most int
	}{{"sealed-init", st.InitPID, initLimit}, {"the supervisor", st.PID, superviseLimit}} {
		kib, busy := highWater(t, proc.pid), processorTime(t, proc.pid)
		worked += busy
		t.Logf("%s: %d MiB resident at most, %v of the processor", proc.name, kib>>10, busy)
		if kib > proc.most {
			t.Errorf("%s: %d KiB resident, want at most %d", proc.name, kib, proc.most)
		}
	}
	t.Logf("%d MiB in %v, %.0f MiB/s", size>>20, took.Round(time.Second), float64(size>>20)/took.Seconds())
	if worked > timeLimit || worked == 0 {
		t.Errorf("it took %v of the processor", worked)
	}
	w.tell(t, p)
	r := p.Wait(t).Want(t, 0)
	n, tail, hits := out.seen()
	if n < size || !strings.Contains(tail, "x[sealed:KEY]") || len(hits) > 0 {
		t.Errorf("%d bytes arrived; found %v; they end with %.200q", n, hits, tail[max(0, len(tail)-100):])
	}
	log := filepath.Join(r.RunDir(t), "stdout.log")
	if info, err := os.Stat(log); err != nil || info.Size() != n {
		t.Errorf("the stored output is not what was shown: %v, %v", info, err)
	}
	harness.Must(t, os.Remove(log)) // a GiB
	w.wantEntry(t, r.RunID(t), "redact.hit", `"KEY"`)
	t.Run("control: a process that keeps what it reads is seen to grow", func(t *testing.T) {
		const kept = 128 << 20
		cmd := exec.Command("/usr/bin/tail", "-c", itoa(kept))
		in, err := cmd.StdinPipe()
		harness.Must(t, err)
		harness.Must(t, cmd.Start())
		defer func() { _ = in.Close(); _ = cmd.Wait() }()
		_, err = in.Write(bytes.Repeat([]byte("x"), kept))
		harness.Must(t, err)
		if kib := highWater(t, cmd.Process.Pid); kib < superviseLimit {
			t.Errorf("%d KiB", kib)
		}
	})
}

// awaitStatus waits until the supervisor has written who runs.
func awaitStatus(t *testing.T, p *harness.Process) supervise.Status {
	t.Helper()
	p.RunID(t)
	var st supervise.Status
	harness.Eventually(t, 30*time.Second, "the run has a process 1", func() bool {
		var err error
		st, err = supervise.ReadStatus(p.RunDir(t))
		return err == nil && st.InitPID > 0
	})
	return st
}

// highWater is the most memory that a process ever had resident, in KiB
// (VmHWM, proc(5)).
func highWater(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + itoa(pid) + "/status")
	harness.Must(t, err)
	_, rest, ok := strings.Cut(string(b), "VmHWM:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil || !ok {
		t.Fatalf("no VmHWM of process %d: %v", pid, err)
	}
	return kib
}

// processorTime is what a process has used of the processor: utime and stime of
// proc(5), which Linux counts in hundredths of a second there.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile("/proc/" + itoa(pid) + "/stat")
	harness.Must(t, err)
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var user, system time.Duration
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); err != nil {
		t.Fatalf("no times of process %d: %v", pid, err)
	}
	return (user + system) * 10 * time.Millisecond
}
