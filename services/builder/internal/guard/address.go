package guard

import (
	"net/netip"
	"slices"
)

// special is a network whose addresses are not public. The order matters: the
// first that holds an address names it.
type special struct {
	network netip.Prefix
	what    string
}

// metadata are the addresses at which clouds hand out a machine's credentials,
// also where they look public.
var metadata = []netip.Addr{
	netip.MustParseAddr("169.254.169.254"), // AWS, Google, Azure and others
	netip.MustParseAddr("169.254.170.2"),   // tasks of AWS ECS
	netip.MustParseAddr("169.254.170.23"),  // pods of AWS EKS
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("fd00:ec2::23"),    // pods of AWS EKS
	netip.MustParseAddr("fd20:ce::254"),    // Google
	netip.MustParseAddr("100.100.100.200"), // Alibaba
	netip.MustParseAddr("192.0.0.192"),     // Oracle
	netip.MustParseAddr("168.63.129.16"),   // Azure's wire server
}

// specials are the networks of the IANA registries of special-purpose addresses
// (https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-) that
// are not for hosts of the public network.
var specials = []special{
	{netip.MustParsePrefix("0.0.0.0/32"), "the unspecified address"},
	{netip.MustParsePrefix("0.0.0.0/8"), "of this network"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), "of carrier-grade NAT"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private"},
	{netip.MustParsePrefix("192.0.0.0/24"), "for protocols"},
	{netip.MustParsePrefix("192.0.2.0/24"), "for documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), "of 6to4 relays"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private"},
	{netip.MustParsePrefix("198.18.0.0/15"), "for benchmarks"},
	{netip.MustParsePrefix("198.51.100.0/24"), "for documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "for documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},

	{netip.MustParsePrefix("::/128"), "the unspecified address"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::/96"), "an IPv4-compatible address"},
	{netip.MustParsePrefix("fc00::/7"), "private"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("fec0::/10"), "site-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
	{netip.MustParsePrefix("2001::/23"), "for protocols"},
	{netip.MustParsePrefix("2001:db8::/32"), "for documentation"},
	{netip.MustParsePrefix("3fff::/20"), "for documentation"},
}

// Networks of IPv6 whose addresses lead to an IPv4 address that they hold.
var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052: the last 4 bytes
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 7915: the last 4 bytes
	sixToFour  = netip.MustParsePrefix("2002::/16")       // RFC 3056: bytes 2 to 5
	teredo     = netip.MustParsePrefix("2001::/32")       // RFC 4380: the server, and the client inverted
	global     = netip.MustParsePrefix("2000::/3")        // all that is given out, so far
)

// embedded returns the IPv4 addresses that an IPv6 address leads to.
func embedded(addr netip.Addr) []netip.Addr {
	b := addr.As16()
	switch {
	case nat64.Contains(addr), translated.Contains(addr):
		return []netip.Addr{netip.AddrFrom4([4]byte(b[12:16]))}
	case sixToFour.Contains(addr):
		return []netip.Addr{netip.AddrFrom4([4]byte(b[2:6]))}
	case teredo.Contains(addr):
		client := [4]byte{^b[12], ^b[13], ^b[14], ^b[15]}
		return []netip.Addr{netip.AddrFrom4([4]byte(b[4:8])), netip.AddrFrom4(client)}
	case (b[8] == 0 || b[8] == 2) && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe: // ISATAP, RFC 5214
		return []netip.Addr{netip.AddrFrom4([4]byte(b[12:16]))}
	}
	return nil
}

// refuses says why an address is not allowed, as what follows "it is". Empty: it is
// allowed.
func (g *Guard) refuses(addr netip.Addr) string {
	if addr.Zone() != "" {
		return "of one link only, by its zone"
	}
	addr = addr.Unmap()
	if slices.ContainsFunc(g.policy.Networks, func(n netip.Prefix) bool { return n.Contains(addr) }) {
		return ""
	}
	for _, v4 := range embedded(addr) {
		if why := g.refuses(v4); why != "" {
			return "another form of " + v4.String() + ", which is " + why
		}
	}
	return notPublic(addr)
}

// notPublic says what an address is when it is not of a public host. The IPv4
// address that it holds, if any, has been judged.
func notPublic(addr netip.Addr) string {
	if slices.Contains(metadata, addr) {
		return "of a cloud's metadata service"
	}
	if nat64.Contains(addr) || translated.Contains(addr) || teredo.Contains(addr) {
		return ""
	}
	for _, s := range specials {
		if s.network.Contains(addr) {
			return s.what
		}
	}
	if addr.Is6() && !global.Contains(addr) {
		return "not of the public network"
	}
	return ""
}
