package sandboxinit

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
)

// lateLimit bounds a drain that has to run out.
const lateLimit = 300 * time.Millisecond

// A scene is what a child reports that was process 1 of an agent.
type scene struct {
	Status         int
	Reason         string // of attend
	Stdout, Stderr string
	Drain          string // error of drain
	Drained        time.Duration
	Leaked         bool // the sink got something after drain
	Alive          bool // a process of the agent is left at the end
}

// A sink is where the host would be.
type sink struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await returns when the sink holds text.
func (s *sink) await(text string) {
	for range 1000 {
		if strings.Contains(s.String(), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	fail("no %q in %q", text, s.String())
}

// A stage is one agent under a runner, in a pid namespace of its own.
type stage struct {
	*runner
	out, err sink
	stdin    *os.File // of init
}

// play starts a command as init does, after Harden.
func play(boot sealed.Boot, swap func(path string)) *stage { return playTo(boot, swap, false) }

// playTo is play with one sink for output and error, or two.
func playTo(boot sealed.Boot, swap func(path string), one bool) *stage {
	if os.Getpid() != 1 {
		fail("not process 1")
	}
	if err := Harden(nil); err != nil {
		fail("%v", err)
	}
	exe, err := openExecutable(boot.Argv[0], agentPath)
	if err != nil {
		fail("%v", err)
	}
	if swap != nil {
		swap(boot.Argv[0])
	}
	r, w, err := os.Pipe()
	if err != nil {
		fail("%v", err)
	}
	os.Stdin = r
	set := redact.NewSet()
	if err := set.Add("API_KEY", []byte(valueCanary), redact.Options{}); err != nil {
		fail("%v", err)
	}
	s := &stage{stdin: w}
	errTo := &s.err
	if one {
		errTo = &s.out
	}
	s.runner = &runner{
		set: set, stdout: newStream("stdout", &s.out, set), stderr: newStream("stderr", errTo, set), stopped: make(chan string, 1),
		wall: 20 * time.Second,
	}
	s.agent, err = start(exe, boot, []string{"PATH=/usr/bin:/bin", "CANARY=" + valueCanary}, s.stdout, s.stderr)
	if err != nil {
		fail("%v", err)
	}
	return s
}

// end waits for the agent, ends everything and drains, as finish does.
func (s *stage) end(t *scene, kill bool, limit time.Duration) {
	s.agent.reap()
	t.Status, t.Reason = s.attend(ctxForever{})
	if kill {
		killAll()
	}
	begin := time.Now()
	if err := s.agent.drain(limit); err != nil {
		t.Drain = err.Error()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			fail("%v", err)
		}
	}
	t.Drained = time.Since(begin)
	t.Stdout, t.Stderr = s.out.String(), s.err.String()
}

// ctxForever is a context that does not end.
type ctxForever struct{}

func (ctxForever) Deadline() (time.Time, bool) { return time.Time{}, false }
func (ctxForever) Done() <-chan struct{}       { return nil }
func (ctxForever) Err() error                  { return nil }
func (ctxForever) Value(any) any               { return nil }

// halves writes half of a value to output and half to error, which are shown in
// one place.
func halves(one bool) (t scene) {
	b := shell(`printf %s "$CANARY" | cut -c1-20 | tr -d '\n'; sleep 0.1; printf '%sx.' "$(printf %s "$CANARY" | cut -c21-)" >&2; sleep 0.1; echo done`)
	b.OneOutput = one
	playTo(b, nil, true).end(&t, true, drainLimit)
	return t
}

func shell(script string) sealed.Boot {
	return sealed.Boot{Argv: []string{"/bin/sh", "-c", script}, Dir: "/"}
}

// scenes are played one by one, each in a child of its own.
var scenes = map[string]func(dir string) scene{
	"exit":     func(string) scene { return plain1(shell("exit 7")) },
	"killed":   func(string) scene { return plain1(shell("kill -KILL $$")) },
	"segfault": func(string) scene { return plain1(shell("kill -SEGV $$")) },
	"pipe":     func(string) scene { return plain1(shell("kill -PIPE $$")) }, // an ignored signal would not end it
	"input": func(string) scene {
		b := shell("cat; echo end >&2")
		b.Input = []byte(strings.Repeat("0123456789abcdef", 64<<10))
		return plain1(b)
	},
	"input not read": func(string) scene {
		b := shell("exit 0")
		b.Input = make([]byte, 1<<20)
		return plain1(b)
	},
	"redacted": func(string) scene {
		return plain1(shell(`echo "v=$CANARY"; printf %s "$CANARY" | od -An -tx1 | tr -d ' \n' >&2; printf %s "$CANARY" | cut -c1-20 | tr -d '\n'; printf %s "$CANARY" | cut -c21-`))
	},
	"halves":              func(string) scene { return halves(true) },
	"halves, control off": func(string) scene { return halves(false) },
	"swapped binary":      func(dir string) scene { return swapped(filepath.Join(dir, "tool")) },
	"swapped script":      func(dir string) scene { return swapped(filepath.Join(dir, "script")) },
	"swapped, control off": func(dir string) scene { // executed by path
		path := filepath.Join(dir, "tool")
		swap(path)
		out, err := exec.Command(path, "measured").Output()
		if err != nil {
			fail("%v", err)
		}
		return scene{Reason: "exited", Stdout: string(out)}
	},
	"terminal":    terminal,
	"interrupted": interrupted,
	"operator": func(string) scene {
		s := play(shell("exec 2>/dev/null; trap 'echo bye; exit 3' TERM; echo ==; while :; do sleep 0.05; done"), nil)
		return s.after("==", func() { s.agent.signal(int(unix.SIGKILL)); s.agent.signal(int(unix.SIGTERM)) })
	},
	"wall time": func(string) scene {
		s := play(shell("sleep 60"), nil)
		s.wall = 200 * time.Millisecond
		return s.after("", nil)
	},
	"aborted": func(string) scene {
		s := play(shell("echo ==; exec sleep 60"), nil)
		return s.after("==", func() { s.abort("revoked"); s.abort("second") })
	},
	"held open":       func(string) scene { return daemon(false) },
	"held and killed": func(string) scene { return daemon(true) },
}

func plain1(b sealed.Boot) (t scene) {
	play(b, nil).end(&t, true, drainLimit)
	return t
}

// after ends the scene once the output holds text and f was called.
func (s *stage) after(text string, f func()) (t scene) {
	if f != nil {
		go func() {
			s.out.await(text)
			f()
		}()
	}
	s.end(&t, true, drainLimit)
	return t
}

// swapped puts another file in the place of the one that was measured.
func swapped(path string) (t scene) {
	play(sealed.Boot{Argv: []string{path, "measured"}, Dir: "/"}, swap).end(&t, true, drainLimit)
	return t
}

func swap(path string) {
	if err := os.WriteFile(path+".new", []byte("#!/bin/sh\necho swapped\n"), 0o755); err != nil {
		fail("%v", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		fail("%v", err)
	}
}

func terminal(string) (t scene) {
	b := shell("stty size; read a; stty size; echo \"got $a $CANARY\"; test -t 2 && tty >/dev/null && exit 5")
	b.Interactive, b.Rows, b.Cols = true, 24, 80
	s := play(b, nil)
	go func() {
		s.out.await("24 80")
		s.agent.resize(50, 132)
		s.agent.resize(0, -1) // ignored
		_, _ = io.WriteString(s.stdin, "hello\n")
	}()
	s.end(&t, true, drainLimit)
	return t
}

// interrupted types Ctrl-C into the agent's terminal.
func interrupted(string) scene {
	b := shell("echo ==; exec sleep 15")
	b.Interactive = true
	s := play(b, nil)
	return s.after("==", func() { _, _ = s.stdin.Write([]byte{3}) })
}

// daemon leaves a process in a session of its own that holds the pipes and
// goes on writing.
func daemon(kill bool) (t scene) {
	s := play(shell(`setsid sh -c 'trap "" HUP TERM; echo $$; while :; do echo x; sleep 0.02; done' & sleep 0.3; exit 0`), nil)
	s.end(&t, kill, map[bool]time.Duration{true: drainLimit, false: lateLimit}[kill])
	digest, passed := s.stdout.digest(), s.out.String()
	time.Sleep(100 * time.Millisecond) // the daemon writes on
	t.Leaked = s.stdout.digest() != digest || s.out.String() != passed
	first, _, _ := strings.Cut(t.Stdout, "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		fail("no pid in %q", t.Stdout)
	}
	t.Alive = unix.Kill(pid, 0) == nil
	return t
}

func childAgent(args []string) any { return scenes[args[0]](args[1]) }

func TestAgent(t *testing.T) {
	needNamespaces(t)
	const mask = "[sealed:API_KEY]"
	exited := func(status int, stdout, stderr string) scene {
		return scene{Status: status, Reason: "exited", Stdout: stdout, Stderr: stderr}
	}
	for name, want := range map[string]scene{
		"exit":                 exited(7, "", ""),
		"killed":               exited(128+9, "", ""),
		"segfault":             exited(128+11, "", ""),
		"pipe":                 exited(128+13, "", ""),
		"input":                exited(0, strings.Repeat("0123456789abcdef", 64<<10), "end\n"),
		"input not read":       exited(0, "", ""),
		"redacted":             exited(0, "v="+mask+"\n"+mask+"\n", mask),
		"halves":               exited(0, mask+"x.done\n", ""),
		"halves, control off":  exited(0, valueCanary[20:]+"x."+valueCanary[:20]+"done\n", ""),
		"swapped binary":       exited(0, "measured\n", ""),
		"swapped script":       exited(0, "script measured\n", ""),
		"swapped, control off": exited(0, "swapped\n", ""),
		"terminal":             exited(5, "24 80\r\nhello\r\n50 132\r\ngot hello "+mask+"\r\n", ""),
		"interrupted":          exited(128+2, "==\r\n^C", ""),
		"operator":             exited(3, "==\nbye\n", ""), // SIGKILL is not the operator's to send
		"wall time":            {Status: sealed.ExitSealed, Reason: "aborted: wall time is over"},
		"aborted":              {Status: sealed.ExitSealed, Reason: "aborted: revoked", Stdout: "==\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got := playChild(t, name)
			if got.Drained > drainLimit/2 {
				t.Errorf("draining took %v", got.Drained)
			}
			got.Drained = 0
			if len(got.Stdout) > 200 && got.Stdout == want.Stdout {
				got.Stdout, want.Stdout = "", ""
			}
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func playChild(t *testing.T, name string) (got scene) {
	t.Helper()
	dir := t.TempDir()
	echo, err := os.ReadFile("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "tool"), string(echo), 0o755)
	writeFile(t, filepath.Join(dir, "script"), "#!/bin/sh\necho script \"$1\"\n", 0o755)
	runChild(t, &got, processOne, "agent", name, dir)
	return got
}

// A daemon that outlives the agent and holds its pipes: killing it ends the
// drain at once. Where the kill is switched off, drain still comes to its end,
// and nothing passes afterwards.
func TestDrainWithDaemon(t *testing.T) {
	needNamespaces(t)
	if got := playChild(t, "held and killed"); got.Drain != "" || got.Drained > drainLimit/2 || got.Leaked || got.Alive {
		t.Errorf("killed: %+v", got)
	}
	t.Run("control off", func(t *testing.T) {
		got := playChild(t, "held open")
		if got.Drain == "" || got.Drained < lateLimit || got.Drained > lateLimit+2*time.Second || got.Leaked || !got.Alive {
			t.Errorf("not killed: %+v", got)
		}
	})
}

// childKillAll plays both sides: process 1 of a namespace, and a child in it
// that is not, and must not end the others.
func childKillAll(args []string) any {
	if len(args) > 0 {
		killAll()
		return "survived"
	}
	sleeper := exec.Command("/bin/sleep", "60")
	if err := sleeper.Start(); err != nil {
		fail("%v", err)
	}
	self, err := os.Executable()
	if err != nil {
		fail("%v", err)
	}
	if err := exec.Command(self, "child", "killall", "inner").Run(); err != nil {
		fail("%v", err)
	}
	first := unix.Kill(sleeper.Process.Pid, 0) == nil && !zombie(sleeper.Process.Pid)
	killAll()
	err = sleeper.Wait()
	var ended *exec.ExitError
	killed := errors.As(err, &ended) && ended.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL
	return []bool{first, killed}
}

// zombie reports whether a child has ended, without reaping it.
func zombie(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}

func TestKillAllIsForProcessOne(t *testing.T) {
	needNamespaces(t)
	var got []bool
	runChild(t, &got, processOne, "killall")
	if len(got) != 2 || !got[0] || !got[1] {
		t.Errorf("survived another's killAll, ended by process 1: %v", got)
	}
}
