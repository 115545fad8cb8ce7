package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	dockernet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"

	"sealed.dev/sealed/test/harness"
)

// A subnet is the 256 addresses that the cluster has for itself. They are chosen at
// random: another run on this machine has its own, and so has the bridge that a
// daemon leaves when it is killed.
type subnet struct{ netip.Prefix }

// randomSubnet is one in 10.0.0.0/8 in which this host has no address.
func randomSubnet() (subnet, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return subnet{}, err
	}
	for range 1000 {
		n := rand.N(1 << 16)
		s := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)
		if !inUse(s, addrs) {
			return subnet{s}, nil
		}
	}
	return subnet{}, errors.New("this host is in all of 10.0.0.0/8")
}

func inUse(s netip.Prefix, addrs []net.Addr) bool {
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Masked().Overlaps(s) {
			return true
		}
	}
	return false
}

// address of a node.
func (s subnet) address(node int) netip.Addr {
	b := s.Addr().As4()
	b[3] = byte(11 + node)
	return netip.AddrFrom4(b)
}

// listener is where a node serves its API.
func (s subnet) listener(node int) string { return netip.AddrPortFrom(s.address(node), 8200).String() }

// peer is where a node listens to the others.
func (s subnet) peer(node int) string { return netip.AddrPortFrom(s.address(node), 8201).String() }

func (s subnet) endpoint(node int) *dockernet.EndpointSettings {
	return &dockernet.EndpointSettings{IPAMConfig: &dockernet.EndpointIPAMConfig{IPv4Address: s.address(node)}}
}

// networkTries bounds how often a subnet is chosen, where the daemon has what this
// host does not show.
const networkTries = 5

func (w *world) makeNetwork(t *testing.T) {
	t.Helper()
	// Where Docker has no default bridge, testcontainers makes a network of its own
	// and leaves it.
	if _, err := w.docker.NetworkInspect(t.Context(), testcontainers.ReaperDefault, client.NetworkInspectOptions{}); err != nil {
		t.Cleanup(func() {
			_, _ = w.docker.NetworkRemove(context.WithoutCancel(t.Context()), testcontainers.ReaperDefault, client.NetworkRemoveOptions{})
		})
	}
	var refused error
	for range networkTries {
		s, err := randomSubnet()
		harness.Must(t, err)
		made, err := network.New(t.Context(), network.WithIPAM(&dockernet.IPAM{Config: []dockernet.IPAMConfig{{Subnet: s.Prefix}}}))
		if err != nil {
			refused = err
			continue
		}
		testcontainers.CleanupNetwork(t, made)
		w.network, w.subnet = made.Name, s
		return
	}
	harness.Must(t, refused)
}
