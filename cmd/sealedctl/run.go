package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/internal/workspace"
)

// runFlags are the flags of `sealedctl run`.
type runFlags struct {
	agent, profile, workflow, mode, network, input, workspace string
	tags, allow, readOnly                                     []string
	wallTime                                                  time.Duration
	detach, tty, noWorkspace                                  bool
}

func newRunCmd(a *app) *cobra.Command {
	f := runFlags{}
	cmd := &cobra.Command{
		Use:   "run --agent NAME [--profile P] [--workflow W] [--tag T] [flags] -- COMMAND [ARG…]",
		Short: "Run an agent in a sandbox with the keys its policy allows",
		Long: `Run enqueues a run, starts its sandbox, and shows the agent's output live and
redacted. Changes to the workspace come back when the run has ended; what must
not come back is kept in the run's quarantine.

The agent's exit status is passed through. 3: denied by policy. 125: Sealed
itself failed. 126: the command can't be executed. 127: it does not exist.

  sealedctl run --agent claude-code --profile team/release --workflow release -- claude -p "fix it"`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("tty") {
				f.tty = !f.detach && f.input == "" && isTerminal(a.stdin) && isTerminal(a.stdout)
			}
			return runAgent(cmd.Context(), a, f, args)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.agent, "agent", "", "agent definition: claude-code, codex, gemini or a custom one")
	fl.StringVar(&f.profile, "profile", "", "profile that names the keys")
	fl.StringVar(&f.workflow, "workflow", "", "workflow of the run")
	fl.StringArrayVar(&f.tags, "tag", nil, "tag of the run (repeatable)")
	fl.StringVar(&f.mode, "mode", sealed.ModeJIT, "bare, sandboxed, identity or jit")
	fl.StringVar(&f.network, "net", sealed.NetworkNone, "none (bound hosts only), allowlist or full")
	fl.StringArrayVar(&f.allow, "allow", nil, "host for --net allowlist (repeatable; *.example.com for all below)")
	fl.StringVar(&f.input, "input", "", "file with the agent's standard input, - for this one")
	fl.StringVar(&f.workspace, "workspace", ".", "directory to copy in, and to bring changes back to")
	fl.BoolVar(&f.noWorkspace, "no-workspace", false, "start with an empty workspace and bring nothing back")
	fl.StringArrayVar(&f.readOnly, "read-only", nil, "further host directory to show read-only (repeatable)")
	fl.DurationVar(&f.wallTime, "wall-time", time.Hour, "end the run after this time")
	fl.BoolVar(&f.detach, "detach", false, "return when the run has started; follow it with runs logs -f")
	fl.BoolVar(&f.tty, "tty", false, "give the agent a terminal (default: when this is one)")
	_ = cmd.MarkFlagRequired("agent")
	return cmd
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// runAgent is the operator's side of a run. The supervisor is a process of its
// own: it prepares, and later owns, the sandbox; this one enqueues and waits.
func runAgent(ctx context.Context, a *app, f runFlags, argv []string) error {
	if f.profile != "" && f.mode != sealed.ModeJIT {
		return usagef("--profile names keys, which only --mode jit gives")
	}
	engine, err := a.engine(ctx)
	if err != nil {
		return sealedFailure(a, err)
	}
	token, err := a.token()
	if err != nil {
		return sealedFailure(a, err)
	}
	boot, err := f.boot(a, argv)
	if err != nil {
		return runFailure(a, err)
	}
	if f.mode == sealed.ModeBare {
		return runBare(ctx, a, engine, f, boot)
	}
	req, ws, err := f.request(boot)
	if err != nil {
		return sealedFailure(a, err)
	}
	if err := a.present(ctx, engine); err != nil {
		return runFailure(a, err)
	}
	enq, err := enqueue(ctx, engine, req)
	if err != nil {
		return runFailure(a, err)
	}
	return launch(ctx, a, engine, token, f, boot, req, ws, enq)
}

// launch starts the sandbox of a run that is enqueued, and waits for its end
// unless it is detached.
func launch(ctx context.Context, a *app, engine *vaultclient.Engine, token string, f runFlags, boot sealed.Boot, req sealed.EnqueueRequest, ws string, enq sealed.Enqueued) error {
	giveUp := func(err error, why string) error {
		cerr := engine.CloseRun(context.WithoutCancel(ctx), enq.Run, why)
		if errors.Is(cerr, sealed.ErrConflict) { // the supervisor has said so already
			cerr = nil
		}
		return errors.Join(err, cerr)
	}
	if err := a.showRun(enq, f); err != nil {
		return giveUp(err, "every key was denied")
	}
	if ctx.Err() != nil {
		return sealedFailure(a, giveUp(fmt.Errorf("starting run %s: %w", enq.Run, ctx.Err()), "interrupted before it started"))
	}
	boot.Run, boot.Ticket = enq.Run, enq.Ticket
	sup, err := startSupervisor(a, f)
	if err != nil {
		return sealedFailure(a, giveUp(err, "no supervisor"))
	}
	defer sup.close()
	err = sup.finish(ctx, a, f, runJob{
		Run: enq.Run, Agent: req.Agent, Boot: boot, Sandbox: req.Sandbox, Hosts: hostsOf(enq.Keys), ReadOnly: f.readOnly,
		StateDir: a.stateDir(), Workspace: ws, Detached: f.detach,
		TrustFile: a.trustFile, Libexec: a.libexec, VaultAddr: a.addr, CAFile: a.caFile, Mount: a.mount, Token: token,
	})
	var status *statusError
	if err == nil || errors.As(err, &status) || f.detach && sup.waited {
		a.presentAfter(ctx, engine)
		return err
	}
	sup.close() // with the child, the sandbox ends
	return sealedFailure(a, giveUp(err, sealed.CleanReason(err.Error())))
}

// sealedFailure reports err with status 125: the agent never ran, and its own
// statuses must not be confused with ours.
func sealedFailure(a *app, err error) error {
	a.fail(err)
	return &statusError{status: sealed.ExitSealed}
}

// runFailure is sealedFailure for whatever has no status of its own, such as
// usage and denial have.
func runFailure(a *app, err error) error {
	if statusOf(err) != exitFailure {
		return err
	}
	return sealedFailure(a, err)
}

// boot reads the input and makes the Boot document, without run and ticket.
func (f runFlags) boot(a *app, argv []string) (sealed.Boot, error) {
	b := sealed.Boot{Mode: f.mode, Argv: argv, Dir: "/workspace", Interactive: f.tty, OneOutput: !f.detach && oneSink(a.stdout, a.stderr)}
	if f.tty {
		b.Rows, b.Cols = 24, 80
		if in, ok := a.stdin.(*os.File); ok {
			if cols, rows, err := term.GetSize(int(in.Fd())); err == nil {
				b.Rows, b.Cols = rows, cols
			}
		}
	}
	if f.input == "" {
		return b, nil
	}
	if f.tty {
		return b, usagef("--input and --tty exclude each other")
	}
	src := a.stdin
	if f.input != "-" {
		file, err := os.Open(f.input)
		if err != nil {
			return b, fmt.Errorf("reading input: %w", err)
		}
		defer func() { _ = file.Close() }()
		src = file
	}
	const limit = 4 << 20
	in, err := io.ReadAll(io.LimitReader(src, limit+1))
	if err != nil {
		return b, fmt.Errorf("reading input: %w", err)
	}
	if len(in) > limit {
		return b, fmt.Errorf("reading input: more than %d bytes: %w", limit, sealed.ErrInvalid)
	}
	b.Input, b.HasInput = in, true
	return b, nil
}

// request makes the enqueue request, and returns the workspace's path. The
// workspace is digested here; the sandbox gets a copy, and init digests that.
func (f runFlags) request(b sealed.Boot) (sealed.EnqueueRequest, string, error) {
	r := sealed.EnqueueRequest{
		Agent: sealed.Name(f.agent), Mode: f.mode, Profile: sealed.ProfileName(f.profile), Workflow: sealed.Name(f.workflow),
		CommandDigest: sealed.CommandDigest(b.Argv),
		Sandbox: sealed.SandboxSpec{Backend: sealed.BackendLocal, Isolation: sealed.IsolationSameUID, Network: f.network, Allow: f.allow,
			Interactive: f.tty, WallTime: sealed.Duration(f.wallTime)},
	}
	if os.Geteuid() == 0 {
		r.Sandbox.Isolation = sealed.IsolationOwnUID
	}
	for _, t := range f.tags {
		r.Tags = append(r.Tags, sealed.Name(t))
	}
	if b.HasInput {
		r.InputDigest = sealed.DigestOf(sealed.DomainInput, b.Input)
	}
	if f.noWorkspace {
		r.WorkspaceDigest = workspace.EmptyDigest()
		return r, "", nil
	}
	ws, err := filepath.Abs(f.workspace)
	if err == nil {
		ws, err = filepath.EvalSymlinks(ws)
	}
	if err != nil {
		return r, "", &hintError{err: fmt.Errorf("finding the workspace: %w", err), hint: "--workspace DIR, or --no-workspace for an empty one"}
	}
	r.WorkspaceDigest, err = workspace.Digest(ws)
	return r, ws, err
}

// enqueue sends the request under a fresh idempotency key, so that an answer
// that was lost on the way can be asked for again without a second run.
func enqueue(ctx context.Context, e *vaultclient.Engine, r sealed.EnqueueRequest) (sealed.Enqueued, error) {
	id, err := sealed.NewULID(time.Now(), nil)
	if err != nil {
		return sealed.Enqueued{}, err
	}
	r.IdempotencyKey = id
	b, err := json.Marshal(r)
	if err != nil {
		return sealed.Enqueued{}, fmt.Errorf("encoding run: %w", err)
	}
	if _, err := sealed.ParseEnqueueRequest(b); err != nil {
		return sealed.Enqueued{}, &usageError{msg: err.Error()}
	}
	enq, err := e.Enqueue(ctx, r)
	if errors.Is(err, sealed.ErrUnavailable) && ctx.Err() == nil {
		enq, err = e.Enqueue(ctx, r)
	}
	return enq, err
}

// showRun says on stderr what was decided. When a profile was asked for and
// every key is denied, the run is not worth starting: that is an error.
func (a *app) showRun(e sealed.Enqueued, f runFlags) error {
	a.talk("sealed: run %s, agent %s, network %s", e.Run, f.agent, f.network)
	denied := 0
	var reasons []string
	for _, k := range e.Keys {
		switch k.Decision.Effect {
		case sealed.EffectAllow:
			a.talk("sealed:   %s allowed (%s)", k.Name, k.Delivery)
		case sealed.EffectRequireApproval:
			a.talk("sealed:   %s waits for a person when asked for: approval %s", k.Name, k.Approval)
		default:
			denied++
			for _, r := range k.Decision.Reasons {
				reasons = append(reasons, fmt.Sprintf("%s: %s (%s)", k.Name, r.Msg, r.Code))
			}
			a.talk("sealed:   %s denied", k.Name)
		}
	}
	for _, w := range e.Warnings {
		a.talk("sealed:   warning: %s", w)
	}
	if len(e.Keys) > 0 && denied == len(e.Keys) {
		return &hintError{err: fmt.Errorf("every key of %s is %w: %s", f.profile, sealed.ErrDenied, strings.Join(reasons, "; ")), hint: "sealedctl runs show " + string(e.Run)}
	}
	return nil
}

func hostsOf(keys []sealed.ManifestKey) []string {
	var out []string
	for _, k := range keys {
		if k.Decision.Effect == sealed.EffectDeny {
			continue
		}
		for _, b := range k.Bindings {
			out = append(out, b.HostPort())
		}
	}
	return out
}
