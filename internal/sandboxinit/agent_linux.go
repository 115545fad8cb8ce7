package sandboxinit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
)

// An agent is the started command and the pumps of its streams.
type agent struct {
	pid    int
	exit   chan int // receives the exit status once
	pumps  sync.WaitGroup
	input  *os.File // write end of standard input, or the PTY
	tty    *os.File // the PTY's controlling side, when interactive
	stdout *stream
	stderr *stream
}

// A stream is one redacted output: what leaves is counted into a digest, so
// that the record can name exactly the transcript that the host has, and kept
// for the second look.
type stream struct {
	name string
	w    redactor
	sum  hash.Hash
	kept *spool
	out  io.Writer // behind w
}

func newStream(name string, dst io.Writer, set *redact.Set) *stream {
	s := &stream{name: name, sum: sha256.New(), kept: newSpool()}
	s.out = io.MultiWriter(dst, s.sum, s.kept)
	s.w = redact.NewWriter(s.out, set, name)
	return s
}

// expectEvents makes the stream ready for JSON events. Nothing was written yet.
func (s *stream) expectEvents(set *redact.Set, argv []string) {
	s.w = newEventStream(s.out, set, s.name, saysEvents(argv))
}

func (s *stream) digest() string { return hex.EncodeToString(s.sum.Sum(nil)) }

// aboveForkExec duplicates the measured executable to a number that ForkExec
// leaves alone: between fork and exec it moves its status pipe and low
// descriptors to the numbers right above those that it hands over, and would
// put something else where the path points.
func aboveForkExec(exe uintptr, handed []uintptr) (int, error) {
	return unix.FcntlInt(exe, unix.F_DUPFD_CLOEXEC, int(slices.Max(handed))+16)
}

// start executes the measured descriptor. Redaction is armed by the caller
// before; env is the agent's whole environment.
func start(exe *executable, boot sealed.Boot, env []string, out, errOut *stream) (*agent, error) {
	a := &agent{exit: make(chan int, 1), stdout: out, stderr: errOut}
	files, closeAfter, err := a.openStreams(boot)
	defer func() {
		for _, f := range closeAfter {
			_ = f.Close()
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("opening the agent's streams: %w", err)
	}
	fds := make([]uintptr, 0, 4)
	for _, f := range files {
		fds = append(fds, f.Fd())
	}
	// Both ways execute the measured file and not a path. A script's
	// interpreter opens it again, so there it stays open as descriptor 3.
	var path string
	if exe.script {
		fds = append(fds, exe.file.Fd())
		path = "/proc/self/fd/3"
	} else {
		high, err := aboveForkExec(exe.file.Fd(), fds)
		if err != nil {
			return nil, fmt.Errorf("executing %q: %w", boot.Argv[0], err)
		}
		defer func() { _ = unix.Close(high) }()
		path = "/proc/self/fd/" + strconv.Itoa(high)
	}
	attr := &syscall.ProcAttr{
		Dir: boot.Dir, Env: env, Files: fds,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: boot.Interactive, Ctty: 0},
	}
	pid, err := syscall.ForkExec(path, boot.Argv, attr)
	if err != nil {
		return nil, fmt.Errorf("executing %q: %w: %w", boot.Argv[0], ErrNotRunnable, err)
	}
	a.pid = pid
	a.feed(boot)
	return a, nil
}

// openStreams returns the agent's descriptors 0, 1, 2, and starts the pumps
// that read their other ends. Output and error of a terminal, and of a run whose
// output is shown in one place, are one stream with one redactor: pieces of a
// value that alternate between the two meet there in the order in which they
// are read (A11).
func (a *agent) openStreams(boot sealed.Boot) (files, closeAfter []*os.File, err error) {
	if boot.Interactive {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, nil, err
		}
		if boot.Rows > 0 && boot.Cols > 0 {
			_ = pty.Setsize(master, &pty.Winsize{Rows: uint16(boot.Rows), Cols: uint16(boot.Cols)})
		}
		a.tty, a.input = master, master
		a.pump(master, a.stdout)
		return []*os.File{slave, slave, slave}, []*os.File{slave}, nil
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	a.input = inW
	closeAfter = append(closeAfter, inR)
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, closeAfter, err
	}
	closeAfter = append(closeAfter, outW)
	if boot.OneOutput {
		a.pump(outR, a.stdout)
		return []*os.File{inR, outW, outW}, closeAfter, nil
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, closeAfter, err
	}
	closeAfter = append(closeAfter, errW)
	a.pump(outR, a.stdout)
	a.pump(errR, a.stderr)
	return []*os.File{inR, outW, errW}, closeAfter, nil
}

// pump copies until the last writer has gone. EIO is how a PTY ends.
func (a *agent) pump(src *os.File, dst *stream) {
	a.pumps.Add(1)
	go func() {
		defer a.pumps.Done()
		defer func() { _ = src.Close() }()
		buf := make([]byte, 64<<10)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				// A sink that fails does not stop the draining: the agent must
				// not hang on a full pipe while the run is being ended.
				_, _ = dst.w.Write(buf[:n])
				_ = dst.w.Flush()
			}
			if err != nil {
				return
			}
		}
	}()
}

// feed writes the recorded input, or copies live input to the PTY.
func (a *agent) feed(boot sealed.Boot) {
	go func() {
		if boot.Interactive {
			_, _ = io.Copy(a.input, os.Stdin)
			return
		}
		_, _ = a.input.Write(boot.Input)
		_ = a.input.Close()
	}()
}

// reap waits for children as process 1 must: orphans of the agent become
// init's children. It returns when the agent itself has ended, with its status
// in exit, and goes on reaping in the background.
func (a *agent) reap() {
	go func() {
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, 0, nil)
			switch {
			case errors.Is(err, syscall.EINTR):
				continue
			case err != nil: // ECHILD: nobody left
				select {
				case a.exit <- sealed.ExitSealed:
				default:
				}
				return
			case pid == a.pid:
				a.exit <- shellStatus(ws)
			}
		}
	}()
}

// shellStatus is the status a shell would report: 128+n for a signal.
func shellStatus(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// signal passes a signal to the agent's process group.
func (a *agent) signal(sig int) {
	if sig == int(unix.SIGINT) || sig == int(unix.SIGTERM) || sig == int(unix.SIGHUP) {
		_ = unix.Kill(-a.pid, unix.Signal(sig))
	}
}

func (a *agent) resize(rows, cols int) {
	if a.tty != nil && rows > 0 && cols > 0 {
		_ = pty.Setsize(a.tty, &pty.Winsize{Rows: uint16(rows), Cols: uint16(cols)})
	}
}

// killAll ends every process of the sandbox but init itself: for process 1,
// kill(-1) reaches its whole pid namespace and nothing else. For any other
// process it would reach all that the user runs, so it does nothing there.
func killAll() {
	if os.Getpid() == 1 {
		_ = unix.Kill(-1, unix.SIGKILL)
	}
}

// drain waits for the pumps, but not longer than limit: a killed writer
// closes its pipes at once. After it nothing passes the streams any more, so
// that their digests are final.
func (a *agent) drain(limit time.Duration) error {
	if a.tty == nil {
		_ = a.input.Close()
	}
	done := make(chan struct{})
	go func() { a.pumps.Wait(); close(done) }()
	var late error
	select {
	case <-done:
	case <-time.After(limit):
		late = fmt.Errorf("draining the agent's streams: %w", os.ErrDeadlineExceeded)
	}
	return errors.Join(late, a.stdout.w.Close(), a.stderr.w.Close())
}
