package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/test/harness"
)

const (
	checkEvery  = 100 * time.Millisecond
	healthLimit = time.Second // a node that is only busy keeps its connections
)

// A balancer stands before the cluster as in production: it asks every node for
// its health, passes bytes to the one that is active, and drops connections to one
// that is not any more. TLS ends at the node.
type balancer struct {
	subnet
	check *http.Client

	mu     sync.Mutex
	active int // -1: none
	conns  map[net.Conn]int
}

func newBalancer(t *testing.T, addr string, in subnet, ca []byte) *balancer {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	b := &balancer{subnet: in, active: -1, conns: map[net.Conn]int{}, check: &http.Client{
		Timeout:   healthLimit,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}},
	}}
	l, err := net.Listen("tcp4", addr)
	harness.Must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { b.watch(ctx) })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { b.serve(c) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		b.set(-1)
		all.Wait()
	})
	return b
}

// leader is the active node, -1 while there is none.
func (b *balancer) leader() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.active
}

func (b *balancer) set(active int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.active = active
	for c, node := range b.conns {
		if node != active {
			_ = c.Close()
		}
	}
}

func (b *balancer) watch(ctx context.Context) {
	for ctx.Err() == nil {
		b.set(b.find(ctx))
		select {
		case <-ctx.Done():
		case <-time.After(checkEvery):
		}
	}
}

// find asks the present one first. Two may call themselves active for a moment.
func (b *balancer) find(ctx context.Context) int {
	last := max(b.leader(), 0)
	for i := range nodes {
		if node := (last + i) % nodes; b.healthy(ctx, node) {
			return node
		}
	}
	return -1
}

func (b *balancer) healthy(ctx context.Context, node int) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+b.listener(node)+"/v1/sys/health", nil)
	if err != nil {
		return false
	}
	resp, err := b.check.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (b *balancer) serve(c net.Conn) {
	defer c.Close()
	node := b.leader()
	if node < 0 {
		return
	}
	up, err := net.DialTimeout("tcp4", b.listener(node), time.Second)
	if err != nil {
		return
	}
	defer up.Close()
	b.mu.Lock()
	b.conns[c], b.conns[up] = node, node
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.conns, c)
		delete(b.conns, up)
	}()
	pass(c, up)
}

// pass copies both ways until either side ends.
func pass(a, b net.Conn) {
	done := make(chan struct{}, 2)
	for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
		go func() {
			_, _ = io.Copy(p[0], p[1])
			done <- struct{}{}
		}()
	}
	<-done
	_, _ = a.Close(), b.Close()
	<-done
}
