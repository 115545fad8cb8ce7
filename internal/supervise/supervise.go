// Package supervise owns one run: the copy of the workspace, the sandbox, the
// relay, the logs, and the kill. Beside the other runs of its user on this host it
// shares one watch of the engine with them (see meeting).
//
// The idea: one process per run, which does nothing else. Everything that
// keeps a sandbox alive hangs on it, so whatever happens to it, the sandbox
// ends: the driver ties process 1 to this process, the relay is a descriptor
// of this process, and the attestor drops the sandbox's right to an identity
// when this process goes.
//
// # Guarantee
//
// No process of the sandbox outlives Run or the process that called it, be
// that killed (B33, C21). Two runs never share a uid (own_uid). Nothing of the
// workspace goes back unless init has said that it looked through it. The logs
// hold what init let out, and init redacts; nothing is added to them. What init
// finds in them at the end, when it looks again, is masked before Run returns; a
// log in which that can't be done is destroyed.
//
// # What it does not guarantee
//
// It does not hear of revocations: it carries the engine's signed words from the
// init that asks to the other supervisors and from them to its own init, and
// can keep them back, which is as good as being cut off, but not forge them.
//
// It holds no credential and can't check init's work: neither the redaction
// nor the list of flagged files. It does not decide what the run may do; the
// engine does, and init obeys the engine.
//
// # Files
//
// <StateDir>/uids/<uid> is locked while a run has that uid. <StateDir>/runs/<run>
// is the run directory, never used twice:
//
//	workspace/         the copy; mode 0700, of the run's uid; removed at the end
//	stdout.log         standard output of init, as it came, until the end; with
//	                   Boot.OneOutput what the agent wrote to standard error, too
//	stderr.log         standard error, bubblewrap's own complaints included
//	status.json        a Status, replaced as a whole
//	record.dsse.json   what init signed
//	quarantine/        what did not go back; see package workspace
//
// Below WatchDir is a directory for each mount of each Vault, with a lock and a
// socket for each meeting; the last one to go removes them. What a kill leaves
// there is taken over by the next.
//
// Files have mode 0600. With own_uid the directories above the copy have mode
// 0711, because bubblewrap runs as the run's uid and must reach it; other
// uids may pass through but not list them.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/workspace"
)

// A Registrar announces a sandbox to the attestor. Attestor is the real one.
type Registrar interface {
	// Register fails unless the attestor grades the process as isolation.
	Register(ctx context.Context, agent sealed.Name, isolation string, pid int) (Registration, error)
}

// A Registration lasts as long as it is open.
type Registration interface {
	Claimed() error
	Close() error
}

// A Size is that of a terminal.
type Size struct{ Rows, Cols int }

// A Config describes one run. Fields are required unless they say otherwise.
type Config struct {
	Run     sealed.RunID
	Agent   sealed.Name
	Boot    sealed.Boot        // Boot.Mode decides whether there is an identity
	Sandbox sealed.SandboxSpec // as in the manifest
	Bound   []string           // hosts of the bindings; may be empty
	UIDs    UIDRange           // with own_uid
	Driver  sandbox.Driver
	Limits  sandbox.Limits // zero: defaults

	StateDir  string   // absolute; made if absent
	TrustFile string   // path
	Init      string   // host path of sealed-init
	Command   string   // host path of the sealed command; may be empty
	Workspace string   // may be empty: an empty directory, nothing goes back
	ReadOnly  []string // see sandbox.Spec

	// WatchDir is where the supervisors of this user meet, as the function
	// WatchDir says. They share one watch of the engine there. Empty: every run
	// watches by itself.
	WatchDir string

	// Registrar is required when the mode has an identity.
	Registrar Registrar

	// Stdin is read only when the run is interactive. A Read that blocks may
	// outlast Run. Nil: empty.
	Stdin          io.Reader
	Stdout, Stderr io.Writer // nil: the logs only

	// Detached runs survive their parent. Others end at once when Parent ends
	// (a pipe whose other end the parent holds; may be nil) or the parent
	// process does.
	Detached bool
	Parent   io.Reader

	Resize  <-chan Size      // may be nil or closed
	Signals <-chan os.Signal // stop requests; nil: SIGTERM, SIGINT, SIGHUP of this process
	Grace   time.Duration    // between asking and killing; zero: ten seconds

	Log      *slog.Logger        // nil: discarded
	OnDenied func(relay.Denied)  // nil: a line of Log
	OnStart  func()              // called when init has been told what to run; may be nil
	OnEnd    func(reason string) // called when a started run ended without "finished"; may be nil
}

// Reasons of an end.
const (
	ReasonFinished  = "finished"    // init said so
	ReasonDied      = "init_died"   // it ended without saying so
	ReasonStopped   = "stopped"     // a stop request, and init did not finish in time
	ReasonCanceled  = "canceled"    // ctx
	ReasonWallTime  = "wall_time"   // and init did not finish in time
	ReasonParent    = "parent_gone" // of a run that is not detached
	ReasonRelayLost = "relay_lost"
	ReasonLog       = "log_failed" // a log could not be written
)

// A Result says how a run ended.
type Result struct {
	Exit      int    // the agent's status if Finished, otherwise init's or sealed.ExitSealed, never 0
	Finished  bool   // init finished and said so
	Reason    string // one of the constants; empty if the run did not start
	Message   string // init's own words about the end, fit to be shown; may be empty
	Dir       string // the run directory
	Record    string // path; empty: none
	Digests   map[string]string
	Workspace workspace.Report
	// Held is the path of a copy that could not go back but holds no
	// credential: the run had none, or init flagged what it found and that was
	// removed. Empty: none.
	Held string
}

// Run carries out one run and returns when nothing of it is left but its
// directory. The error is about Sealed's own failures; the agent's are in
// Result.Exit. A run that did not start leaves no sandbox behind.
//
// The end of ctx kills at once. A signal asks init first, and kills after
// Grace or at the second signal; one that comes while the run starts counts as
// soon as it has started. The wall time is like a signal, so that a
// record can still be signed: at the latest Grace after it nothing is left.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if err := cfg.validate(); err != nil {
		return Result{Exit: sealed.ExitSealed}, fmt.Errorf("starting run: %w", err)
	}
	o := &owner{cfg: cfg, started: time.Now()}
	defer o.release()
	signals, unsubscribe := o.signals() // now: a request to stop may come while it starts
	defer unsubscribe()
	if err := o.prepare(); err != nil {
		return o.failed(err)
	}
	if err := o.launch(ctx); err != nil {
		return o.failed(err)
	}
	if o.cfg.OnStart != nil {
		o.cfg.OnStart()
	}
	return o.finish(o.attend(ctx, signals))
}

func (c *Config) validate() error {
	if _, err := sealed.ParseRunID(string(c.Run)); err != nil {
		return err
	}
	if _, err := sealed.ParseName("agent", string(c.Agent)); err != nil {
		return err
	}
	switch {
	case !filepath.IsAbs(c.StateDir):
		return &sealed.FieldError{Field: "state_dir", Reason: "wants an absolute path"}
	case c.Driver == nil:
		return &sealed.FieldError{Field: "driver", Reason: "is required"}
	case c.identity() && c.Registrar == nil:
		return &sealed.FieldError{Field: "registrar", Reason: "is required for a run with an identity"}
	case c.Boot.Mode != sealed.ModeSandboxed && !c.identity():
		return &sealed.FieldError{Field: "mode", Reason: "wants sandboxed, identity or jit"}
	case os.Getuid() == 0 && c.Sandbox.Isolation != sealed.IsolationOwnUID:
		return &sealed.FieldError{Field: "sandbox.isolation", Reason: "root starts sandboxes with own_uid only"}
	case os.Getuid() != 0 && c.Sandbox.Isolation != sealed.IsolationSameUID:
		return &sealed.FieldError{Field: "sandbox.isolation", Reason: "without root only same_uid is possible"}
	case c.Sandbox.WallTime <= 0:
		return &sealed.FieldError{Field: "sandbox.wall_time", Reason: "wants a duration"}
	}
	if c.Sandbox.Isolation == sealed.IsolationOwnUID {
		if err := c.UIDs.validate(); err != nil {
			return err
		}
	}
	if c.Grace == 0 {
		c.Grace = 10 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnDenied == nil {
		c.OnDenied = func(d relay.Denied) {
			c.Log.Warn("relay refused", "addr", d.Addr, "reason", d.Reason, "count", d.Count)
		}
	}
	return nil
}

func (c *Config) identity() bool {
	return c.Boot.Mode == sealed.ModeIdentity || c.Boot.Mode == sealed.ModeJIT
}

// failed reports a run that did not start, with what init said about it: it
// may have refused its environment, and nobody else can log that.
func (o *owner) failed(err error) (Result, error) {
	res := Result{Exit: sealed.ExitSealed, Dir: o.dir}
	if _, said := o.words(); said != nil {
		res.Message = sealed.CleanReason(said.Message)
	}
	if o.dir != "" {
		err = errors.Join(err, o.removeCopy(), o.status(StateFailed, res))
	}
	return res, fmt.Errorf("starting run: %w", err)
}
