package devstack

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// bringUp is one call of Up.
type bringUp struct {
	cfg Config
	l   layout
	ca  *devCA

	vault  version // the servers
	server version
	agent  version
	root   *vaultclient.Client
	init   string // SHA-256 of sealed-init

	mu    sync.Mutex // guards the rest
	state state
	begun []process // by this call
}

func newBringUp(cfg Config, l layout) (*bringUp, error) {
	b := &bringUp{cfg: cfg, l: l}
	var err error
	if b.ca, err = openCA(l, time.Now()); err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	old, err := readState(l)
	if err != nil {
		return nil, err
	}
	if old == nil {
		old = &state{V: 1, Identity: cfg.Identity, Tenant: cfg.Tenant, TrustDomain: sealed.ReservedTrustDomain}
		if cfg.Identity == IdentitySPIRE {
			old.TrustDomain = spireTrustDomain
		}
		if err := choosePorts(old); err != nil {
			return nil, err
		}
		for _, name := range []string{"vault", "bundle"} {
			if err := b.ca.issue(l, name, time.Now()); err != nil {
				return nil, err
			}
		}
	}
	if old.Identity != cfg.Identity || old.Tenant != cfg.Tenant {
		return nil, fmt.Errorf("the stack in %s has identity %s and tenant %s; remove it first: %w", l.dir, old.Identity, old.Tenant, sealed.ErrConflict)
	}
	if old.BootID != boot {
		old.BootID, old.Processes = boot, nil
	}
	old.Launchers = append([]int{os.Geteuid()}, cfg.Launchers...)
	b.state = *old
	return b, b.save()
}

// choosePorts picks ports once; raft remembers its own, so they stay.
func choosePorts(s *state) error {
	var addrs [4]string
	for i := range addrs {
		// All four are held until the last is known, so that they differ.
		ln, err := Listen()
		if err != nil {
			return fmt.Errorf("choosing ports: %w", err)
		}
		defer ln.Close()
		addrs[i] = ln.Addr().String()
	}
	s.VaultAddr, s.ClusterAddr, s.BundleAddr = "https://"+addrs[0], "https://"+addrs[1], addrs[2]
	_, port, err := net.SplitHostPort(addrs[3])
	if err != nil {
		return fmt.Errorf("choosing ports: %w", err)
	}
	s.SPIREPort, err = strconv.Atoi(port)
	return err
}

// Listen listens on a port of loopback, for a server that will be started there
// later, and perhaps again. It takes one below those that Linux gives to
// connections by itself (ip_local_port_range begins at 32768): of these any may
// be somebody's by then.
func Listen() (net.Listener, error) {
	const first, end, tries = 10000, 32768, 100
	for range tries {
		ln, err := net.Listen("tcp4", "127.0.0.1:"+strconv.Itoa(first+rand.IntN(end-first)))
		if err == nil {
			return ln, nil
		}
	}
	return net.Listen("tcp4", "127.0.0.1:0")
}

// run brings up Vault while our programs are built, then joins the two.
func (b *bringUp) run(ctx context.Context) error {
	var bundle *policyBundle
	err := parallel(ctx,
		func(ctx context.Context) error {
			if err := b.findServers(ctx); err != nil {
				return err
			}
			if err := b.startVault(ctx); err != nil {
				return err
			}
			return b.setUpAccess(ctx)
		},
		func(ctx context.Context) error {
			if err := installOwn(ctx, b.cfg, b.l); err != nil {
				return err
			}
			var err error
			b.init, err = fileSHA256(b.l.bin(binInit))
			return err
		},
		func(ctx context.Context) (err error) {
			bundle, err = b.policyBundle(ctx)
			return err
		},
	)
	if err != nil {
		return err
	}
	if err := b.startIdentity(ctx); err != nil {
		return err
	}
	if err := b.setUpEngine(ctx, bundle); err != nil {
		return err
	}
	// The trust file is there before the first attestation.
	if err := b.writeTrust(ctx); err != nil {
		return err
	}
	if err := b.startSPIREAgent(ctx); err != nil {
		return err
	}
	return b.change(func(s *state) { s.Ready = true })
}

func (b *bringUp) findServers(ctx context.Context) error {
	to := map[string]*version{"vault": &b.vault, "spire-server": &b.server, "spire-agent": &b.agent}
	found, err := findServers(ctx, b.cfg)
	if err != nil {
		return err
	}
	for _, v := range found {
		*to[v.Name] = v
	}
	return b.change(func(s *state) { s.Versions = found })
}

// start starts a server and records it before it is waited for, so that Down
// finds it whatever happens next. ready is called until it gives no error.
func (b *bringUp) start(ctx context.Context, name string, argv []string, ready func(context.Context) error) error {
	b.cfg.progress("starting "+name, 0, 0)
	b.cfg.Log.InfoContext(ctx, "starting", "process", name)
	log := b.l.log(name)
	p, err := start(command{name: name, argv: argv, log: log, tmp: b.l.temporary(), dieWithParent: b.cfg.DieWithParent})
	if err != nil {
		return err
	}
	err = b.change(func(s *state) {
		s.setProcess(p.process)
		b.begun = append(b.begun, p.process)
	})
	if err != nil {
		return errors.Join(err, p.stop(context.WithoutCancel(ctx), true))
	}
	return p.await(ctx, log, startLimit, ready)
}

// running tells whether a process of the stack lives.
func (b *bringUp) running(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.state.process(name)
	return ok && p.alive()
}

// clear ends what is left of a process, so that it can be started again.
func (b *bringUp) clear(ctx context.Context, name string) error {
	b.mu.Lock()
	p, ok := b.state.process(name)
	b.mu.Unlock()
	if !ok {
		return nil
	}
	return p.stop(ctx, false)
}

// undo stops what this call has started.
func (b *bringUp) undo(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return stopAll(ctx, &state{BootID: b.state.BootID, Processes: b.begun}, false)
}

func (b *bringUp) change(f func(*state)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.state)
	return writeState(b.l, &b.state)
}

func (b *bringUp) save() error { return b.change(func(*state) {}) }

func (b *bringUp) ready() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Ready
}

// parallel runs all functions and cancels the rest when one fails. It returns
// that first error, not the cancellations that follow from it.
func parallel(ctx context.Context, fs ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				cancel(err) // the first cause stays
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
