// Package spireattestor tells SPIRE which process is a measured sealed-init,
// and for which tenant and agent it was started.
//
// # Idea
//
// A launcher announces every sandbox it starts on the registry socket (package
// registry). From that moment the attestor knows one process by what the
// kernel says about it: its pidfd, start time, pid namespace, boot, uids and
// uid map. SPIRE then hands over the pid of each caller of the Workload API.
// If it is that process, and it is in a state in which nothing else can act in
// its name, it gets selectors; any doubt is an error, and SPIRE issues nothing.
//
// # Guarantee
//
// Selectors are given only to a process that
//
//   - is the registered one (number, start time, boot id and namespace are the
//     same before and after all other checks, and its pidfd is alive: D01, R13);
//   - executes a file of root's with mode 0711 whose digest is configured. The
//     mode matters twice. A process that executes a file it may not read is
//     not dumpable towards its own user namespace, so not even the namespace's
//     owner reads its memory (R01). And a file that cannot be opened cannot be
//     passed to prctl(PR_SET_MM_EXE_FILE), which would forge the exe link;
//   - is process 1 of a pid namespace in which no other process lives, is not
//     traced, and has no child (D02, D03, D12);
//   - runs under a uid that the launcher may use, with a user namespace that
//     maps this uid and no other, never root's;
//   - holds the configured trust file open as descriptor TrustFD (R04);
//   - asks within 60 s of its registration, and within 10 s of its first
//     success, and before it has claimed its run (D11);
//   - was started by a uid that the configuration allows to start this agent
//     for this tenant, over a connection and by a launcher that both still live.
//
// # What it does not guarantee
//
// It says nothing about which run this is: the ticket does. It does not look
// at the agent, the command line, the mounts or the network; init measures and
// claims these. It does not defend against root on the host. With isolation
// same_uid the launcher could have traced init before it was registered and
// changed its registers, which leaves no mark; that is what the grade says.
// A FUSE or network file is never measured, but file systems in localFS are
// believed about their owners.
//
// # Selectors
//
// SPIRE adds the type, which is the plugin's configured name:
//
//	tenant:<name>  agent:<name>  init_sha256:<hex>  isolation:own_uid|same_uid
//	backend:local  image:host    launcher_uid:<n>   init_owner:root|user
//
// A registration entry requires all of them that matter to it, and at least
// tenant, agent, init_sha256 and isolation.
package spireattestor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/spire-attestor/registry"
)

// TrustFD is the descriptor number under which sealed-init holds the trust
// file; see package registry, which launchers and init import instead of this
// package.
const TrustFD = registry.TrustFD

const (
	// firstWindow is the time from registration to the first attestation.
	firstWindow = 60 * time.Second
	// againWindow is the time from the first attestation to the last. SPIRE
	// attests on every call, and init makes two or three.
	againWindow = 10 * time.Second
	// settleTime is how long a registration waits for the sandbox's set-up to
	// end and for init to be executed.
	settleTime = 5 * time.Second
)

// A Reason is the constant code of a refusal, fit for logs and metrics.
type Reason string

// The reasons.
const (
	ReasonNoDescriptor Reason = "not_init"          // in a sandbox, but not its registered process
	ReasonGone         Reason = "process_gone"      // exited, or its number was taken again
	ReasonIdentity     Reason = "identity_changed"  // start time, boot or namespace differ
	ReasonProc         Reason = "proc_unreadable"   // the kernel's view cannot be read
	ReasonLauncher     Reason = "launcher_refused"  // this uid may start nothing, or lives in a sandbox
	ReasonAgent        Reason = "agent_refused"     // this uid may not start this agent
	ReasonRegistered   Reason = "pid_registered"    // the process has a descriptor already
	ReasonNotFirst     Reason = "not_pid1"          // not process 1 of a namespace of its own
	ReasonUID          Reason = "uid_refused"       // root's, or not one this launcher may use
	ReasonUIDInUse     Reason = "uid_in_use"        // another live sandbox has this uid
	ReasonUIDMap       Reason = "uid_map_refused"   // maps more than the process's own uid
	ReasonTraced       Reason = "traced"            // a debugger is attached
	ReasonDumpable     Reason = "dumpable"          // its memory may be read by its uid
	ReasonExe          Reason = "exe_refused"       // owner, mode, type or file system of the executable
	ReasonDigest       Reason = "exe_digest"        // the executable is not a configured one
	ReasonNotAlone     Reason = "not_alone"         // another process lives in the namespace
	ReasonTrustFile    Reason = "trust_file_unsafe" // the configured trust file is not root's alone
	ReasonTrustFD      Reason = "trust_fd"          // TrustFD is not the trust file
	ReasonClaimed      Reason = "claimed"           // init has claimed; the window is closed
	ReasonWindow       Reason = "window_over"       // too late
	ReasonLimit        Reason = "too_many"          // the launcher's share of connections is used up
	ReasonMalformed    Reason = "malformed"         // the launcher's line cannot be read
)

// A DeniedError is a refusal. It unwraps to sealed.ErrDenied and to its cause,
// and names no bytes that a workload chose.
type DeniedError struct {
	Reason Reason
	Err    error // may be nil
}

func (e *DeniedError) Error() string {
	if e.Err == nil {
		return string(e.Reason)
	}
	return string(e.Reason) + ": " + e.Err.Error()
}

// Unwrap makes errors.Is work for sealed.ErrDenied and for the cause.
func (e *DeniedError) Unwrap() []error { return []error{sealed.ErrDenied, e.Err} }

func deny(r Reason, err error) error { return &DeniedError{Reason: r, Err: err} }

func denyf(r Reason, format string, args ...any) error { return deny(r, fmt.Errorf(format, args...)) }

// An Attestor measures processes. All methods are safe for concurrent use.
type Attestor struct {
	proc    procfs
	pin     func(pid int) (pin, error)
	trusted func(path string, owner uint32) (facts, error)
	settle  time.Duration
	digests digestCache

	mu    sync.Mutex
	cfg   Config
	descs map[int]*descriptor
	conns map[uint32]int // open registry connections per uid
}

// New returns an attestor. It errors if the configuration is invalid.
func New(cfg Config) (*Attestor, error) {
	a := &Attestor{
		pin: openPIDFD, trusted: statTrusted, settle: settleTime,
		descs: map[int]*descriptor{}, conns: map[uint32]int{},
	}
	if err := a.Reconfigure(cfg); err != nil {
		return nil, err
	}
	a.proc = kernel{root: a.cfg.Proc}
	return a, nil
}

// Reconfigure replaces the configuration and keeps live descriptors. They are
// judged by the new configuration from their next attestation on. Proc is
// fixed by New.
func (a *Attestor) Reconfigure(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configuring attestor: %w", err)
	}
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cfg = cfg
	return nil
}

func (a *Attestor) config() Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg
}

// Attest returns the selectors of the process that has this number, without
// type prefix. The caller has pinned the process, as SPIRE does. A process
// that has nothing to do with a sandbox has no selectors and is no error. A
// process of a sandbox that must not have an identity is a *DeniedError.
func (a *Attestor) Attest(ctx context.Context, pid int) ([]string, error) {
	cfg := a.config()
	d := a.lookup(pid)
	var err error
	if d == nil {
		err = a.stranger(pid)
	} else {
		err = a.check(ctx, cfg, d)
	}
	switch {
	case err != nil:
		a.logDenied(ctx, cfg, pid, d, err)
		return nil, fmt.Errorf("attesting process %d: %w", pid, err)
	case d == nil:
		return nil, nil
	}
	cfg.Log.InfoContext(ctx, "process attested", "pid", pid, "tenant", d.tenant, "agent", d.agent, "isolation", d.isolation)
	return d.selectors(), nil
}

// stranger handles an unregistered process: nobody of ours, unless it lives in
// the namespace of a registered one (an agent beside its init, D12).
func (a *Attestor) stranger(pid int) error {
	p, err := a.proc.Process(pid)
	if err != nil {
		return nil // no identity to give, and nothing known about it
	}
	defer p.Close()
	ns, err := p.Stat("ns/pid")
	if err != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.descs {
		if d.Namespace == ns.Ino {
			return denyf(ReasonNoDescriptor, "in the namespace of process %d", d.PID)
		}
	}
	return nil
}

// check decides about a registered process. The order is: the descriptor's own
// state, identity, everything else, identity again, state again; so nothing
// that was measured can belong to another process, and a claim that arrives
// meanwhile counts.
func (a *Attestor) check(ctx context.Context, cfg Config, d *descriptor) error {
	if err := a.admissible(cfg, d); err != nil {
		return err
	}
	p, err := a.proc.Process(d.PID)
	if err != nil {
		return deny(ReasonGone, err)
	}
	defer p.Close()
	if err := a.sameIdentity(p, d); err != nil {
		return err
	}
	if err := a.measure(ctx, cfg, p, d); err != nil {
		return err
	}
	if err := a.sameIdentity(p, d); err != nil {
		return err
	}
	if err := a.admissible(cfg, d); err != nil {
		return err
	}
	d.attested(cfg.Clock())
	return nil
}

// admissible checks what the attestor itself keeps: life, window, permission.
func (a *Attestor) admissible(cfg Config, d *descriptor) error {
	if !d.alive() {
		return deny(ReasonGone, nil)
	}
	if err := d.window(cfg.Clock()); err != nil {
		return err
	}
	l, ok := cfg.Launchers[d.launcherUID]
	if !ok || l.Tenant != d.tenant {
		return deny(ReasonLauncher, nil)
	}
	if !slices.Contains(l.Agents, d.agent) {
		return deny(ReasonAgent, nil)
	}
	return nil
}

func (a *Attestor) sameIdentity(p process, d *descriptor) error {
	now, err := a.identify(p, d.PID)
	if err != nil {
		return err
	}
	if now != d.identity {
		return deny(ReasonIdentity, nil)
	}
	return nil
}

func (a *Attestor) logDenied(ctx context.Context, cfg Config, pid int, d *descriptor, err error) {
	args := []any{"pid", pid}
	var denied *DeniedError
	if errors.As(err, &denied) {
		args = append(args, "reason", string(denied.Reason), "cause", denied.Err)
	}
	if d != nil {
		args = append(args, "launcher_uid", d.launcherUID, "tenant", d.tenant, "agent", d.agent)
	}
	cfg.Log.WarnContext(ctx, "attestation refused", args...)
}

// initOwner is the uid that must own init and trust file.
func (c Config) initOwner() uint32 {
	if c.AllowUserInit {
		return uint32(os.Geteuid())
	}
	return 0
}

func (d *descriptor) selectors() []string {
	owner := "root"
	if d.userInit {
		owner = "user"
	}
	return []string{
		"tenant:" + string(d.tenant),
		"agent:" + string(d.agent),
		"init_sha256:" + d.initSHA256,
		"isolation:" + d.isolation,
		"backend:" + registry.BackendLocal,
		"image:host",
		"launcher_uid:" + strconv.FormatUint(uint64(d.launcherUID), 10),
		"init_owner:" + owner,
	}
}
