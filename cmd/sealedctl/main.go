// Command sealedctl drives Sealed: it enqueues runs, owns their sandboxes,
// shows and decides approvals, revokes, and verifies what a run left. It holds
// the operator's own Vault token and never a credential of a run.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"sealed.dev/sealed/internal/sealed"
)

// Exit statuses. `run` passes the agent's status through and uses 125 to 127
// for Sealed's own failures, as env(1) and docker do.
const (
	exitOK      = 0
	exitFailure = sealed.ExitFailure // 1
	exitUsage   = sealed.ExitUsage   // 2
	exitDenied  = sealed.ExitDenied  // 3: a policy, an ACL or a revocation said no
	exitPending = sealed.ExitPending // 4: a person has to say yes first
)

func main() {
	if err := tighten(os.Stderr); err != nil {
		os.Exit(newApp(os.Stdin, os.Stdout, os.Stderr).fail(err))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is main without the process: tests call it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := newApp(stdin, stdout, stderr)
	root := newRootCmd(a)
	root.SetArgs(args)
	if cmd, err := root.ExecuteContextC(ctx); err != nil {
		if statusOf(err) == exitUsage {
			err = &hintError{err: err, hint: cmd.CommandPath() + " --help"}
		}
		return a.fail(err)
	}
	if a.lost != nil {
		return a.fail(a.lost)
	}
	return exitOK
}
