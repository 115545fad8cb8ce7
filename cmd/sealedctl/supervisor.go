package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/term"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// Between `run` and its `supervise` child, JSON documents travel over two
// pipes: descriptor 3 of the child towards it, descriptor 4 back. Nothing of
// it is in arguments or environment: both are readable by others. Descriptor 3
// stays open until `run` ends, which is how the child learns of it.

// A runJob is the enqueued run. Token is the operator's own, so that the
// supervisor can tell the engine when a run ends without a record.
type runJob struct {
	Run       sealed.RunID       `json:"run"`
	Agent     sealed.Name        `json:"agent"`
	Boot      sealed.Boot        `json:"boot"`
	Sandbox   sealed.SandboxSpec `json:"sandbox"`
	Hosts     []string           `json:"hosts"`
	ReadOnly  []string           `json:"read_only"`
	StateDir  string             `json:"state_dir"`
	Workspace string             `json:"workspace"`
	TrustFile string             `json:"trust_file"`
	Libexec   string             `json:"libexec"`
	VaultAddr string             `json:"vault_addr"`
	CAFile    string             `json:"ca_file"`
	Mount     string             `json:"mount"`
	Token     string             `json:"token"`
	Detached  bool               `json:"detached"`
}

// A supervisor is the child, seen from `run`.
type supervisor struct {
	cmd     *exec.Cmd
	out     *json.Encoder
	in      *json.Decoder
	outFile *os.File
	inFile  *os.File
	waited  bool
}

// startSupervisor starts the child. Not detached, it ends the run when this
// process goes: it sees the end of its job pipe.
func startSupervisor(a *app, f runFlags) (*supervisor, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("starting supervisor: %w", err)
	}
	jobR, jobW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting supervisor: %w", err)
	}
	repR, repW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting supervisor: %w", err)
	}
	cmd := exec.Command(self, "supervise")
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + a.getenv("HOME")}
	cmd.ExtraFiles = []*os.File{jobR, repW}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if f.detach {
		cmd.SysProcAttr.Setsid = true
	} else {
		cmd.Stdout, cmd.Stderr = a.stdout, a.stderr
		cmd.SysProcAttr.Setpgid = !f.tty // a background group may not read the terminal
		if f.tty {
			cmd.Stdin, _ = a.stdin.(*os.File)
		}
	}
	err = cmd.Start()
	_, _ = jobR.Close(), repW.Close()
	if err != nil {
		return nil, fmt.Errorf("starting supervisor: %w", err)
	}
	return &supervisor{cmd: cmd, out: json.NewEncoder(jobW), in: json.NewDecoder(repR), outFile: jobW, inFile: repR}, nil
}

// finish hands the run over and waits: for its end, or, detached, for its
// start. An error without a status means that the child did not end the run in
// an orderly way, unless it is detached and runs (waited).
func (s *supervisor) finish(ctx context.Context, a *app, f runFlags, job runJob) error {
	if f.detach {
		return s.detached(ctx, a, job)
	}
	forget := s.forward(ctx)
	if err := s.out.Encode(job); err != nil {
		forget()
		return s.died(ctx, job.Run)
	}
	restore := rawTerminal(a, f.tty)
	err := s.cmd.Wait()
	forget()
	restore()
	s.waited = true
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return &statusError{status: exit.ExitCode()}
	}
	return s.died(ctx, job.Run)
}

// died says that the child ended without a status: killed, or interrupted
// before it listened to signals.
func (s *supervisor) died(ctx context.Context, run sealed.RunID) error {
	if ctx.Err() != nil {
		return fmt.Errorf("run %s was interrupted: %w", run, ctx.Err())
	}
	return fmt.Errorf("the supervisor of run %s has died", run)
}

// forward passes a request to stop on to the child, which asks the agent
// first. The child is in a process group of its own, so that Ctrl-C on a
// terminal arrives there once: twice would mean at once.
func (s *supervisor) forward(ctx context.Context) (forget func()) {
	c, stop := stopRequests(ctx)
	go func() {
		for sig := range c {
			_ = s.cmd.Process.Signal(sig) // fails when it has ended
		}
	}()
	return func() { stop(); close(c) }
}

// A startReport is the child's word that a detached run runs, or why not.
type startReport struct {
	Error string `json:"error,omitempty"`
}

func (s *supervisor) detached(ctx context.Context, a *app, job runJob) error {
	if err := s.out.Encode(job); err != nil {
		return s.died(ctx, job.Run)
	}
	// Ctrl-C before the run runs ends it: close kills the child, and with it the
	// sandbox.
	defer context.AfterFunc(ctx, func() { _ = s.inFile.SetReadDeadline(time.Unix(1, 0)) })()
	var r startReport
	err := s.in.Decode(&r)
	switch {
	case err != nil:
		return s.died(ctx, job.Run)
	case r.Error != "":
		return errors.New(r.Error)
	}
	s.waited = true
	_, err = fmt.Fprintln(a.stdout, job.Run)
	return err
}

// close ends a child that still lives; a detached one that has started stays.
func (s *supervisor) close() {
	if !s.waited {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
	_, _ = s.outFile.Close(), s.inFile.Close()
}

// rawTerminal puts the operator's terminal into raw mode, so that every key
// reaches the agent's own terminal, Ctrl-C included.
func rawTerminal(a *app, tty bool) (restore func()) {
	in, ok := a.stdin.(*os.File)
	if !tty || !ok || !term.IsTerminal(int(in.Fd())) {
		return func() {}
	}
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return func() {}
	}
	return func() { _ = term.Restore(int(in.Fd()), old) }
}

// runBare runs a command without sandbox, identity and keys, but in the log.
func runBare(ctx context.Context, a *app, e *vaultclient.Engine, f runFlags, b sealed.Boot) error {
	req, _, err := f.request(b)
	if err != nil {
		return sealedFailure(a, err)
	}
	enq, err := enqueue(ctx, e, req)
	if err != nil {
		return runFailure(a, err)
	}
	a.talk("sealed: run %s, bare: no sandbox, no keys", enq.Run)
	cmd := exec.CommandContext(ctx, b.Argv[0], b.Argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	err = cmd.Run()
	status := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		status = exit.ExitCode()
	case errors.Is(err, exec.ErrNotFound):
		status = sealed.ExitNotFound
		a.fail(err)
	case err != nil:
		status = sealed.ExitNotRunnable
		a.fail(err)
	}
	cerr := e.CloseRun(context.WithoutCancel(ctx), enq.Run, fmt.Sprintf("bare run ended with status %d", status))
	if status != 0 {
		return errors.Join(cerr, &statusError{status: status})
	}
	return cerr
}
