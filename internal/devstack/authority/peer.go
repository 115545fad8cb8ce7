package authority

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// peerProcess is the process that connected, pinned. It is the AuthInfo of
// every call on the connection.
type peerProcess struct {
	pid int

	mu sync.Mutex
	fd int // pidfd; -1 when the connection is closed
}

// AuthType implements credentials.AuthInfo.
func (*peerProcess) AuthType() string { return "unix-peer" }

// alive asks the pidfd: readable means exited. A closed connection has no peer.
func (p *peerProcess) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 0
		}
	}
}

func (p *peerProcess) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
		p.fd = -1
	}
}

// pinnedConn closes the pidfd with the connection.
type pinnedConn struct {
	net.Conn
	peer *peerProcess
}

func (c pinnedConn) Close() error {
	c.peer.close()
	return c.Conn.Close()
}

// peerCredentials is a transport without encryption, for Unix sockets: its
// handshake is a question to the kernel.
type peerCredentials struct{}

func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := pinPeer(conn)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return pinnedConn{Conn: conn, peer: p}, p, nil
}

func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials serve only")
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peer"}
}

func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

func (peerCredentials) OverrideServerName(string) error { return nil }

// pinPeer uses SO_PEERPIDFD, which refers to the process that connected even
// if that has exited (then the call fails); kernels before 6.5 do not know it,
// and there the number is pinned and asked for once more.
func pinPeer(conn net.Conn) (*peerProcess, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("asking for peer: not a Unix connection")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("asking for peer: %w", err)
	}
	p := &peerProcess{fd: -1}
	var callErr error
	if err := raw.Control(func(s uintptr) { callErr = p.ask(int(s)) }); err != nil {
		return nil, fmt.Errorf("asking for peer: %w", err)
	}
	if callErr != nil {
		return nil, fmt.Errorf("asking for peer: %w", callErr)
	}
	return p, nil
}

func (p *peerProcess) ask(socket int) error {
	cred, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	if cred.Pid <= 0 {
		return errors.New("peer outside this pid namespace")
	}
	p.pid = int(cred.Pid)
	p.fd, err = unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		p.fd, err = unix.PidfdOpen(p.pid, 0)
	}
	if err != nil {
		p.fd = -1
	}
	return err
}
