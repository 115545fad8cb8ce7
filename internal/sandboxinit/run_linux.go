package sandboxinit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sandboxinit/proxy"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/workspace"
)

const (
	workspaceDir = "/workspace"
	// drainLimit bounds the wait for output after every process was killed.
	drainLimit = 5 * time.Second
	// endLimit bounds what init does after the agent has gone.
	endLimit = 20 * time.Second
	// startLimit bounds everything from boot to the agent's start.
	startLimit = 60 * time.Second
	// graceLimit is how long the agent may take to end after a signal.
	graceLimit = 5 * time.Second
	// memoryLimit makes the runtime collect garbage early rather than grow: the
	// redactor's tables, a long event and the second look share it.
	memoryLimit = 24 << 20
)

// A runner is one run, from boot to finish.
type runner struct {
	boot  sealed.Boot
	trust sealed.TrustFile
	// trustFile stays open and referenced: the attestor compares descriptor
	// TrustFD with the file it is configured with, at every attestation.
	trustFile *os.File
	relay     *relay.Client
	control   *relay.Control
	set       *redact.Set
	stdout    *stream
	stderr    *stream

	measured sealed.Measurement
	exe      *executable
	session  *session
	keys     *keyring
	proxy    *proxy.Proxy
	port     net.Listener
	contact  *contact
	host     *hostWatch
	events   *eventLog
	input    handedInput
	traffic  tally
	agent    *agent
	started  time.Time
	wall     time.Duration
	warnings []string
	masks    []sealed.TranscriptMasks // what the second look ordered

	stopOnce sync.Once
	stopped  chan string // receives the reason of an abort, once
}

// Main runs process 1 of a sandbox and returns its exit status. Failures
// before the agent starts are one line on stderr.
func Main(environ []string, stdout, stderr io.Writer) int {
	debug.SetMemoryLimit(memoryLimit)
	err := Harden(environ)
	if err == nil && stderr == io.Writer(os.Stderr) {
		stderr, err = divertStderr()
	}
	if err == nil {
		set := redact.NewSet()
		r := &runner{set: set, stdout: newStream("stdout", stdout, set), stderr: newStream("stderr", stderr, set), stopped: make(chan string, 1), started: time.Now().UTC()}
		var status int
		if status, err = r.run(context.Background()); err == nil {
			return status
		}
		killAll()
		r.tell(sealed.RelayControl{Type: "failed", Exit: exitStatus(err), Message: string(redact.Bytes([]byte(sealed.CleanReason(err.Error())), r.set)), Masks: r.masks})
		// What init prints passes the same redactor as the agent's output.
		_, _ = stderr.Write(redact.Bytes([]byte("sealed: "+sealed.CleanReason(err.Error())+"\n"), r.set))
		return exitStatus(err)
	}
	_, _ = fmt.Fprintf(stderr, "sealed: %s\n", sealed.CleanReason(err.Error()))
	confess(err)
	return exitStatus(err)
}

// confess tells the supervisor why init did not even start. Init has no
// identity then and can't log it; the supervisor's entry about the end of the
// run (run.closed) has the reason. Nothing secret was read yet: the message
// names variables, never what they hold. A launcher that starts init in such
// an environment may also drop the message. Then the entry has no reason, and
// still nothing was claimed.
func confess(cause error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r := &runner{}
	if r.openRelay(ctx) == nil {
		r.tell(sealed.RelayControl{Type: "failed", Exit: exitStatus(cause), Message: sealed.CleanReason(cause.Error())})
	}
}

func (r *runner) run(ctx context.Context) (int, error) {
	startCtx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := r.prepare(startCtx); err != nil {
		return 0, err
	}
	if r.boot.Mode == sealed.ModeSandboxed {
		return r.runPlain()
	}
	if err := r.claim(startCtx); err != nil {
		return 0, err
	}
	runCtx, end := context.WithCancel(ctx)
	defer end()
	if err := r.deliver(startCtx, runCtx); err != nil {
		return 0, errors.Join(err, r.abandon(ctx, err))
	}
	status, reason := r.attend(runCtx)
	end()
	return status, r.finish(ctx, status, reason)
}

// prepare does steps 2 to 4: trust, boot, measurement, seccomp. The network
// interfaces are read before the filter narrows what can be asked.
func (r *runner) prepare(ctx context.Context) error {
	r.trustFile = os.NewFile(sealed.TrustFD, "trust")
	trust, digest, err := readTrust(r.trustFile)
	if err != nil {
		return err
	}
	r.trust = trust
	if err := measureSandbox(&r.measured); err != nil {
		return err
	}
	if r.measured.PID != 1 { // the end of the run would not be the end of its processes
		return fmt.Errorf("starting: not process 1 of a sandbox: %w", sealed.ErrInvalid)
	}
	if err := InstallSeccomp(); err != nil {
		return err
	}
	r.measured.Seccomp = 2 // InstallSeccomp succeeded with TSYNC: every thread has the filter
	if r.boot, err = readBoot(os.NewFile(sealed.BootFD, "boot")); err != nil {
		return err
	}
	if r.boot.Ticket != "" { // before it is sent: an answer may quote it
		r.armOwn("ticket", r.boot.Ticket)
	}
	if err := r.openRelay(ctx); err != nil {
		return err
	}
	r.measured.TrustDigest, r.measured.InitVersion = digest, Version
	r.measured.CommandDigest = sealed.CommandDigest(r.boot.Argv)
	r.measured.Interactive = r.boot.Interactive
	if r.boot.HasInput {
		r.measured.InputDigest = sealed.DigestOf(sealed.DomainInput, r.boot.Input)
	}
	return nil
}

// openRelay takes over the inherited relay and opens its control stream.
func (r *runner) openRelay(ctx context.Context) error {
	// Without a launcher the number may be that of the runtime's own poller.
	var st unix.Stat_t
	if err := unix.Fstat(sealed.RelayFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("opening relay: no socket was inherited: %w", sealed.ErrUnavailable)
	}
	file := os.NewFile(sealed.RelayFD, "relay")
	if file == nil {
		return fmt.Errorf("opening relay: %w", sealed.ErrUnavailable)
	}
	conn, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		return fmt.Errorf("opening relay: %w", sealed.ErrUnavailable)
	}
	if r.relay, err = relay.NewClient(conn); err != nil {
		return err
	}
	r.control, err = r.relay.Control(ctx)
	return err
}

// claim does step 5 and 6. The files are measured while identity and token
// are fetched: hashing a large executable costs as much as the round trips.
func (r *runner) claim(ctx context.Context) error {
	measured := make(chan error, 1)
	go func() { measured <- r.measureFiles() }()
	socket := fmt.Sprintf("/proc/self/fd/%d", sealed.SPIFFEFD)
	id, err := fetchIdentity(ctx, socket, r.trust.Audience)
	if err != nil {
		return errors.Join(err, <-measured)
	}
	r.armOwn("svid", id.jwt)
	e, err := newEngine(r.trust, r.relay.Vault)
	if err != nil {
		return err
	}
	ttl, err := e.login(ctx, r.trust, id.jwt)
	if err != nil {
		return err
	}
	id.jwt = ""
	r.armOwn("token", e.token)
	if err := <-measured; err != nil {
		return errors.Join(err, e.revokeToken(ctx))
	}
	if r.session, err = claim(ctx, e, r.trust, id, r.boot, r.measured); err != nil {
		return errors.Join(err, e.revokeToken(ctx))
	}
	r.session.tokenTTL, r.wall = ttl, r.session.answer.WallTime.Std()
	r.tell(sealed.RelayControl{Type: "claimed"})
	return undumpable() // for certain: see ownExecutable
}

func (r *runner) measureFiles() error {
	exe, err := openExecutable(r.boot.Argv[0], agentPath)
	if err != nil {
		return err
	}
	r.exe = exe
	r.measured.ExeDigest = exe.digest
	r.measured.WorkspaceDigest, err = workspace.Digest(workspaceDir)
	return err
}

// armOwn arms the redactor with something of ours that is not a credential of
// the profile. Such strings are long and random; a failure can't happen.
func (r *runner) armOwn(name, value string) {
	if err := r.set.Add(name, []byte(value), redact.Options{}); err != nil {
		r.warnings = append(r.warnings, "not redacted: "+name)
	}
}

// deliver does steps 7 and 8: keys, redactor, proxy, redacted input, agent.
func (r *runner) deliver(startCtx, runCtx context.Context) error {
	a := r.session.answer
	r.warnings = append(r.warnings, a.Warnings...)
	r.events = newEventLog(r.session)
	keys, err := newKeyring(runCtx, r.session, r.set)
	if err != nil {
		return err
	}
	r.keys = keys
	token, err := newPlaceholder()
	if err != nil {
		return err
	}
	if err := r.openProxy(runCtx, token); err != nil {
		return err
	}
	c := &contact{session: r.session, freeze: r.frozen, dead: keys.drop, abort: r.abort, renewed: r.renewed}
	keys.proxy, keys.contact = r.proxy, c
	missing, err := keys.issueAllowed(startCtx)
	for _, m := range missing {
		r.warnings = append(r.warnings, sealed.CleanReason(m.Error()))
		_, _ = fmt.Fprintf(r.stderr.w, "sealed: warning: %s\n", sealed.CleanReason(m.Error()))
	}
	if err != nil {
		return err
	}
	r.watchHost(runCtx, c)
	go c.run(runCtx)
	go c.keepToken(runCtx)
	go r.events.run(runCtx)
	r.armAgent(token)
	if err := r.handInput(startCtx); err != nil { // the log before the effect
		return err
	}
	return r.startAgent(token)
}

// armAgent arms the redactor with what only the agent of this run is given.
func (r *runner) armAgent(token string) {
	for _, p := range r.keys.placeholders {
		r.armOwn("placeholder", p)
	}
	r.armOwn("agent-token", token)
}

func (r *runner) startAgent(token string) error {
	env := environment{
		proxy: "http://" + r.port.Addr().String(), token: token,
		placeholders: r.keys.placeholders, answer: r.session.answer, term: r.boot.Interactive, values: r.keys.environ(),
	}
	for _, k := range r.session.answer.Keys {
		if k.Delivery.GivesValue() && r.keys.live(k.Name) {
			r.events.add(sealed.RunEvent{Type: "env.injected", Key: k.Name})
		}
	}
	if !r.boot.Interactive {
		r.stdout.expectEvents(r.set, r.boot.Argv)
	}
	a, err := start(r.exe, r.boot, env.build(), r.stdout, r.stderr)
	if err != nil {
		return err
	}
	r.agent = a
	a.reap()
	go r.obey()
	return nil
}

// renewed notes that a lease was renewed. The engine's lease handler does not
// log it: Vault calls it with its state locked.
func (r *runner) renewed(key sealed.KeyName) {
	r.events.addRare(sealed.RunEvent{Type: "lease.renewed", Key: key})
}

func (r *runner) frozen(on bool) {
	r.proxy.Freeze(on)
	if on {
		r.events.add(sealed.RunEvent{Type: "proxy.frozen"})
	}
}

// abort ends the run now: it kills every process of the sandbox at once and
// lets attend return. Only the first reason counts.
func (r *runner) abort(reason string) {
	r.stopOnce.Do(func() {
		r.stopped <- reason // first: attend may see the killed agent at once
		killAll()
	})
}

// attend waits for the agent's end, or for an abort.
func (r *runner) attend(ctx context.Context) (status int, reason string) {
	wall := time.NewTimer(r.wall)
	defer wall.Stop()
	for {
		select {
		case status = <-r.agent.exit:
			select {
			case reason = <-r.stopped: // killed by abort: the status is ours
				return sealed.ExitSealed, "aborted: " + reason
			default:
			}
			return status, "exited"
		case reason = <-r.stopped:
			return sealed.ExitSealed, "aborted: " + reason
		case <-wall.C:
			r.abort("wall time is over")
		case <-ctx.Done():
			return sealed.ExitSealed, "aborted"
		}
	}
}

// tell sends one control message to the host and waits a little until it was
// read. A host that has gone shows in obey.
func (r *runner) tell(m sealed.RelayControl) {
	if r.control == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if r.control.Send(m) == nil {
		_ = r.relay.Flush(ctx)
	}
}
