package attack

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sandbox/local"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/spire-attestor/registry"

	"sealed.dev/sealed/test/harness"
)

// A launcher starts one sandbox with the real sealed-init in it and lies where
// a test tells it to. The zero value of every optional field is what an honest
// launcher does. It plays the operator of the host whom Sealed doesn't trust
// (C09, C10, R04, R05), with one privilege more: it may start own_uid sandboxes.
type launcher struct {
	agent    sealed.Name
	boot     sealed.Boot
	trust    string         // path of the trust file that init gets
	spiffe   string         // path of the socket that init gets
	driver   sandbox.Driver // nil: the real one
	init     string         // what runs as process 1
	readOnly []string
	bound    []string
	vault    string // where the relay really leads when init asks for Vault
	// claimed tells the attestor, before init could ask for its identity, that
	// the run is claimed.
	claimed bool
	// honor tells the attestor when init says that it has claimed, as the real
	// launcher does, and answers init.
	honor bool
	// unregistered leaves the attestor in the dark.
	unregistered bool
	// pause is the time between registration and the boot document.
	pause time.Duration
	// ready, if set, is awaited between start and registration.
	ready func(pid int) bool
}

// An outcome is how a launch ended.
type outcome struct {
	exit           int
	stdout, stderr string
	registered     error // of the attestor
	messages       []sealed.RelayControl
}

func (o outcome) claimed() bool {
	for _, m := range o.messages {
		if m.Type == relay.ControlClaimed {
			return true
		}
	}
	return false
}

// run starts the sandbox and waits for its end.
func (l launcher) run(t *testing.T, w *world) outcome {
	t.Helper()
	l = l.honest(w)
	dir := openDir(t)
	ws := filepath.Join(dir, "workspace")
	uid := 700000 + rand.IntN(99999)
	harness.Must(t, os.Mkdir(ws, 0o700))
	harness.Must(t, os.Chown(ws, uid, uid))
	p := newPipes(t, l)
	box, err := l.driver.Start(t.Context(), sandbox.Spec{
		UID: uid, GID: uid, Isolation: sealed.IsolationOwnUID, Init: l.init, Command: w.Status.AgentPath, Workspace: ws, ReadOnly: l.readOnly,
		Stdin: p.null, Stdout: p.outW, Stderr: p.errW, Relay: p.relayFar, Boot: p.bootR, Trust: p.trust, SPIFFE: p.spiffe,
	})
	p.handOver()
	harness.Must(t, err)
	t.Cleanup(func() { _ = box.Kill() })
	return l.attend(t, w, box, p)
}

func (l launcher) honest(w *world) launcher {
	set := func(dst *string, v string) {
		if *dst == "" {
			*dst = v
		}
	}
	set(&l.trust, w.Status.TrustFile)
	set(&l.spiffe, w.Status.SPIFFESocket)
	set(&l.init, w.Status.InitPath)
	set((*string)(&l.agent), string(agentName))
	if l.driver == nil {
		l.driver = local.Driver{}
	}
	return l
}

func (l launcher) attend(t *testing.T, w *world, box sandbox.Sandbox, p *pipes) outcome {
	t.Helper()
	var out outcome
	var mu sync.Mutex
	registered := make(chan *registry.Registration, 1)
	vault, err := relay.VaultHostPort(w.forge.Trust.VaultAddr)
	harness.Must(t, err)
	host := &relay.Host{
		Policy: relay.Policy{Vault: vault, Network: sealed.NetworkNone, Bound: l.bound, Map: w.forge.Trust.Relay},
		Control: func(_ context.Context, c *relay.Control) {
			for {
				m, err := c.Receive()
				if err != nil {
					return
				}
				mu.Lock()
				out.messages = append(out.messages, m)
				mu.Unlock()
				if l.honor && m.Type == relay.ControlClaimed {
					if (<-registered).Claimed() == nil {
						_ = c.Send(sealed.RelayControl{Type: "signal"})
					}
				}
			}
		},
	}
	if l.vault != "" {
		host.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == vault {
				addr = l.vault
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = host.Serve(ctx, p.relayNear) })
	var stdout, stderr bytes.Buffer
	all.Go(func() { _, _ = io.Copy(&stdout, p.outR) })
	all.Go(func() { _, _ = io.Copy(&stderr, p.errR) })
	out.registered = l.register(t, w, box, registered)
	boot, err := json.Marshal(l.boot)
	harness.Must(t, err)
	time.Sleep(l.pause)
	_, _ = p.bootW.Write(boot)
	_ = p.bootW.Close()
	out.exit = await(t, box)
	stop()
	all.Wait()
	out.stdout, out.stderr = stdout.String(), stderr.String()
	return out
}

func (l launcher) register(t *testing.T, w *world, box sandbox.Sandbox, registered chan<- *registry.Registration) error {
	t.Helper()
	if l.ready != nil {
		harness.Eventually(t, 10*time.Second, "process 1 is ready", func() bool { return l.ready(box.InitPID()) })
	}
	if l.unregistered {
		return nil
	}
	reg, err := registry.Register(t.Context(), w.Status.AttestSocket, registry.Descriptor{Agent: l.agent, PID: box.InitPID()})
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = reg.Close() })
	registered <- reg
	if l.claimed {
		return reg.Claimed()
	}
	return nil
}

func await(t *testing.T, box sandbox.Sandbox) int {
	t.Helper()
	done := make(chan int, 1)
	go func() {
		exit, _ := box.Wait()
		done <- exit
	}()
	select {
	case exit := <-done:
		return exit
	case <-time.After(60 * time.Second):
		_ = box.Kill()
		t.Fatal("the sandbox does not end")
		return 0
	}
}

// pipes are the descriptors of a launch.
type pipes struct {
	null, outW, errW, relayFar, bootR, trust, spiffe *os.File // for the sandbox
	outR, errR, bootW                                *os.File
	relayNear                                        net.Conn
}

func newPipes(t *testing.T, l launcher) *pipes {
	t.Helper()
	p := &pipes{}
	var err error
	p.null, err = os.Open(os.DevNull)
	harness.Must(t, err)
	p.outR, p.outW, err = os.Pipe()
	harness.Must(t, err)
	p.errR, p.errW, err = os.Pipe()
	harness.Must(t, err)
	p.bootR, p.bootW, err = os.Pipe()
	harness.Must(t, err)
	p.trust, err = os.Open(l.trust)
	harness.Must(t, err)
	fd, err := unix.Open(l.spiffe, unix.O_PATH|unix.O_CLOEXEC, 0)
	harness.Must(t, err)
	p.spiffe = os.NewFile(uintptr(fd), "spiffe")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	harness.Must(t, err)
	p.relayFar = os.NewFile(uintptr(pair[1]), "relay")
	near := os.NewFile(uintptr(pair[0]), "relay")
	p.relayNear, err = net.FileConn(near)
	harness.Must(t, err)
	harness.Must(t, near.Close())
	t.Cleanup(func() {
		for _, c := range []io.Closer{p.outR, p.errR, p.bootW, p.relayNear} {
			_ = c.Close()
		}
	})
	return p
}

// handOver closes what only the sandbox needs.
func (p *pipes) handOver() {
	for _, f := range []*os.File{p.null, p.outW, p.errW, p.relayFar, p.bootR, p.trust, p.spiffe} {
		_ = f.Close()
	}
}
