package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// parseAuthority accepts host:port of a CONNECT in the one form that is
// compared everywhere: a DNS name, no trailing dot, no user, no IP literal, a
// decimal port. Upper-case letters are folded once, here.
func parseAuthority(s string) (host, hostPort string, err error) {
	lower := strings.ToLower(s)
	host, port, ok := strings.Cut(lower, ":")
	if !ok || port == "" || sealed.ValidateHost(host+":"+port) != nil {
		return "", "", fmt.Errorf("CONNECT wants host:port with a DNS name: %w", sealed.ErrInvalid)
	}
	return host, host + ":" + port, nil
}

// connect serves CONNECT: bound hosts are terminated, others tunnelled when
// the network mode has them.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	host, hostPort, err := parseAuthority(r.RequestURI)
	if err != nil || !strings.EqualFold(r.Host, r.RequestURI) {
		p.deny(w, EventDenied, "", "malformed_authority", http.StatusBadRequest, "CONNECT wants host:port with a DNS name")
		return
	}
	switch {
	case slices.Contains(p.cfg.Hosts, hostPort):
		p.terminate(w, r, host, hostPort)
	case p.allowed(host):
		p.tunnel(w, r, hostPort)
	default:
		p.deny(w, EventDenied, "", hostPort, http.StatusForbidden,
			"host "+host+" is neither bound to a key of this run nor on its network list; the profile's owner can add a binding")
	}
}

// allowed reports whether an unbound host may be tunnelled to. An empty list
// means none.
func (p *Proxy) allowed(host string) bool {
	switch p.cfg.Network {
	case sealed.NetworkFull:
		return true
	case sealed.NetworkAllowlist:
		return slices.ContainsFunc(p.cfg.Allow, func(a string) bool {
			a, _, _ = strings.Cut(a, ":")
			if suffix, ok := strings.CutPrefix(a, "*"); ok {
				return strings.HasSuffix(host, suffix) && len(host) > len(suffix)
			}
			return host == a
		})
	}
	return false
}

// hijack answers the CONNECT and takes the connection over.
func hijack(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("taking over the connection: %w", err)
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, rw, nil
}

// tunnel copies bytes both ways. They can't be looked into.
func (p *Proxy) tunnel(w http.ResponseWriter, r *http.Request, hostPort string) {
	ctx, cancel, ok := p.leave(r.Context(), nil)
	if !ok {
		refuse(w, http.StatusServiceUnavailable, "frozen: no contact with the engine")
		return
	}
	defer cancel()
	dialCtx, done := context.WithTimeout(ctx, 15*time.Second)
	up, err := p.cfg.Dial(dialCtx, hostPort)
	done()
	if err != nil {
		p.deny(w, EventDenied, "", hostPort, http.StatusBadGateway, "the host can't be reached from this run")
		return
	}
	p.cfg.Event(EventAllowed, "", hostPort)
	conn, rw, err := hijack(w)
	if err != nil {
		_ = up.Close()
		return
	}
	var once sync.Once
	end := func() { once.Do(func() { _, _ = conn.Close(), up.Close() }) }
	defer end()
	stop := context.AfterFunc(ctx, end)
	defer stop()
	go func() {
		_, _ = io.Copy(up, rw)
		if c, ok := up.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	}()
	_, _ = io.Copy(conn, up)
}

// terminate speaks TLS as the bound host, with the run's CA, and serves the
// requests within. CONNECT, SNI and Host must name the same host.
func (p *Proxy) terminate(w http.ResponseWriter, r *http.Request, host, hostPort string) {
	if len(p.byHost(hostPort)) == 0 {
		refuse(w, http.StatusServiceUnavailable, "no live credential for "+host+"; see `sealed keys`")
		return
	}
	raw, rw, err := hijack(w)
	if err != nil {
		return
	}
	defer func() { _ = raw.Close() }()
	stop := context.AfterFunc(r.Context(), func() { _ = raw.Close() })
	defer stop()
	conn := tls.Server(buffered{raw, rw.Reader}, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Time: p.cfg.Clock,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !strings.EqualFold(hello.ServerName, host) {
				p.cfg.Event(EventDenied, "", "sni_mismatch")
				return nil, errors.New("SNI does not name the host of CONNECT")
			}
			return p.ca.leaf(host)
		},
	})
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := conn.HandshakeContext(r.Context()); err != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	inner := &http.Server{
		MaxHeaderBytes: maxHeader, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), Protocols: onlyHTTP1(),
		BaseContext: func(net.Listener) context.Context { return r.Context() },
		Handler:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.inner(w, r, host, hostPort) }),
	}
	l := newOneConn(conn)
	_ = inner.Serve(l)
}

// inner serves one request within a terminated CONNECT.
func (p *Proxy) inner(w http.ResponseWriter, r *http.Request, host, hostPort string) {
	if got := strings.ToLower(r.Host); got != host && got != hostPort {
		p.deny(w, EventDenied, "", "host_mismatch", http.StatusMisdirectedRequest, "the Host header does not name the host of CONNECT")
		return
	}
	if r.Method == http.MethodConnect || r.URL.IsAbs() || r.URL.Host != "" {
		p.deny(w, EventDenied, "", "nested_proxy", http.StatusForbidden, "no proxying within a bound connection")
		return
	}
	p.forward(w, r, r.URL.EscapedPath(), p.byHost(hostPort))
}

// buffered is a connection of which some bytes were read already.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// oneConn is a listener that yields one connection and ends when it closes.
type oneConn struct {
	conn net.Conn
	once sync.Once
	done chan struct{}
	next chan net.Conn
}

func newOneConn(c net.Conn) *oneConn {
	l := &oneConn{done: make(chan struct{}), next: make(chan net.Conn, 1)}
	l.conn = closeNotify{Conn: c, l: l}
	l.next <- l.conn
	return l
}

type closeNotify struct {
	net.Conn
	l *oneConn
}

func (c closeNotify) Close() error {
	err := c.Conn.Close()
	c.l.once.Do(func() { close(c.l.done) })
	return err
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.next:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }
