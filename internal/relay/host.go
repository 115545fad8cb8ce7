package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"sealed.dev/sealed/internal/sealed"
)

// A Denied report says that init asked for an address and was refused. Addr is
// the agent's text, but only if it is a well-formed host:port.
type Denied struct {
	Addr   string
	Reason string
	Count  int // since the last report of the same kind
}

// A Host is the outer end of the relay of one run.
type Host struct {
	Policy Policy
	// Control is called once, when init opens the control stream, and owns
	// it. The stream ends when Control returns. Nil refuses the stream.
	Control func(context.Context, *Control)
	// OnDenied receives refusals: the first of its kind at once, repetitions
	// in sums. It must not block. Nil drops them.
	OnDenied func(Denied)
	// Resolver and Dial are the host's; nil means net's.
	Resolver Resolver
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)

	streams atomic.Int64
	control atomic.Bool
	denied  tally
}

// Serve answers init over conn, which it takes over, until the session or ctx
// ends. It returns after every stream has ended: nil if ctx ended it, the
// cause otherwise (io.EOF when init closed its end).
func (h *Host) Serve(ctx context.Context, conn net.Conn) error {
	session, err := yamux.Server(conn, sessionConfig())
	if err != nil {
		return errors.Join(fmt.Errorf("opening relay: %w", err), conn.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()
	wg.Go(func() { h.denied.run(ctx, h.OnDenied) })
	for {
		ys, err := session.AcceptStream()
		if err != nil {
			_ = session.Close()
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() {
			defer ys.Close()
			stop := context.AfterFunc(ctx, func() { _ = ys.Close() })
			defer stop()
			h.serve(ctx, ys)
		})
	}
}

// serve handles one stream.
func (h *Host) serve(ctx context.Context, ys *yamux.Stream) {
	s := newStream(ys)
	if h.streams.Add(1) > MaxStreams {
		h.streams.Add(-1)
		_ = answer(s, errors.New("too many streams"))
		return
	}
	defer h.streams.Add(-1)
	_ = s.SetDeadline(time.Now().Add(headerTimeout))
	line, err := readLine(s.r, MaxHeader)
	if err != nil {
		return
	}
	var header sealed.RelayHeader
	if err := sealed.Decode(line, MaxHeader, &header); err != nil {
		_ = answer(s, ReasonMalformed)
		return
	}
	_ = s.SetDeadline(time.Time{})
	switch header.Kind {
	case KindControl:
		h.serveControl(ctx, s)
	case KindVault, KindDial:
		h.serveDial(ctx, s, header)
	default:
		_ = answer(s, ReasonMalformed)
	}
}

func (h *Host) serveControl(ctx context.Context, s *stream) {
	if h.Control == nil || h.control.Swap(true) {
		_ = answer(s, denial("control_stream_taken"))
		return
	}
	if answer(s, nil) == nil {
		h.Control(ctx, &Control{s: s})
	}
}

func (h *Host) serveDial(ctx context.Context, s *stream, header sealed.RelayHeader) {
	up, err := h.connect(ctx, header)
	if err != nil {
		_ = answer(s, err)
		return
	}
	defer up.Close()
	if answer(s, nil) != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = up.Close() })
	defer stop()
	splice(s, up)
}

// connect decides, resolves and dials.
func (h *Host) connect(ctx context.Context, header sealed.RelayHeader) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if header.Kind == KindVault {
		return h.connectVault(ctx, header)
	}
	addrs, err := h.targets(ctx, header.Addr)
	if err != nil {
		var no denial
		if errors.As(err, &no) {
			h.report(header.Addr, no)
		}
		return nil, err
	}
	for _, a := range addrs {
		conn, dialErr := h.dial(ctx, a.String())
		if dialErr == nil {
			return conn, nil
		}
	}
	return nil, errors.New("connection failed")
}

// connectVault dials the address that root wrote into the trust file, as it
// is: Vault is usually private.
func (h *Host) connectVault(ctx context.Context, header sealed.RelayHeader) (net.Conn, error) {
	if h.Policy.Vault == "" || header.Addr != "" {
		h.report("vault", ReasonNoVault)
		return nil, ReasonNoVault
	}
	addr := h.Policy.Vault
	if to, ok := h.Policy.Map[addr]; ok {
		addr = to
	}
	conn, err := h.dial(ctx, addr)
	if err != nil {
		return nil, errors.New("connection to vault failed")
	}
	return conn, nil
}

func (h *Host) targets(ctx context.Context, addr string) ([]netip.AddrPort, error) {
	host, port, err := splitTarget(addr)
	if err != nil {
		return nil, err
	}
	if !h.Policy.allows(host, port) {
		return nil, ReasonUnlisted
	}
	return h.Policy.resolve(ctx, h.resolver(), host, port)
}

func (h *Host) resolver() Resolver {
	if h.Resolver != nil {
		return h.Resolver
	}
	return net.DefaultResolver
}

func (h *Host) dial(ctx context.Context, addr string) (net.Conn, error) {
	if h.Dial != nil {
		return h.Dial(ctx, "tcp", addr)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

func (h *Host) report(addr string, reason denial) {
	if reason == ReasonMalformed {
		addr = "" // not a name: it could be anything, a value too
	}
	h.denied.add(Denied{Addr: addr, Reason: string(reason)}, h.OnDenied)
}

// answer writes the status. Only denials and our own short texts get here.
func answer(s *stream, err error) error {
	var st sealed.RelayStatus
	var no denial
	switch {
	case errors.As(err, &no):
		st.Error = deniedPrefix + string(no)
	case err != nil:
		st.Error = err.Error()
	}
	return writeLine(s, st, MaxHeader)
}

// linger bounds how long a stream may stand still after init has ended its
// side. Yamux can't tell "no more from me" from "I am gone".
const linger = 2 * time.Minute

// splice carries bytes both ways until both directions have ended. The end of
// one is passed on and leaves the other open; an error ends both.
func splice(s *stream, up net.Conn) {
	var ended atomic.Bool // init's side
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := io.Copy(up, s); err != nil {
			_ = up.Close()
			return
		}
		ended.Store(true)
		_ = s.SetWriteDeadline(time.Now().Add(linger))
		_ = up.SetReadDeadline(time.Now().Add(linger))
		if half, ok := up.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	})
	wg.Go(func() {
		err := download(s, up, &ended)
		_ = s.CloseWrite()
		if err != nil {
			_ = s.SetReadDeadline(time.Unix(1, 0))
		}
	})
	wg.Wait()
}

// download copies towards init, and once init's side has ended gives each step
// its own time.
func download(s *stream, up net.Conn, ended *atomic.Bool) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := up.Read(buf)
		if ended.Load() {
			_ = s.SetWriteDeadline(time.Now().Add(linger))
			_ = up.SetReadDeadline(time.Now().Add(linger))
		}
		if n > 0 {
			if _, err := s.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
