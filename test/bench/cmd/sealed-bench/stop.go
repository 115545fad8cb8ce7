package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/supervise"
	"sealed.dev/sealed/test/bench"
)

const (
	stopGoal = 400 // milliseconds
	initGoal = 40  // MiB
	ctlGoal  = 60  // MiB

	readyLimit = 30 * time.Second
)

// stopRows starts a run whose agent sleeps and holds a grant, looks at the
// memory of its processes, and revokes it, hard: by its key or by its id, in
// turns. The clock starts before the revocation is sent.
func stopRows(ctx context.Context, st *stack, percent int) ([]bench.Row, error) {
	var agent, process1, answer, floor bench.Sample
	var mem memory
	for i := range times(100, percent) {
		r, err := st.sleeper(ctx)
		if err != nil {
			return nil, err
		}
		err = errors.Join(mem.look(r), floorCall(ctx, st, r.id, &floor))
		if err == nil {
			err = st.revoke(ctx, r, i%2 == 0, &agent, &process1, &answer)
		}
		if err = errors.Join(err, r.end()); err != nil {
			return nil, err
		}
	}
	rows := []bench.Row{
		bench.Compare("hard revoke sent → agent gone", "ms", &agent, "reading the run", &floor).Want("p99 ≤ 400 ms", agent.P99() <= stopGoal),
		bench.Alone("  hard revoke sent → process 1 gone", "ms", &process1),
		bench.Compare("  hard revoke sent → answered", "ms", &answer, "reading the run", &floor),
	}
	return append(rows, mem.rows()...), nil
}

// floorCall measures a round trip over the connection that the revocation
// will take.
func floorCall(ctx context.Context, st *stack, id sealed.RunID, s *bench.Sample) error {
	start := time.Now()
	_, err := st.operator.Run(ctx, id)
	s.Took(start)
	return err
}

// A sleeper is a run whose agent sleeps.
type sleeper struct {
	cmd    *exec.Cmd
	said   *lines
	id     sealed.RunID
	status supervise.Status
	agent  int // host pid
}

// sleeper returns when the agent runs: its key was issued and confirmed.
func (s *stack) sleeper(ctx context.Context) (*sleeper, error) {
	r := &sleeper{said: &lines{}}
	r.cmd = s.command(ctx, withKey(), "/bin/sleep", "600")
	r.cmd.Stderr = r.said
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting sealedctl: %w", err)
	}
	for deadline := time.Now().Add(readyLimit); ; {
		if r.ready(s) {
			return r, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("starting a run: the agent does not appear: %s", r.said.bytes()), ctx.Err(), r.end())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (r *sleeper) ready(s *stack) bool {
	var err error
	if r.id == "" {
		if r.id, err = runID(r.said.bytes()); err != nil {
			return false
		}
	}
	if r.status, err = supervise.ReadStatus(s.runDir(r.id)); err != nil || r.status.InitPID == 0 {
		return false
	}
	r.agent = child(r.status.InitPID)
	// Between fork and exec it is still init.
	argv, err := os.ReadFile("/proc/" + strconv.Itoa(r.agent) + "/cmdline")
	return err == nil && string(argv) == "/bin/sleep\x00600\x00"
}

// end makes sure that nothing is left of the run.
func (r *sleeper) end() error {
	_ = r.cmd.Process.Kill()
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) { // revoked or killed: no status is wrong here
		return nil
	}
	return err
}

// child returns a child of a process, 0 if there is none. It looks through all
// processes: not every kernel lists the children of one.
func child(pid int) int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// proc(5): pid (name) state ppid …; the name may hold anything.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return n
		}
	}
	return 0
}

// revoke revokes and waits for the ends, each on a pidfd.
func (s *stack) revoke(ctx context.Context, r *sleeper, byKey bool, agent, process1, answer *bench.Sample) error {
	rev := sealed.Revocation{Kind: sealed.RevokeRun, Target: string(r.id), Hard: true, Reason: "measured"}
	if byKey {
		rev.Kind, rev.Target = sealed.RevokeKey, string(profileName)+"#"+string(keyName)
	}
	// Asked before: init may end its run before the engine comes to it.
	hit, err := s.operator.PreviewRevocation(ctx, rev)
	if err != nil {
		return err
	}
	if hit.Grants != 1 || len(hit.Runs) != 1 {
		return fmt.Errorf("revoking: %d grants of %d runs are covered, want one of one", hit.Grants, len(hit.Runs))
	}
	var fds [2]int
	for i, pid := range []int{r.agent, r.status.InitPID} {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return fmt.Errorf("opening pidfd: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		fds[i] = fd
	}
	var gone [2]time.Time
	var errs [2]error
	var wg sync.WaitGroup
	start := time.Now()
	for i, fd := range fds {
		wg.Go(func() { gone[i], errs[i] = ended(fd) })
	}
	out, err := s.operator.Revoke(ctx, rev)
	answered := time.Now()
	wg.Wait()
	if err := errors.Join(err, errs[0], errs[1]); err != nil {
		return fmt.Errorf("revoking: %w", err)
	}
	agent.Add(bench.Milliseconds(gone[0].Sub(start)))
	process1.Add(bench.Milliseconds(gone[1].Sub(start)))
	answer.Add(bench.Milliseconds(answered.Sub(start)))
	return s.operator.LiftRevocation(ctx, out.ID, "measured")
}

// ended returns when the process of a pidfd has ended, or an error after a
// while.
func ended(fd int) (time.Time, error) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(readyLimit/time.Millisecond))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return time.Time{}, fmt.Errorf("waiting for the end: %w", err)
		case n == 0:
			return time.Time{}, fmt.Errorf("waiting for the end: not within %s", readyLimit)
		default:
			return time.Now(), nil
		}
	}
}

// memory is the highest resident set of the processes of runs, in MiB.
type memory struct{ process1, ctl, supervise bench.Sample }

func (m *memory) look(r *sleeper) error {
	for pid, s := range map[int]*bench.Sample{r.status.InitPID: &m.process1, r.cmd.Process.Pid: &m.ctl, r.status.PID: &m.supervise} {
		mib, err := memoryOf(pid, "VmHWM")
		if err != nil {
			return err
		}
		s.Add(mib)
	}
	return nil
}

func (m *memory) rows() []bench.Row {
	row := func(what string, s *bench.Sample, goal float64) bench.Row {
		return bench.Alone(what, "MiB", s).Want(fmt.Sprintf("p99 ≤ %.0f MiB", goal), s.P99() <= goal)
	}
	return []bench.Row{
		row("peak memory of sealed-init", &m.process1, initGoal),
		row("peak memory of sealedctl run", &m.ctl, ctlGoal),
		row("peak memory of its supervisor", &m.supervise, ctlGoal),
	}
}

// memoryOf reads a field of proc_pid_status(5), in MiB.
func memoryOf(pid int, field string) (float64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, fmt.Errorf("reading memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("reading memory of process %d: no %s", pid, field)
}

// lines collects what a process says while it is being read.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buf.Bytes())
}
