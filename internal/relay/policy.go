package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"sealed.dev/sealed/internal/sealed"
)

// A Policy is where one run may connect to. The zero value allows nothing.
type Policy struct {
	// Vault is host:port of the trust file's Vault; empty: the run has none.
	Vault string
	// Network is sealed.NetworkNone, NetworkAllowlist or NetworkFull.
	Network string
	// Bound are the hosts of the run's bindings, in every network mode:
	// a name, with :port unless it is 443.
	Bound []string
	// Allow are further hosts, with NetworkAllowlist only. *.example.com
	// stands for every name below example.com, not for example.com.
	Allow []string
	// Map is the trust file's: host:port to the ip:port that is dialed in
	// its place, unchecked. It does not allow a host by itself.
	Map map[string]string
	// Forbidden are host:port or ip:port that are never dialed but by Map:
	// further control-plane addresses of the host.
	Forbidden []string
}

// VaultHostPort returns host:port of a Vault address such as
// https://vault.example.com:8200; the port is 443 where none is written.
func VaultHostPort(addr string) (string, error) {
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return "", &sealed.FieldError{Field: "vault_addr", Reason: "wants https://host:port"}
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// A denial is a no with its reason: a constant, for the log.
type denial string

func (d denial) Error() string { return string(d) }

// Unwrap makes errors.Is(err, sealed.ErrDenied) true.
func (d denial) Unwrap() error { return sealed.ErrDenied }

// Reasons of a denial.
const (
	ReasonMalformed = denial("malformed_address")
	ReasonUnlisted  = denial("host_not_listed")
	ReasonAddress   = denial("address_not_public")
	ReasonForbidden = denial("control_plane_address")
	ReasonNoVault   = denial("run_without_vault")
	ReasonMap       = denial("malformed_relay_map")
)

// splitTarget is the one parser of a dialed address: a lower-case DNS name,
// nothing that any resolver would read as a number, and a written port.
func splitTarget(addr string) (host string, port uint16, err error) {
	host, p, ok := strings.Cut(addr, ":")
	n, convErr := strconv.ParseUint(p, 10, 16)
	if !ok || convErr != nil || n == 0 || p[0] == '0' || sealed.ValidateHost(host) != nil {
		return "", 0, ReasonMalformed
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return "", 0, ReasonMalformed // 127.1, 0x7f000001: inet_aton(3) spellings
	}
	return host, uint16(n), nil
}

// allows decides about a name. Entries without a port mean 443.
func (p Policy) allows(host string, port uint16) bool {
	if slices.ContainsFunc(p.Bound, func(e string) bool { return matches(e, host, port, false) }) {
		return true
	}
	switch p.Network {
	case sealed.NetworkFull:
		return true
	case sealed.NetworkAllowlist:
		return slices.ContainsFunc(p.Allow, func(e string) bool { return matches(e, host, port, true) })
	}
	return false
}

func matches(entry, host string, port uint16, wildcard bool) bool {
	name, want, ok := strings.Cut(entry, ":")
	if !ok {
		want = "443"
	}
	if want != strconv.Itoa(int(port)) || name == "" {
		return false
	}
	if suffix, ok := strings.CutPrefix(name, "*."); ok && wildcard {
		// Whole labels: the dot belongs to the suffix, and something is before it.
		return suffix != "" && len(host) > len(suffix)+1 && strings.HasSuffix(host, "."+suffix)
	}
	return name == host
}

// A Resolver looks names up. net.Resolver implements it.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// resolve returns the addresses to dial for host:port, each checked. It is
// called after allows.
func (p Policy) resolve(ctx context.Context, r Resolver, host string, port uint16) ([]netip.AddrPort, error) {
	target := net.JoinHostPort(host, strconv.Itoa(int(port)))
	if to, ok := p.Map[target]; ok {
		ap, err := netip.ParseAddrPort(to)
		if err != nil {
			return nil, ReasonMap
		}
		return []netip.AddrPort{ap}, nil
	}
	forbidden, err := p.forbidden(ctx, r, target, port)
	if err != nil {
		return nil, err
	}
	// The final dot keeps the host's search domains out.
	addrs, err := r.LookupNetIP(ctx, "ip", host+".")
	if err != nil {
		return nil, lookupError(err)
	}
	var out []netip.AddrPort
	reason := ReasonAddress
	for _, a := range addrs {
		ap := netip.AddrPortFrom(a.Unmap(), port)
		switch {
		case !public(a):
		case slices.Contains(forbidden, ap):
			reason = ReasonForbidden
		default:
			out = append(out, ap)
		}
	}
	if len(out) == 0 {
		return nil, reason
	}
	return out, nil
}

// forbidden returns the addresses of Vault and of Forbidden on this port, so
// that no other name leads there. If one can't be resolved, nothing on its
// port is dialed.
func (p Policy) forbidden(ctx context.Context, r Resolver, target string, port uint16) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, f := range append([]string{p.Vault}, p.Forbidden...) {
		if f == "" {
			continue
		}
		if f == target {
			return nil, ReasonForbidden
		}
		host, fp, err := net.SplitHostPort(f)
		if err != nil {
			return nil, fmt.Errorf("checking control-plane addresses: %w", err)
		}
		if fp != strconv.Itoa(int(port)) {
			continue
		}
		if a, err := netip.ParseAddr(host); err == nil {
			out = append(out, netip.AddrPortFrom(a.Unmap(), port))
			continue
		}
		addrs, err := r.LookupNetIP(ctx, "ip", strings.TrimSuffix(host, ".")+".")
		if err != nil {
			return nil, fmt.Errorf("checking control-plane addresses: %w", lookupError(err))
		}
		for _, a := range addrs {
			out = append(out, netip.AddrPortFrom(a.Unmap(), port))
		}
	}
	return out, nil
}

// lookupError drops the resolver's address and text from an error that goes
// into the sandbox.
func lookupError(err error) error {
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return errors.New("no such host")
	}
	return errors.New("name lookup failed")
}
