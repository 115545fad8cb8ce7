package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"sealed.dev/sealed/test/bench"
)

const (
	startGoal = 400 // milliseconds more than bubblewrap
	claimGoal = 120 // milliseconds of it for attestation, login and claim

	baselineUID = 799999 // the last of the runs' range
)

// startRows compares `sealedctl run -- /bin/true` with bubblewrap around it.
func startRows(ctx context.Context, st *stack, percent int) ([]bench.Row, error) {
	a := newAuditFile(st.status.AuditFile)
	var bare, plain, keyed, more, bareCPU, plainCPU bench.Sample
	parts := newPhases()
	for i := range times(40, percent) + 1 {
		b, cpu, err := st.bwrap(ctx, "", "/bin/true")
		if err != nil {
			return nil, err
		}
		p, err := st.timed(ctx, a, nil, "/bin/true")
		if err != nil {
			return nil, err
		}
		k, err := st.timed(ctx, a, withKey(), "/bin/true")
		if err != nil {
			return nil, err
		}
		if i == 0 {
			continue // files are read for the first time
		}
		bare.Add(b)
		plain.Add(p.total)
		bareCPU.Add(cpu)
		plainCPU.Add(p.cpu)
		keyed.Add(k.total)
		more.Add(p.total - b)
		parts.add(p, b)
	}
	rows := []bench.Row{
		bench.Compare("sealedctl run -- true", "ms", &plain, "bubblewrap around it", &bare),
		bench.Alone("  more than bubblewrap", "ms", &more).Want("p50 ≤ 400 ms", more.Median() <= startGoal),
	}
	rows = append(rows, parts.rows()...)
	return append(rows, bench.Compare("  processor time of its processes", "ms", &plainCPU, "bubblewrap around it", &bareCPU),
		bench.Compare("sealedctl run with one key", "ms", &keyed, "without a key", &plain)), nil
}

// phases are where the time of a run goes.
type phases struct{ enqueue, sandbox, login, digest, claim, own, rest bench.Sample }

func newPhases() *phases { return &phases{} }

// add adds one run and what bubblewrap alone took in the same round.
func (p *phases) add(t timing, bwrap float64) {
	p.enqueue.Add(t.between(t.begun, t.enqueued))
	p.sandbox.Add(t.between(t.enqueued, t.loginSent))
	p.login.Add(t.between(t.loginSent, t.loggedIn))
	p.digest.Add(t.between(t.loggedIn, t.claimSent))
	p.claim.Add(t.between(t.claimSent, t.claimed))
	p.own.Add(t.between(t.started, t.claimed) - bwrap)
	p.rest.Add(t.between(t.claimed, t.ended))
}

func (p *phases) rows() []bench.Row {
	return []bench.Row{
		bench.Alone("  supervisor's start → claimed, less bubblewrap", "ms", &p.own).Want("p50 ≤ 120 ms", p.own.Median() <= claimGoal),
		bench.Alone("    sealedctl's start, enqueue", "ms", &p.enqueue),
		bench.Alone("    supervisor, sandbox, SVIDs", "ms", &p.sandbox),
		bench.Alone("    login", "ms", &p.login),
		bench.Alone("    waiting for the agent's digest", "ms", &p.digest),
		bench.Alone("    claim", "ms", &p.claim),
		bench.Alone("    agent, record, end", "ms", &p.rest),
	}
}

// bwrap runs argv in a sandbox of the same walls, without Sealed, and returns
// the milliseconds and those of the processor. readOnly is shown in it unless it is empty.
func (s *stack) bwrap(ctx context.Context, readOnly string, argv ...string) (took, cpu float64, err error) {
	args := []string{
		"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
		"--disable-userns", "--as-pid-1", "--cap-drop", "ALL", "--new-session", "--clearenv", "--die-with-parent",
		"--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
		"--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--tmpfs", "/dev/shm", "--tmpfs", "/tmp", "--tmpfs", "/home/agent", "--setenv", "HOME", "/home/agent",
	}
	if readOnly != "" {
		args = append(args, "--ro-bind", readOnly, readOnly)
	}
	args = append(append(args, "--remount-ro", "/", "--chdir", "/tmp", "--"), argv...)
	cmd := exec.CommandContext(ctx, "/usr/bin/bwrap", args...)
	cmd.Env, cmd.Dir = []string{}, "/"
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: baselineUID, Gid: baselineUID, Groups: []uint32{}}}
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, 0, fmt.Errorf("running bubblewrap: %w: %s", err, said.Bytes())
	}
	return bench.Milliseconds(time.Since(start)), processorTime(cmd), nil
}

// processorTime is what an ended process and all that it waited for have used,
// in milliseconds. Other work on the machine hardly changes it.
func processorTime(cmd *exec.Cmd) float64 {
	return bench.Milliseconds(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime())
}

// timed runs argv under Sealed.
func (s *stack) timed(ctx context.Context, a *auditFile, options []string, argv ...string) (timing, error) {
	t := timing{begun: time.Now()}
	cmd := s.command(ctx, options, argv...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return t, fmt.Errorf("running sealedctl: %w: %s", err, said.Bytes())
	}
	t.ended = time.Now()
	t.total = bench.Milliseconds(t.ended.Sub(t.begun))
	t.cpu = processorTime(cmd)
	id, err := runID(said.Bytes())
	if err != nil {
		return t, err
	}
	return t, s.place(&t, a, id)
}

// claudeRows starts the real Claude Code, whose executable is large.
func claudeRows(ctx context.Context, st *stack, percent int) ([]bench.Row, error) {
	exe, size, err := st.claude()
	if errors.Is(err, os.ErrNotExist) {
		return []bench.Row{{What: "claude --version: not measured, no Claude Code (set SEALED_CLAUDE)"}}, nil
	}
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(exe)
	a := newAuditFile(st.status.AuditFile)
	var bare, run, more, digest, wait bench.Sample
	for i := range times(15, percent) + 1 {
		b, _, err := st.bwrap(ctx, dir, exe, "--version")
		if err != nil {
			return nil, err
		}
		t, err := st.timed(ctx, a, []string{"--read-only", dir}, exe, "--version")
		if err != nil {
			return nil, err
		}
		d, err := hashing(exe)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			continue
		}
		bare.Add(b)
		run.Add(t.total)
		more.Add(t.total - b)
		digest.Add(d)
		wait.Add(t.between(t.loggedIn, t.claimSent))
	}
	return []bench.Row{
		bench.Compare("sealedctl run -- claude --version", "ms", &run, "bubblewrap around it", &bare),
		bench.Alone("  more than bubblewrap", "ms", &more).Want("p50 ≤ 400 ms", more.Median() <= startGoal),
		bench.Compare(fmt.Sprintf("  digest of the executable (%d MB), alone", size/1e6), "ms", &digest, "more than bubblewrap", &more),
		bench.Compare("  digest not hidden behind SVIDs and login", "ms", &wait, "more than bubblewrap", &more),
	}, nil
}

// claude returns a copy of Claude Code's executable that a run's uid can read.
func (s *stack) claude() (exe string, size int64, err error) {
	path := os.Getenv("SEALED_CLAUDE")
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", 0, err
		}
		found, err := filepath.Glob(filepath.Join(home, ".cache/sealed/npm/claude-code-*/node_modules/.bin/claude"))
		if err != nil || len(found) == 0 {
			return "", 0, os.ErrNotExist
		}
		path = found[len(found)-1]
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", 0, err
	}
	in, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = in.Close() }()
	exe = filepath.Join(s.dir, "claude", "claude")
	if err := os.Mkdir(filepath.Dir(exe), 0o755); err != nil {
		return "", 0, err
	}
	out, err := os.OpenFile(exe, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return "", 0, err
	}
	size, err = io.Copy(out, in)
	return exe, size, errors.Join(err, out.Close())
}

// hashing returns the milliseconds of a SHA-256 over a file.
func hashing(path string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	start := time.Now()
	_, err = io.CopyBuffer(sha256.New(), f, make([]byte, 1<<20))
	return bench.Milliseconds(time.Since(start)), err
}
