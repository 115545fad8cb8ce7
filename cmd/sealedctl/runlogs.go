package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/supervise"
)

// followEvery is how often a followed log is looked at.
const followEvery = 100 * time.Millisecond

func newRunsLogsCmd(a *app) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs ID [-f]", Short: "Show the redacted output of a run of this machine", Args: cobra.ExactArgs(1),
		Long: `Logs prints what the run wrote, each stream to its own, as sealed-init let it
through. With -f it follows until the run has ended.

  sealedctl runs logs -f 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
		ValidArgsFunction: a.complete(runIDs("")),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sealed.ParseRunID(args[0])
			if err != nil {
				return err
			}
			dir := a.runDir(id)
			if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
				return &hintError{err: fmt.Errorf("reading logs: run %s did not run here: %w", id, sealed.ErrNotFound), hint: "sealedctl runs show " + string(id)}
			}
			return a.logs(cmd.Context(), dir, follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the run has ended")
	return cmd
}

// runDir is where the supervisor of a run of this machine keeps its files.
func (a *app) runDir(id sealed.RunID) string { return filepath.Join(a.stateDir(), "runs", string(id)) }

// logs copies both streams. Whether the run has ended is asked before the
// streams are read, so nothing that it wrote is missed.
func (a *app) logs(ctx context.Context, dir string, follow bool) error {
	streams := []*tail{{path: filepath.Join(dir, "stdout.log"), to: a.stdout}, {path: filepath.Join(dir, "stderr.log"), to: a.stderr}}
	if oneSink(a.stdout, a.stderr) {
		join := &lineJoin{to: a.stdout}
		streams[0].to, streams[1].to = &lineEnd{join}, &lineEnd{join}
	}
	defer func() {
		for _, t := range streams {
			t.close()
		}
	}()
	for {
		over, err := ended(dir)
		if err != nil {
			return err
		}
		for _, t := range streams {
			if err := t.copy(); err != nil {
				return err
			}
		}
		if !follow || over {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// ended reports whether nothing more will be written: the supervisor says so,
// or it is no more.
func ended(dir string) (bool, error) {
	s, err := supervise.ReadStatus(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	live := s.State == "starting" || s.State == "running"
	return !live || errors.Is(syscall.Kill(s.PID, 0), syscall.ESRCH), nil
}

// A tail copies what is new in a file that may not exist yet.
type tail struct {
	path string
	to   io.Writer
	f    *os.File
}

func (t *tail) copy() error {
	if t.f == nil {
		f, err := os.Open(t.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading logs: %w", err)
		}
		t.f = f
	}
	if _, err := io.Copy(t.to, t.f); err != nil {
		return fmt.Errorf("reading logs: %w", err)
	}
	return nil
}

func (t *tail) close() {
	if t.f != nil {
		_ = t.f.Close()
	}
}
