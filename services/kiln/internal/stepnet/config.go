package stepnet

import (
	"fmt"
	"net/netip"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Config describes the network of the steps of one BuildKit daemon.
type Config struct {
	// Bridge is the network interface of this host that steps are connected to. It
	// also names the packet filter's tables. At most 15 bytes.
	Bridge string
	// Subnet is the IPv4 network of the steps. The host has its first address.
	Subnet netip.Prefix
	// Allow lists IPv4 networks that steps may reach although they are private, or
	// of this host.
	Allow []netip.Prefix
	// Deny lists IPv4 networks that steps may not reach, also if Allow has them: public
	// addresses of a host that the packet filter is not on, but in a container of.
	Deny []netip.Prefix
	// DNS lists the name servers that steps ask. Empty: a forwarder at the gateway,
	// which asks the name servers of this host's /etc/resolv.conf.
	DNS []netip.Addr
}

// Gateway returns the address that the host has in the network of the steps.
func (c Config) Gateway() netip.Addr { return c.Subnet.Masked().Addr().Next() }

// Nameservers returns the name servers that belong into resolv.conf of the steps.
func (c Config) Nameservers() []netip.Addr {
	if len(c.DNS) > 0 {
		return c.DNS
	}
	return []netip.Addr{c.Gateway()}
}

// table is the name of the tables of the packet filter.
func (c Config) table() string { return "kiln_" + c.Bridge }

const (
	maxBridgeName = 15 // IFNAMSIZ without the final zero
	// The smallest and the largest subnet: room for a pool, and no waste.
	minSubnetBits, maxSubnetBits = 16, 27
)

func (c Config) check() error {
	if c.Bridge == "" || len(c.Bridge) > maxBridgeName {
		return fault.Invalid("bridge", c.Bridge, fmt.Sprintf("the bridge's name %q does not have 1 to %d bytes", c.Bridge, maxBridgeName),
			"choose another name, such as kiln0")
	}
	if !c.Subnet.Addr().Is4() || c.Subnet.Bits() < minSubnetBits || c.Subnet.Bits() > maxSubnetBits {
		return fault.Invalid("subnet", c.Subnet.String(),
			fmt.Sprintf("the subnet %s is not an IPv4 network of /%d to /%d", c.Subnet, minSubnetBits, maxSubnetBits),
			"choose one that nothing else uses, such as 10.213.0.0/24")
	}
	for _, server := range c.DNS {
		if !server.Is4() || server.IsLoopback() || server.IsUnspecified() {
			return fault.Invalid("dns", server.String(),
				fmt.Sprintf("the name server %s cannot be reached from steps: it is not an IPv4 address of another host", server),
				"name a server outside this host, or leave it out: steps then ask this host's name servers through a forwarder")
		}
	}
	return nil
}

// ParseAllowed reads networks in CIDR form. Networks of IPv6 are left out: steps
// have IPv4 only.
func ParseAllowed(networks []string) ([]netip.Prefix, error) {
	var allowed []netip.Prefix
	for _, text := range networks {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fault.Invalid("network", text, fmt.Sprintf("%q is not a network: %v", text, err), "give it as 10.20.0.0/16")
		}
		if prefix.Addr().Is4() {
			allowed = append(allowed, prefix.Masked())
		}
	}
	return allowed, nil
}

// ParseServers reads the addresses of name servers.
func ParseServers(servers []string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, text := range servers {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fault.Invalid("--step-dns", text, fmt.Sprintf("%q is not an IP address", text), "give it as 10.20.0.2")
		}
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}
