package spireattestor

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/spire-attestor/registry"
)

// The grades of isolation this attestor gives.
const (
	ownUID  = "own_uid"
	sameUID = "same_uid"
)

// A descriptor is what the attestor recorded of one sandbox. All but the last
// group is fixed at registration.
type descriptor struct {
	identity
	pin         pin // the process; dead as soon as it exits
	launcher    pin // the process that registered it
	launcherUID uint32
	tenant      sealed.Name
	agent       sealed.Name
	uid         uint32
	uidMap      []idRange
	isolation   string
	initSHA256  string
	userInit    bool // init belongs to the user, not to root
	registered  time.Time

	mu      sync.Mutex
	first   time.Time // first attestation; zero before it
	claimed bool
	dropped bool
}

// caller is the peer of a registry connection, by the kernel's word.
type caller struct {
	PID int
	UID uint32
	pin pin
}

func (d *descriptor) alive() bool {
	d.mu.Lock()
	dropped := d.dropped
	d.mu.Unlock()
	return !dropped && d.pin.Alive() && d.launcher.Alive()
}

func (d *descriptor) window(now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.claimed:
		return deny(ReasonClaimed, nil)
	case d.first.IsZero() && now.Sub(d.registered) > firstWindow:
		return denyf(ReasonWindow, "first attestation later than %v", firstWindow)
	case !d.first.IsZero() && now.Sub(d.first) > againWindow:
		return denyf(ReasonWindow, "attestation later than %v after the first", againWindow)
	}
	return nil
}

func (d *descriptor) attested(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.first.IsZero() {
		d.first = now
	}
}

func (d *descriptor) claim() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.claimed = true
}

func (a *Attestor) lookup(pid int) *descriptor {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.descs[pid]
}

// drop forgets a descriptor for good, even for an attestation under way.
func (a *Attestor) drop(d *descriptor) {
	d.mu.Lock()
	d.dropped = true
	d.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.descs[d.PID] == d {
		delete(a.descs, d.PID)
	}
}

// register records the process that the caller announced. The pin is taken
// first: whatever has the number then is what all later facts belong to,
// because they are read through a directory that must still show the same
// start time when the pin is still alive at the end.
func (a *Attestor) register(ctx context.Context, c caller, req registry.Request) (*descriptor, error) {
	cfg := a.config()
	l, err := a.permitted(cfg, c, sealed.Name(req.Agent))
	if err != nil {
		return nil, err
	}
	pin, err := a.pin(req.PID)
	if err != nil {
		return nil, deny(ReasonGone, err)
	}
	d := &descriptor{
		identity: identity{PID: req.PID}, pin: pin, launcher: c.pin, launcherUID: c.UID,
		tenant: l.Tenant, agent: sealed.Name(req.Agent), userInit: cfg.AllowUserInit,
	}
	if err := a.settled(ctx, cfg, d); err != nil {
		_ = pin.Close()
		return nil, err
	}
	d.registered = cfg.Clock()
	if err := a.enlist(d); err != nil {
		_ = pin.Close()
		return nil, err
	}
	return d, nil
}

// permitted checks the caller alone.
func (a *Attestor) permitted(cfg Config, c caller, agent sealed.Name) (Launcher, error) {
	l, ok := cfg.Launchers[c.UID]
	if !ok {
		return Launcher{}, denyf(ReasonLauncher, "uid %d is not configured", c.UID)
	}
	if !slices.Contains(l.Agents, agent) {
		return Launcher{}, denyf(ReasonAgent, "uid %d", c.UID)
	}
	p, err := a.proc.Process(c.PID)
	if err != nil {
		return Launcher{}, deny(ReasonLauncher, err)
	}
	defer p.Close()
	st, err := readStatus(p)
	if err != nil {
		return Launcher{}, err
	}
	// An agent with the launcher's uid that found the socket must not start
	// sandboxes inside its own (B28). In a nested namespace it has two numbers.
	if len(st.NSpid) != 1 || !c.pin.Alive() {
		return Launcher{}, denyf(ReasonLauncher, "not a process of the host's pid namespace")
	}
	return l, nil
}

// settled waits until the process has become init. bubblewrap reports its
// child before the child has mapped its uid and executed anything, so those
// two conditions, and only those, may come true late.
func (a *Attestor) settled(ctx context.Context, cfg Config, d *descriptor) error {
	waiting, cancel := context.WithTimeout(ctx, a.settle)
	defer cancel()
	for {
		err := a.observe(ctx, cfg, d)
		if err == nil || !settling(err) {
			return err
		}
		select {
		case <-waiting.Done():
			return err
		case <-d.pin.Gone():
			return deny(ReasonGone, nil)
		case <-time.After(settleEvery):
		}
	}
}

// observe fills the descriptor from the kernel's view, and refuses a process
// that could never be attested.
func (a *Attestor) observe(ctx context.Context, cfg Config, d *descriptor) error {
	p, err := a.proc.Process(d.PID)
	if err != nil {
		return deny(ReasonGone, err)
	}
	defer p.Close()
	if d.identity, err = a.identify(p, d.PID); err != nil {
		return err
	}
	st, err := readStatus(p)
	if err != nil {
		return err
	}
	if err := a.firstOfNamespace(st, d.identity); err != nil {
		return err
	}
	if d.isolation, err = isolationOf(cfg, d.launcherUID, st); err != nil {
		return err
	}
	d.uid = st.UIDs[0]
	// From here on "not yet" is possible. The executable comes first: once it
	// is init, its set-up is over and the rest does not change any more.
	if d.initSHA256, err = a.measureExe(ctx, cfg, p); err != nil {
		return err
	}
	if d.uidMap, err = readUIDMap(p, d.uid); err != nil {
		return err
	}
	if err := a.sameIdentity(p, d); err != nil {
		return err
	}
	if !d.pin.Alive() {
		return deny(ReasonGone, nil)
	}
	return nil
}

// isolationOf grades the process by its uid, or refuses it.
func isolationOf(cfg Config, launcher uint32, st procStatus) (string, error) {
	uid := st.UIDs[0]
	for _, u := range st.UIDs {
		if u != uid || u == 0 {
			return "", denyf(ReasonUID, "root's uid, or several")
		}
	}
	switch {
	case uid == launcher:
		return sameUID, nil
	case launcher == 0 && cfg.RunUIDs.Contains(uid) && !cfg.AllowUserInit:
		return ownUID, nil
	}
	return "", denyf(ReasonUID, "launcher %d may not use uid %d", launcher, uid)
}

// enlist publishes the descriptor, unless the process or a uid that must be
// its own is taken. A descriptor whose process has exited, but whose watcher
// has not run yet, gives way.
func (a *Attestor) enlist(d *descriptor) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, other := range a.descs {
		if !other.alive() {
			continue
		}
		if other.PID == d.PID {
			return deny(ReasonRegistered, nil)
		}
		if d.isolation == ownUID && other.uid == d.uid {
			return deny(ReasonUIDInUse, fmt.Errorf("uid %d", d.uid))
		}
	}
	a.descs[d.PID] = d
	return nil
}
