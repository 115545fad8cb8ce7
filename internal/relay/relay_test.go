package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

// names is a resolver for tests.
type names map[string][]string

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, a := range n[strings.TrimSuffix(host, ".")] {
		out = append(out, netip.MustParseAddr(a))
	}
	if len(out) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return out, nil
}

// pair returns the two ends of a socket pair.
func pair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		t.Cleanup(func() { _ = conns[i].Close() })
	}
	return conns[0], conns[1]
}

// start serves a host and returns init's end.
func start(t testing.TB, h *Host) *Client {
	t.Helper()
	a, b := pair(t)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { _ = h.Serve(ctx, a) })
	c, err := NewClient(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		wg.Wait()
	})
	return c
}

// upstream records what was dialed and echoes.
type upstream struct {
	mu     sync.Mutex
	dialed []string
}

func (u *upstream) dial(_ context.Context, _, addr string) (net.Conn, error) {
	u.mu.Lock()
	u.dialed = append(u.dialed, addr)
	u.mu.Unlock()
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		_, _ = io.Copy(far, far)
	}()
	return near, nil
}

var world = names{
	"api.example.com": {"93.184.215.14"}, "b.api.example.com": {"93.184.215.15"}, "example.com": {"93.184.215.16"},
	"evil.test": {"93.184.215.17"}, "xexample.com": {"93.184.215.18"}, "vault.example.com": {"93.184.215.20"},
	"alias.test": {"93.184.215.20"}, "localhost": {"127.0.0.1"}, "intern.example.com": {"10.1.2.3"},
	"metadata.google.internal": {"169.254.169.254"}, "mapped.test": {"::ffff:127.0.0.1"}, "nat64.test": {"64:ff9b::7f00:1"},
	"both.test": {"10.0.0.1", "93.184.215.19"}, "six.test": {"2606:4700::1"}, "ula.test": {"fd00:ec2::254"},
}

func TestDial(t *testing.T) {
	const ok = ""
	for _, tc := range []struct {
		name   string
		policy Policy
		addr   string
		want   string // reason, or empty
		dialed string
	}{
		{"zero policy", Policy{}, "api.example.com:443", "host_not_listed", ""},
		{"empty allowlist is none", Policy{Network: sealed.NetworkAllowlist}, "api.example.com:443", "host_not_listed", ""},
		{"none ignores allow", Policy{Network: sealed.NetworkNone, Allow: []string{"api.example.com"}}, "api.example.com:443", "host_not_listed", ""},
		{"bound", Policy{Network: sealed.NetworkNone, Bound: []string{"api.example.com"}}, "api.example.com:443", ok, "93.184.215.14:443"},
		{"bound with port", Policy{Bound: []string{"api.example.com:8443"}}, "api.example.com:8443", ok, "93.184.215.14:8443"},
		{"other port", Policy{Bound: []string{"api.example.com"}}, "api.example.com:22", "host_not_listed", ""},
		{"bound is exact", Policy{Bound: []string{"*.example.com"}}, "api.example.com:443", "host_not_listed", ""},
		{"listed", Policy{Network: sealed.NetworkAllowlist, Allow: []string{"api.example.com"}}, "api.example.com:443", ok, "93.184.215.14:443"},
		{"wildcard", Policy{Network: sealed.NetworkAllowlist, Allow: []string{"*.example.com"}}, "b.api.example.com:443", ok, "93.184.215.15:443"},
		{"wildcard not itself", Policy{Network: sealed.NetworkAllowlist, Allow: []string{"*.example.com"}}, "example.com:443", "host_not_listed", ""},
		{"wildcard whole labels", Policy{Network: sealed.NetworkAllowlist, Allow: []string{"*.example.com"}}, "xexample.com:443", "host_not_listed", ""},
		{"prefix is no match", Policy{Network: sealed.NetworkAllowlist, Allow: []string{"api.example.com"}}, "api.example.com.evil.test:443", "host_not_listed", ""},
		{"full", Policy{Network: sealed.NetworkFull}, "evil.test:8080", ok, "93.184.215.17:8080"},
		{"full, loopback", Policy{Network: sealed.NetworkFull}, "localhost:443", "address_not_public", ""},
		{"full, private", Policy{Network: sealed.NetworkFull}, "intern.example.com:443", "address_not_public", ""},
		{"full, metadata", Policy{Network: sealed.NetworkFull}, "metadata.google.internal:80", "address_not_public", ""},
		{"full, mapped", Policy{Network: sealed.NetworkFull}, "mapped.test:443", "address_not_public", ""},
		{"full, nat64", Policy{Network: sealed.NetworkFull}, "nat64.test:443", "address_not_public", ""},
		{"full, unique local", Policy{Network: sealed.NetworkFull}, "ula.test:443", "address_not_public", ""},
		{"full, only the public address", Policy{Network: sealed.NetworkFull}, "both.test:443", ok, "93.184.215.19:443"},
		{"full, IPv6", Policy{Network: sealed.NetworkFull}, "six.test:443", ok, "[2606:4700::1]:443"},
		{"vault by name", Policy{Network: sealed.NetworkFull, Vault: "vault.example.com:443"}, "vault.example.com:443", "control_plane_address", ""},
		{"vault by another name", Policy{Network: sealed.NetworkFull, Vault: "vault.example.com:443"}, "alias.test:443", "control_plane_address", ""},
		{"vault by address", Policy{Network: sealed.NetworkFull, Vault: "93.184.215.17:8200"}, "evil.test:8200", "control_plane_address", ""},
		{"forbidden", Policy{Network: sealed.NetworkFull, Forbidden: []string{"93.184.215.17:2375"}}, "evil.test:2375", "control_plane_address", ""},
		{"map", Policy{Bound: []string{"intern.example.com"}, Map: map[string]string{"intern.example.com:443": "127.0.0.1:9"}}, "intern.example.com:443", ok, "127.0.0.1:9"},
		{"map does not allow", Policy{Map: map[string]string{"intern.example.com:443": "127.0.0.1:9"}}, "intern.example.com:443", "host_not_listed", ""},
		{"map is exact", Policy{Network: sealed.NetworkFull, Map: map[string]string{"intern.example.com:443": "127.0.0.1:9"}}, "intern.example.com:80", "address_not_public", ""},
		{"map to a name", Policy{Network: sealed.NetworkFull, Map: map[string]string{"evil.test:443": "localhost:9"}}, "evil.test:443", "malformed_relay_map", ""},
		{"unknown name", Policy{Network: sealed.NetworkFull}, "absent.test:443", "no such host", ""},
		{"IPv4 literal", Policy{Network: sealed.NetworkFull}, "93.184.215.14:443", "malformed_address", ""},
		{"IPv6 literal", Policy{Network: sealed.NetworkFull}, "[::1]:443", "malformed_address", ""},
		{"short IPv4", Policy{Network: sealed.NetworkFull}, "127.1:443", "malformed_address", ""},
		{"decimal IPv4", Policy{Network: sealed.NetworkFull}, "2130706433:443", "malformed_address", ""},
		{"hex IPv4", Policy{Network: sealed.NetworkFull}, "0x7f000001:443", "malformed_address", ""},
		{"NUL", Policy{Network: sealed.NetworkFull}, "evil.test\x00.example.com:443", "malformed_address", ""},
		{"upper case", Policy{Network: sealed.NetworkFull}, "Evil.test:443", "malformed_address", ""},
		{"final dot", Policy{Network: sealed.NetworkFull}, "evil.test.:443", "malformed_address", ""},
		{"no port", Policy{Network: sealed.NetworkFull}, "evil.test", "malformed_address", ""},
		{"port 0", Policy{Network: sealed.NetworkFull}, "evil.test:0", "malformed_address", ""},
		{"port with zeros", Policy{Network: sealed.NetworkFull}, "evil.test:0443", "malformed_address", ""},
		{"user part", Policy{Network: sealed.NetworkFull}, "a@evil.test:443", "malformed_address", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := &upstream{}
			c := start(t, &Host{Policy: tc.policy, Resolver: world, Dial: u.dial})
			conn, err := c.Dial(t.Context(), tc.addr)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) || len(u.dialed) > 0 {
					t.Fatalf("got %v, dialed %q, want %s", err, u.dialed, tc.want)
				}
				if denied := errors.Is(err, sealed.ErrDenied); denied != (tc.want != "no such host") {
					t.Errorf("denied is %v", denied)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{tc.dialed}, u.dialed); diff != "" {
				t.Error(diff)
			}
			echo(t, conn)
		})
	}
}

func echo(t *testing.T, conn net.Conn) {
	t.Helper()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB: several windows
	go func() { _, _ = conn.Write(sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(sent, got) {
		t.Errorf("echo: %v, %d bytes equal: %v", err, len(got), bytes.Equal(sent, got))
	}
	_ = conn.Close()
}

func TestPublic(t *testing.T) {
	for a, want := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1111": true, "0.0.0.0": false, "10.0.0.1": false, "100.64.0.1": false, "100.100.100.200": false,
		"127.0.0.1": false, "169.254.169.254": false, "169.254.170.2": false, "172.16.0.1": false, "172.32.0.1": true,
		"192.168.1.1": false, "192.0.0.192": false, "198.18.0.1": false, "224.0.0.1": false, "255.255.255.255": false, "168.63.129.16": false,
		"::": false, "::1": false, "::ffff:10.0.0.1": false, "::ffff:1.1.1.1": true, "::7f00:1": false, "64:ff9b::1.1.1.1": false,
		"64:ff9b:1::1": false, "fc00::1": false, "fd00:ec2::254": false, "fe80::1": false, "fe80::1%eth0": false, "fec0::1": false,
		"ff02::1": false, "2001:db8::1": false, "2001::1": false, "2002:7f00:1::": false, "5f00::1": false,
	} {
		if got := public(netip.MustParseAddr(a)); got != want {
			t.Errorf("public(%s) = %v", a, got)
		}
	}
}

func TestVault(t *testing.T) {
	u := &upstream{}
	c := start(t, &Host{Policy: Policy{Vault: "vault.test:8200", Map: map[string]string{"vault.test:8200": "127.0.0.1:18200"}}, Dial: u.dial})
	conn, err := c.Vault(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	echo(t, conn)
	if diff := cmp.Diff([]string{"127.0.0.1:18200"}, u.dialed); diff != "" {
		t.Error(diff)
	}
	c = start(t, &Host{Dial: u.dial})
	if _, err := c.Vault(t.Context()); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("a run without a vault: %v", err)
	}
}

// TestResolvedOnce: a name whose address changes between check and use can't
// lead elsewhere, because there is no second look (B16).
func TestResolvedOnce(t *testing.T) {
	r := &rebinding{}
	u := &upstream{}
	c := start(t, &Host{Policy: Policy{Network: sealed.NetworkFull}, Resolver: r, Dial: u.dial})
	if _, err := c.Dial(t.Context(), "evil.test:443"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"93.184.215.17:443"}, u.dialed); diff != "" || r.n != 1 {
		t.Errorf("%d look-ups: %s", r.n, diff)
	}
}

type rebinding struct{ n int }

func (r *rebinding) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	r.n++
	if r.n == 1 {
		return []netip.Addr{netip.MustParseAddr("93.184.215.17")}, nil
	}
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

func TestControl(t *testing.T) {
	got := make(chan sealed.RelayControl, 4)
	h := &Host{Control: func(_ context.Context, c *Control) {
		if err := c.Send(sealed.RelayControl{Type: ControlResize, Rows: 2, Cols: 3}); err != nil {
			t.Error(err)
		}
		for {
			msg, err := c.Receive()
			if err != nil {
				close(got)
				return
			}
			got <- msg
		}
	}}
	c := start(t, h)
	ctl, err := c.Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Control(t.Context()); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("second control stream: %v", err)
	}
	if msg, err := ctl.Receive(); err != nil || msg.Rows != 2 || msg.Cols != 3 {
		t.Errorf("received %+v, %v", msg, err)
	}
	record := strings.Repeat("r", 1<<20)
	for _, m := range []sealed.RelayControl{{Type: ControlClaimed}, {Type: ControlFinished, Exit: 3, Record: record}} {
		if err := ctl.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = c.Close() // as when init exits: what was sent still arrives
	if m := <-got; m.Type != ControlClaimed {
		t.Errorf("%+v", m)
	}
	if m := <-got; m.Type != ControlFinished || m.Record != record {
		t.Errorf("%s", m.Type)
	}
	if _, more := <-got; more {
		t.Error("more messages")
	}
}

// A mute connection can't write any more once it is told so, like that to a
// process that has exited; what was sent before can still be read.
type mute struct {
	net.Conn
	on atomic.Bool
}

func (m *mute) Write(b []byte) (int, error) {
	if m.on.Load() {
		return 0, syscall.EPIPE
	}
	return m.Conn.Write(b)
}

// A record that had arrived is read whole, although the room that reading it
// makes can be told to nobody.
func TestRecordOfOneWhoIsGone(t *testing.T) {
	a, b := pair(t)
	conn, gone, got := &mute{Conn: a}, make(chan struct{}), make(chan error, 1)
	record := strings.Repeat("r", 200<<10) // within one window, and enough to ask for another
	h := &Host{Control: func(_ context.Context, c *Control) {
		<-gone
		msg, err := c.Receive()
		if err == nil && msg.Record != record {
			err = fmt.Errorf("a record of %d bytes", len(msg.Record))
		}
		got <- err
	}}
	done := make(chan error, 1)
	go func() { done <- h.Serve(context.Background(), conn) }()
	c, err := NewClient(b)
	if err != nil {
		t.Fatal(err)
	}
	ctl, err := c.Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := ctl.Send(sealed.RelayControl{Type: ControlFinished, Record: record}); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn.on.Store(true)
	close(gone)
	if err := <-got; err != nil {
		t.Error(err)
	}
	_ = c.Close()
	<-done
}

func TestDeniedReports(t *testing.T) {
	reports := make(chan Denied, 512)
	h := &Host{OnDenied: func(d Denied) { reports <- d }}
	a, b := pair(t)
	done := make(chan error, 1)
	go func() { done <- h.Serve(context.Background(), a) }()
	c, err := NewClient(b)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		_, _ = c.Dial(t.Context(), "evil.test:443")
	}
	_, _ = c.Dial(t.Context(), "value in the wrong place")
	_ = c.Close()
	if err := <-done; err == nil {
		t.Error("serve says nothing about init's end")
	}
	close(reports)
	var all []Denied
	for d := range reports {
		all = append(all, d)
	}
	want := []Denied{
		{"evil.test:443", "host_not_listed", 1},
		{"", "malformed_address", 1},
		{"evil.test:443", "host_not_listed", 4},
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
}

func TestTallyIsBounded(t *testing.T) {
	var tl tally
	n := 0
	for i := range 10 * tallyKinds {
		tl.add(Denied{Addr: strings.Repeat("a", i%5000+1), Reason: "r"}, func(Denied) { n++ })
	}
	if len(tl.counts) > tallyKinds+1 || n > tallyKinds+1 {
		t.Errorf("%d kinds, %d reports", len(tl.counts), n)
	}
}

func TestMalformedHeaders(t *testing.T) {
	c := start(t, &Host{})
	for name, line := range map[string]string{
		"too long":      strings.Repeat("x", MaxHeader+10) + "\n",
		"not JSON":      "dial\n",
		"unknown field": `{"kind":"dial","addr":"a:1","x":1}` + "\n",
		"unknown kind":  `{"kind":"exec"}` + "\n",
		"two documents": `{"kind":"vault"}{}` + "\n",
	} {
		s, err := c.session.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
		b, err := readLine(bufio.NewReader(s), MaxHeader)
		if name == "too long" {
			if !errors.Is(err, io.EOF) {
				t.Errorf("%s: %v %q", name, err, b)
			}
			continue
		}
		if !strings.Contains(string(b), "malformed_address") {
			t.Errorf("%s: %v %q", name, err, b)
		}
		_ = s.Close()
	}
}

func TestTooManyStreams(t *testing.T) {
	u := &upstream{}
	c := start(t, &Host{Policy: Policy{Vault: "v.test:1"}, Dial: u.dial})
	var refused error
	for range MaxStreams + 1 {
		if _, err := c.Vault(t.Context()); err != nil {
			refused = err
		}
	}
	if !errors.Is(refused, sealed.ErrUnavailable) || len(u.dialed) != MaxStreams {
		t.Errorf("%v after %d", refused, len(u.dialed))
	}
}

func TestHalfClose(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		all, _ := io.ReadAll(conn) // needs the client's end of stream
		_, _ = conn.Write(append([]byte("got "), all...))
		_ = conn.Close()
	}()
	c := start(t, &Host{Policy: Policy{Vault: ln.Addr().String()}})
	conn, err := c.Vault(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("question"))
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(conn); err != nil || string(all) != "got question" {
		t.Errorf("%q, %v", all, err)
	}
}

func FuzzSplitTarget(f *testing.F) {
	for _, s := range []string{"a.b:443", "127.1:1", "[::1]:2", "a:b:1", "x\x00:1", "A:1", "a:65536", "-a:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, port, err := splitTarget(s)
		if err != nil {
			return
		}
		if _, err := netip.ParseAddr(host); err == nil || port == 0 || strings.ContainsAny(host, ":/@[] \x00") || host != strings.ToLower(host) {
			t.Errorf("%q was accepted", s)
		}
	})
}

func FuzzReadLine(f *testing.F) {
	f.Add([]byte("a\nb"), 3)
	f.Add([]byte("\n"), 0)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		if limit < 0 || limit > 1<<16 {
			return
		}
		line, err := readLine(bufio.NewReaderSize(bytes.NewReader(b), 16), limit)
		if err == nil && (len(line) > limit || !bytes.HasPrefix(b, append(line, '\n'))) {
			t.Errorf("%q of %q", line, b)
		}
	})
}
