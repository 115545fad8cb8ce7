package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// claimTimeout bounds the round trip of Claimed.
const claimTimeout = 5 * time.Second

// A Registration is an open announcement. Its methods are safe for concurrent
// use. The zero value is not usable.
type Registration struct {
	// Isolation is the attestor's grade, "own_uid" or "same_uid". It comes
	// from the kernel's view of the process, not from the launcher.
	Isolation string
	// InitSHA256 is the digest the attestor measured, in lower-case hex.
	InitSHA256 string

	conn net.Conn
	mu   sync.Mutex // serialises Claimed
}

// Register announces a sandbox on the registry socket and waits until the
// attestor has measured its process 1. The attestor waits a few seconds for
// the sandbox's set-up to finish, so Register may be called as soon as the pid
// is known.
//
// An attestor's refusal wraps sealed.ErrDenied and carries its reason; a
// socket that does not answer wraps sealed.ErrUnavailable. The caller closes
// the Registration when the run is over, and not before: closing it, like the
// exit of the calling process, ends the sandbox's right to an identity.
func Register(ctx context.Context, socket string, d Descriptor) (*Registration, error) {
	if d.Backend == "" {
		d.Backend = BackendLocal
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("dialing attestor registry: %w: %w", sealed.ErrUnavailable, err)
	}
	ans, err := ask(ctx, conn, Request{V: Version, Agent: string(d.Agent), Backend: d.Backend, PID: d.PID})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("registering sandbox: %w", err), conn.Close())
	}
	return &Registration{Isolation: ans.Isolation, InitSHA256: ans.InitSHA256, conn: conn}, nil
}

// Claimed tells the attestor that init has claimed its run: from its return on
// the process is attested no more. It is idempotent towards the attestor.
func (r *Registration) Claimed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), claimTimeout)
	defer cancel()
	if _, err := ask(ctx, r.conn, Notice{Claimed: true}); err != nil {
		return fmt.Errorf("closing attestation window: %w", err)
	}
	return nil
}

// Close drops the descriptor.
func (r *Registration) Close() error { return r.conn.Close() }

// ask sends one line and reads one, until ctx ends. An attestor that refuses a
// launcher answers and hangs up before it has read anything, so a line that
// could not be sent whole does not mean that no answer waits.
func ask(ctx context.Context, conn net.Conn, line any) (Answer, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	sent := WriteLine(conn, line)
	if sent != nil && !errors.Is(sent, syscall.EPIPE) {
		return Answer{}, fmt.Errorf("%w: %w", sealed.ErrUnavailable, sent)
	}
	b, err := ReadLine(conn)
	if err != nil {
		return Answer{}, fmt.Errorf("%w: %w", sealed.ErrUnavailable, cmp.Or(sent, err))
	}
	var ans Answer
	if err := decode(b, &ans); err != nil {
		return Answer{}, err
	}
	if !ans.OK {
		return Answer{}, fmt.Errorf("%w by attestor: %s", sealed.ErrDenied, ans.Error)
	}
	return ans, nil
}
