package relay

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/hashicorp/yamux"

	"sealed.dev/sealed/internal/sealed"
)

// A Client is init's end of the relay. It is safe for concurrent use.
type Client struct {
	session *yamux.Session
}

// NewClient takes over conn, init's end of the socket pair.
func NewClient(conn net.Conn) (*Client, error) {
	s, err := yamux.Client(conn, sessionConfig())
	if err != nil {
		return nil, fmt.Errorf("opening relay: %w", err)
	}
	return &Client{session: s}, nil
}

// Vault returns a connection to the Vault of the trust file. The name to
// verify its certificate against is the trust file's, not the relay's.
// Errors wrap sealed.ErrDenied or sealed.ErrUnavailable.
func (c *Client) Vault(ctx context.Context) (net.Conn, error) {
	return c.open(ctx, sealed.RelayHeader{Kind: KindVault})
}

// Dial returns a connection to addr, host:port, if the run's terms allow it.
// Errors wrap sealed.ErrDenied or sealed.ErrUnavailable.
func (c *Client) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return c.open(ctx, sealed.RelayHeader{Kind: KindDial, Addr: addr})
}

// Control opens the control stream. A session has one; a second call fails.
func (c *Client) Control(ctx context.Context) (*Control, error) {
	s, err := c.open(ctx, sealed.RelayHeader{Kind: KindControl})
	if err != nil {
		return nil, err
	}
	return &Control{s: s}, nil
}

// Flush returns when the host has read everything that was sent before, or
// ctx ends. Call it before process 1 exits: what lies in the socket then is
// still delivered, what lies in this process is not.
func (c *Client) Flush(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		_, err := c.session.Ping()
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("flushing relay: %w: %w", sealed.ErrUnavailable, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("flushing relay: %w", ctx.Err())
	}
}

// Done is closed when the relay is lost. Nothing leaves the sandbox then, and
// init should end the run.
func (c *Client) Done() <-chan struct{} { return c.session.CloseChan() }

// Close ends every stream.
func (c *Client) Close() error { return c.session.Close() }

func (c *Client) open(ctx context.Context, h sealed.RelayHeader) (*stream, error) {
	ys, err := c.session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("opening %s stream: %w: %w", h.Kind, sealed.ErrUnavailable, err)
	}
	s := newStream(ys)
	stop := context.AfterFunc(ctx, func() { _ = ys.SetDeadline(time.Unix(1, 0)) })
	err = exchange(s, h)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = ys.Close()
		return nil, fmt.Errorf("opening %s stream: %w", h.Kind, err)
	}
	return s, nil
}

func exchange(s *stream, h sealed.RelayHeader) error {
	if err := writeLine(s, h, MaxHeader); err != nil {
		return fmt.Errorf("%w: %w", sealed.ErrUnavailable, err)
	}
	line, err := readLine(s.r, MaxHeader)
	if err != nil {
		return fmt.Errorf("%w: %w", sealed.ErrUnavailable, err)
	}
	var st sealed.RelayStatus
	if err := sealed.Decode(line, MaxHeader, &st); err != nil {
		return err
	}
	if reason, denied := strings.CutPrefix(st.Error, deniedPrefix); denied {
		return fmt.Errorf("%w: %s", sealed.ErrDenied, reason)
	}
	if st.Error != "" {
		return fmt.Errorf("%w: %s", sealed.ErrUnavailable, st.Error)
	}
	return nil
}
