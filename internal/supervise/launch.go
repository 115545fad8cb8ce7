package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/workspace"
)

// An owner is the state of one run.
type owner struct {
	cfg      Config
	started  time.Time
	lease    *uidLease // with own_uid
	uid, gid int       // of the sandbox
	dir      string
	baseline *workspace.Baseline // nil without a workspace

	box     sandbox.Sandbox
	trust   sealed.TrustFile
	exited  chan struct{}   // closed when the sandbox has ended; waitErr is set then
	lost    chan struct{}   // closed when the relay has ended
	outputs chan error      // one from each copier of output
	met     <-chan struct{} // closed when this run has left the watch of the host
	stop    context.CancelFunc
	waitErr error
	closers []io.Closer

	meeting *meeting // nil: none
	feed    *feed
	bound   chan *relay.Control // gets the control stream once, when the run is claimed

	mu      sync.Mutex
	reg     Registration // nil without an identity
	control *relay.Control
	early   []sealed.RelayControl // sent before control was there
	last    *sealed.RelayControl  // "finished"
	failure *sealed.RelayControl  // "failed"
}

// words returns what init said about its end.
func (o *owner) words() (finished, failed *sealed.RelayControl) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last, o.failure
}

// release gives back what the run held in this process.
func (o *owner) release() {
	if o.reg != nil {
		_ = o.reg.Close()
	}
	for _, c := range o.closers {
		_ = c.Close()
	}
	if o.lease != nil {
		_ = o.lease.lock.Close()
	}
}

// handed are the files that the sandbox gets. They are closed here as soon as
// it has them, so that their ends are seen.
type handed struct{ files []*os.File }

func (h *handed) add(f *os.File) *os.File {
	h.files = append(h.files, f)
	return f
}

func (h *handed) close() {
	for _, f := range h.files {
		_ = f.Close()
	}
}

// launch starts the sandbox, serves its relay, registers it, and only then
// tells init what to run.
func (o *owner) launch(ctx context.Context) error {
	boot, err := json.Marshal(o.cfg.Boot)
	if err != nil || len(boot) > sealed.MaxBoot {
		return errors.Join(&sealed.FieldError{Field: "boot", Reason: "command and input are over 8 MiB"}, err)
	}
	var h handed
	defer h.close()
	spec := sandbox.Spec{
		Run: o.cfg.Run, UID: o.uid, GID: o.gid, Isolation: o.cfg.Sandbox.Isolation, Init: o.cfg.Init, Command: o.cfg.Command,
		Workspace: o.copyPath(), ReadOnly: o.cfg.ReadOnly, Limits: o.cfg.Limits,
	}
	if err := o.openTrust(&h, &spec); err != nil {
		return err
	}
	ours, err := o.openPipes(&h, &spec)
	if err != nil {
		return err
	}
	host, err := o.host()
	if err != nil {
		return err
	}
	if o.box, err = o.cfg.Driver.Start(ctx, spec); err != nil {
		return err
	}
	h.close()
	o.serve(host, ours)
	if err := o.admit(ctx); err != nil {
		return errors.Join(err, o.abandon())
	}
	if err := o.status(StateRunning, Result{}); err != nil {
		return errors.Join(err, o.abandon())
	}
	go func() {
		_, _ = ours.boot.Write(boot) // fails if init ends first, which is seen elsewhere
		_ = ours.boot.Close()
	}()
	return nil
}

// admit registers the sandbox with the attestor.
func (o *owner) admit(ctx context.Context) error {
	if !o.cfg.identity() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	reg, err := o.cfg.Registrar.Register(ctx, o.cfg.Agent, o.cfg.Sandbox.Isolation, o.box.InitPID())
	if err != nil {
		return err
	}
	o.mu.Lock()
	o.reg = reg
	o.mu.Unlock()
	return nil
}

// abandon ends a sandbox that was not told what to run.
func (o *owner) abandon() error {
	err := o.box.Kill()
	<-o.exited
	o.hearOut()
	return err
}

// openTrust opens the trust file and reads it through the very descriptor that
// init gets, without moving its offset, and opens the Workload API socket
// without connecting.
func (o *owner) openTrust(h *handed, spec *sandbox.Spec) error {
	fd, err := unix.Open(o.cfg.TrustFile, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening trust file %s: %w", o.cfg.TrustFile, err)
	}
	spec.Trust = h.add(os.NewFile(uintptr(fd), "trust"))
	if st, err := spec.Trust.Stat(); err != nil || !st.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("opening trust file %s: not a regular file", o.cfg.TrustFile), err)
	}
	data, err := io.ReadAll(io.NewSectionReader(spec.Trust, 0, sealed.MaxTrustFile+1))
	if err != nil {
		return fmt.Errorf("reading trust file: %w", err)
	}
	if o.trust, err = sealed.ParseTrustFile(data); err != nil {
		return fmt.Errorf("parsing trust file: %w", err)
	}
	socket := o.trust.SPIFFESocket
	if !o.cfg.identity() {
		socket = os.DevNull
	}
	fd, err = unix.Open(socket, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening workload API socket %s: %w", socket, err)
	}
	spec.SPIFFE = h.add(os.NewFile(uintptr(fd), "spiffe"))
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || o.cfg.identity() && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.Join(fmt.Errorf("opening workload API socket %s: not a socket", socket), err)
	}
	return nil
}

// ends are what this process keeps.
type ends struct {
	relay          net.Conn
	boot, stdin    *os.File
	stdout, stderr *os.File
}

// openPipes makes the relay's socket pair and the pipes.
func (o *owner) openPipes(h *handed, spec *sandbox.Spec) (ends, error) {
	var e ends
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return e, fmt.Errorf("making relay: %w", err)
	}
	spec.Relay = h.add(os.NewFile(uintptr(pair[1]), "relay"))
	near := os.NewFile(uintptr(pair[0]), "relay")
	e.relay, err = net.FileConn(near)
	_ = near.Close()
	if err != nil {
		return e, fmt.Errorf("making relay: %w", err)
	}
	o.closers = append(o.closers, e.relay)
	var errs [4]error
	spec.Boot, e.boot, errs[0] = o.pipe(h, true)
	spec.Stdout, e.stdout, errs[1] = o.pipe(h, false)
	spec.Stderr, e.stderr, errs[2] = o.pipe(h, false)
	if o.cfg.Boot.Interactive && o.cfg.Stdin != nil {
		spec.Stdin, e.stdin, errs[3] = o.pipe(h, true)
	} else {
		var null *os.File
		null, errs[3] = os.Open(os.DevNull)
		spec.Stdin = h.add(null)
	}
	return e, errors.Join(errs[:]...)
}

// pipe returns the sandbox's end and ours.
func (o *owner) pipe(h *handed, inward bool) (theirs, ours *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	theirs, ours = w, r
	if inward {
		theirs, ours = r, w
	}
	o.closers = append(o.closers, ours)
	return h.add(theirs), ours, nil
}

// host builds the relay from the trust file and the run's terms.
func (o *owner) host() (*relay.Host, error) {
	policy := relay.Policy{
		Network: o.cfg.Sandbox.Network, Bound: o.cfg.Bound, Allow: o.cfg.Sandbox.Allow, Map: o.trust.Relay,
	}
	vault, err := relay.VaultHostPort(o.trust.VaultAddr)
	if err != nil {
		return nil, err
	}
	policy.Forbidden = []string{vault}
	if o.cfg.identity() {
		policy.Vault = vault
	}
	return &relay.Host{Policy: policy, Control: o.converse, OnDenied: o.cfg.OnDenied}, nil
}

// serve starts everything that goes on while the sandbox runs.
func (o *owner) serve(host *relay.Host, e ends) {
	ctx, cancel := context.WithCancel(context.Background())
	o.stop = cancel
	o.exited, o.lost, o.outputs = make(chan struct{}), make(chan struct{}), make(chan error, 2)
	o.met = o.meet(ctx)
	go func() {
		defer close(o.lost)
		_ = host.Serve(ctx, e.relay)
	}()
	go func() {
		defer close(o.exited)
		_, o.waitErr = o.box.Wait()
	}()
	for _, s := range []struct {
		from *os.File
		log  string
		to   io.Writer
	}{{e.stdout, "stdout.log", o.cfg.Stdout}, {e.stderr, "stderr.log", o.cfg.Stderr}} {
		go func() { o.outputs <- record(s.from, filepath.Join(o.dir, s.log), s.to) }()
	}
	if e.stdin != nil {
		go func() {
			_, _ = io.Copy(e.stdin, o.cfg.Stdin)
			_ = e.stdin.Close()
		}()
	}
}

// record copies a stream to its log, and to a viewer as long as that takes it:
// a closed terminal must not end the log. Without a log nothing is shown.
func record(from *os.File, path string, viewer io.Writer) error {
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("opening log: %w", err)
	}
	defer log.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := log.Write(buf[:n]); err != nil {
				return fmt.Errorf("writing log: %w", err)
			}
			if viewer != nil {
				if _, err := viewer.Write(buf[:n]); err != nil {
					viewer = nil
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading output: %w", err)
		}
	}
}
