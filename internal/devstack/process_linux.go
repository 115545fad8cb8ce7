package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process is one that a stack started. A number alone does not name a
// process: it is ours only with the same start time, in the same boot.
type process struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"` // also the id of its session
	Start uint64 `json:"start_time"`
}

const (
	pollEvery = 10 * time.Millisecond
	termWait  = 5 * time.Second
	killWait  = 5 * time.Second
)

// command is what to start.
type command struct {
	name string
	argv []string
	log  string // file that takes stdout and stderr
	tmp  string // TMPDIR, where plug-ins make their sockets; "": the system's
	// dieWithParent makes the kernel send SIGTERM when this process ends.
	dieWithParent bool
}

// started is a child of this process.
type started struct {
	process
	done chan struct{} // closed when it has ended
}

// start starts a child in a session of its own, with an environment from
// scratch: nothing that the user's shell holds reaches a server.
//
// The child is forked from a thread that lives as long as it does, because
// the parent-death signal is sent when the forking thread ends.
func start(c command) (*started, error) {
	out, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.name, err)
	}
	defer out.Close()
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "GOTRACEBACK=none"}
	if c.tmp != "" {
		cmd.Env = append(cmd.Env, "TMPDIR="+c.tmp)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if c.dieWithParent {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	}
	p := &started{process: process{Name: c.name}, done: make(chan struct{})}
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer close(p.done)
		if err := cmd.Start(); err != nil {
			result <- err
			return
		}
		// The number is ours until Wait, so its start time is the child's.
		p.PID = cmd.Process.Pid
		var err error
		p.Start, err = startTime(p.PID)
		result <- err
		_ = cmd.Wait()
	}()
	if err := <-result; err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.name, err)
	}
	return p, nil
}

// procStat returns the fields of /proc/<pid>/stat after the command name,
// which may itself hold spaces and parentheses: fields[0] is the state.
func procStat(pid int) ([]string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, err
	}
	i := strings.LastIndexByte(string(b), ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 20 {
		return nil, errors.New("malformed stat")
	}
	return fields, nil
}

// startTime is field 22 of proc(5), in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	fields, err := procStat(pid)
	if err != nil {
		return 0, fmt.Errorf("reading start time: %w", err)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// alive reports whether the process is there, is the same, and has not ended.
func (p process) alive() bool {
	fields, err := procStat(p.PID)
	return err == nil && fields[19] == strconv.FormatUint(p.Start, 10) && fields[0] != "Z" && fields[0] != "X"
}

// stop ends the process and everything in its session: first the leader by
// SIGTERM, then what is left by SIGKILL. Each is pinned by a pidfd before
// anything is signaled, so no stranger that took a number over is ever hit. A
// process that is not ours any more is left alone. hard skips the SIGTERM.
func (p process) stop(ctx context.Context, hard bool) error {
	if fields, err := procStat(p.PID); err == nil && fields[19] != strconv.FormatUint(p.Start, 10) {
		return nil // the number is another process's: our session is long gone
	}
	members, err := p.session()
	if err != nil {
		return fmt.Errorf("stopping %s: %w", p.Name, err)
	}
	defer closeAll(members)
	if !hard {
		for _, m := range members {
			if m.pid == p.PID {
				_ = unix.PidfdSendSignal(m.fd, unix.SIGTERM, nil, 0)
				m.wait(ctx, termWait)
			}
		}
	}
	for _, m := range members {
		_ = unix.PidfdSendSignal(m.fd, unix.SIGKILL, nil, 0)
	}
	for _, m := range members {
		if !m.wait(context.WithoutCancel(ctx), killWait) {
			return fmt.Errorf("stopping %s: process %d does not end", p.Name, m.pid)
		}
	}
	return nil
}

type pinned struct{ pid, fd int }

func closeAll(ps []pinned) {
	for _, p := range ps {
		_ = unix.Close(p.fd)
	}
}

// session pins the members of the session that p leads or led: plug-ins of
// Vault and SPIRE among them, which outlive a killed server. While a member
// lives, the kernel gives the session's number to nobody else.
func (p process) session() ([]pinned, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	sid := strconv.Itoa(p.PID)
	var out []pinned
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fields, err := procStat(pid)
		if err != nil || fields[3] != sid || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has just ended
		}
		if again, err := procStat(pid); err != nil || !slices.Equal(again[19:20], fields[19:20]) {
			_ = unix.Close(fd)
			continue
		}
		out = append(out, pinned{pid: pid, fd: fd})
	}
	return out, nil
}

// wait reports whether the process ended in time. A pidfd is readable then.
func (p pinned) wait(ctx context.Context, d time.Duration) bool {
	deadline := time.Now().Add(d)
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(pollEvery.Milliseconds()))
		if n > 0 {
			return true
		}
		if err != nil && err != unix.EINTR || ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
	}
}

// await calls ready until it gives no error. It ends early when the child does,
// and then tells the last lines of its log.
func (p *started) await(ctx context.Context, log string, limit time.Duration, ready func(context.Context) error) error {
	ended := errors.New("it ended")
	err := poll(ctx, limit, func(ctx context.Context) error {
		select {
		case <-p.done:
			return &finalError{ended}
		default:
			return ready(ctx)
		}
	})
	if err != nil {
		return fmt.Errorf("starting %s: %w; %s", p.Name, err, tail(log))
	}
	return nil
}

// A finalError ends a poll at once.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// poll calls ready until it gives no error, every pollEvery.
func poll(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := ready(ctx)
		var final *finalError
		if err == nil || errors.As(err, &final) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %v: %w", limit, err)
		case <-tick.C:
		}
	}
}

// tail returns the end of a server's log, for an error message.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "no log"
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) > 3 {
		lines = lines[len(lines)-3:]
	}
	return "last lines of " + path + ": " + strings.Join(lines, " | ")
}
