package relay

import "net/netip"

// notPublic lists what is never dialed by name: the special-purpose addresses
// of IANA's IPv4 and IPv6 registries (RFC 6890 and what updates it) that are
// not globally reachable, and the forms that carry an IPv4 address inside an
// IPv6 one, which a gateway might unpack (B16). 100.64.0.0/10 and
// 169.254.0.0/16, fd00::/8 hold the metadata services of the clouds.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's wire server, a public number with a private meaning
}

// publicV6 is the only global unicast space that has been given out; all else
// of IPv6 is refused. notPublicV6 are the exceptions in it.
var (
	publicV6    = netip.MustParsePrefix("2000::/3")
	notPublicV6 = []netip.Prefix{
		netip.MustParsePrefix("2001::/23"),     // protocol assignments, Teredo among them
		netip.MustParsePrefix("2001:db8::/32"), // documentation
		netip.MustParsePrefix("2002::/16"),     // 6to4 wraps IPv4
		netip.MustParsePrefix("3fff::/20"),     // documentation
	}
)

// public reports whether an address may be dialed. IPv4-mapped addresses are
// judged as IPv4; NAT64 (64:ff9b::/96, 64:ff9b:1::/48) and IPv4-compatible
// ones lie outside 2000::/3. An address with a zone is link-local by nature.
func public(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	list := notPublic
	if a.Is6() {
		if !publicV6.Contains(a) {
			return false
		}
		list = notPublicV6
	}
	for _, p := range list {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
