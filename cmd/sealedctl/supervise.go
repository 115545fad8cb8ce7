package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sealed.dev/sealed/internal/sandbox/local"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/supervise"
)

// newSuperviseCmd is the child of `run`. It is not for people.
func newSuperviseCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "supervise", Hidden: true, Args: cobra.NoArgs,
		Short: "Own one run (started by sealedctl run)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return superviseRun(cmd.Context(), a, inherited(3, "job"), inherited(4, "report"))
		},
	}
}

// superviseRun reads the job and owns the run to its end.
func superviseRun(ctx context.Context, a *app, jobs *os.File, report *os.File) error {
	stops, forget := stopRequests(ctx)
	defer forget()
	outlivePipe()
	var job runJob
	in := json.NewDecoder(jobs)
	if err := in.Decode(&job); err != nil {
		return usagef("supervise is started by sealedctl run")
	}
	cfg, err := job.config(a)
	if err != nil {
		return sealedFailure(a, err)
	}
	if !job.Detached {
		cfg.Parent = io.MultiReader(in.Buffered(), jobs)
	}
	tell := func(err error) {
		if !job.Detached {
			return
		}
		var r startReport
		if err != nil {
			r.Error = err.Error()
		}
		_ = json.NewEncoder(report).Encode(r)
		_ = report.Close()
	}
	cfg.OnStart = func() { tell(nil) }
	cfg.Signals = stops
	// A signal asks first, which is supervise's affair; the end of ctx kills.
	res, err := supervise.Run(context.WithoutCancel(ctx), cfg)
	if !res.Finished || job.Boot.Mode == sealed.ModeSandboxed {
		a.closeRun(job, res, err)
	}
	tell(err) // after a start this writes to a closed pipe
	return a.showResult(job.Run, res, err)
}

// outlivePipe keeps this process from being killed when its viewer goes, as
// with `run | head`: the run and its log go on. The signal is caught and not
// ignored, which the agent would inherit.
func outlivePipe() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// stopRequests returns the signals that ask to stop, those included that ended
// ctx before. The second one matters too: it means at once.
func stopRequests(ctx context.Context) (c chan os.Signal, forget func()) {
	c = make(chan os.Signal, 3)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if ctx.Err() != nil && len(c) == 0 {
		c <- syscall.SIGTERM
	}
	return c, func() { signal.Stop(c) }
}

// closeRun tells the engine that a run ended without a record of its own, so
// that the log says so at once and not after a silence.
func (a *app) closeRun(job runJob, res supervise.Result, cause error) {
	reason := res.Message
	if reason == "" {
		reason = res.Reason
	}
	if reason == "" && cause != nil {
		reason = cause.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := newClient(job.VaultAddr, job.CAFile, job.Token)
	if err == nil {
		err = client.Engine(job.Mount).CloseRun(ctx, job.Run, sealed.CleanReason(reason))
	}
	if err != nil && !errors.Is(err, sealed.ErrConflict) {
		a.fail(fmt.Errorf("telling the engine that run %s has ended: %w", job.Run, err))
	}
}

// runUIDs are the host uids of sandboxes that root starts.
var runUIDs = supervise.UIDRange{Min: 700000, Max: 799999}

// config turns the job into what package supervise needs.
func (j runJob) config(a *app) (supervise.Config, error) {
	b, err := os.ReadFile(j.TrustFile)
	if err != nil {
		return supervise.Config{}, fmt.Errorf("reading trust file: %w", err)
	}
	trust, err := sealed.ParseTrustFile(b)
	if err != nil {
		return supervise.Config{}, fmt.Errorf("reading trust file %s: %w", j.TrustFile, err)
	}
	cfg := supervise.Config{
		Run: j.Run, Agent: j.Agent, Boot: j.Boot, Sandbox: j.Sandbox, Bound: j.Hosts, ReadOnly: j.ReadOnly,
		UIDs: runUIDs, Driver: local.Driver{}, Registrar: supervise.Attestor{Socket: trust.AttestSocket},
		StateDir: j.StateDir, TrustFile: j.TrustFile, Workspace: j.Workspace, Detached: j.Detached,
		WatchDir: supervise.WatchDir(os.Geteuid(), a.getenv("HOME")),
		Init:     filepath.Join(j.Libexec, "sealed-init"), Command: filepath.Join(j.Libexec, "sealed"),
	}
	if !j.Detached {
		cfg.Stdout, cfg.Stderr = a.stdout, a.stderr
		cfg.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	if in, ok := a.stdin.(*os.File); ok && j.Boot.Interactive {
		cfg.Stdin, cfg.Resize = in, resizes(in)
	}
	return cfg, nil
}

// resizes follows the size of the operator's terminal.
func resizes(in *os.File) <-chan supervise.Size {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGWINCH)
	out := make(chan supervise.Size, 1)
	go func() {
		for range sig {
			if cols, rows, err := term.GetSize(int(in.Fd())); err == nil {
				out <- supervise.Size{Rows: rows, Cols: cols}
			}
		}
	}()
	return out
}

// showResult says what a person should know beyond the agent's own output.
func (a *app) showResult(run sealed.RunID, res supervise.Result, err error) error {
	for _, q := range res.Workspace.Quarantined {
		_, _ = fmt.Fprintf(a.stderr, "sealed: kept from the workspace: %s (%s)\n", printable(q.Path), q.Reason)
	}
	if res.Held != "" {
		_, _ = fmt.Fprintf(a.stderr, "sealed: the workspace did not go back; the copy is %s\n", res.Held)
	}
	if err != nil {
		a.fail(err)
	}
	if res.Message != "" && res.Message != "exited" {
		_, _ = fmt.Fprintf(a.stderr, "sealed: run %s: %s\n", run, printable(res.Message))
		if !res.Finished && strings.HasPrefix(res.Message, "claiming run") {
			// The engine tells the sandbox nothing; the operator may know.
			_, _ = fmt.Fprintf(a.stderr, "  try: sealedctl audit query --run %s\n", run)
		}
	} else if !res.Finished && err == nil {
		_, _ = fmt.Fprintf(a.stderr, "sealed: run %s ended without a record: %s\n", run, res.Reason)
	}
	if err != nil && res.Exit == 0 {
		res.Exit = sealed.ExitSealed
	}
	if res.Exit != 0 {
		return &statusError{status: res.Exit}
	}
	return nil
}
