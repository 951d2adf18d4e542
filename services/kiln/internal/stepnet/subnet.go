package stepnet

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// FreeSubnet returns a /24 that no route of this host leads to but those of the
// bridge itself, and that no allowed network nor name server is in. The same
// bridge gets the same subnet as long as that one is free.
func FreeSubnet(bridge string, allowed []netip.Prefix) (netip.Prefix, error) {
	taken, err := routes(bridge)
	if err != nil {
		return netip.Prefix{}, explain(err, "cannot list this host's routes to find a subnet for the steps")
	}
	for _, server := range hostResolvers("/etc/resolv.conf")() {
		if server.Addr().Is4() {
			taken = append(taken, netip.PrefixFrom(server.Addr(), 32))
		}
	}
	subnet, ok := pickSubnet(bridge, append(taken, allowed...))
	if !ok {
		return subnet, fault.New(fault.FailedPrecondition, "", "no private /24 is free for the steps' network",
			"name one with --step-subnet")
	}
	return subnet, nil
}

// routes lists the networks that this host has routes to, other than the default
// routes and those through a bridge.
func routes(bridge string) ([]netip.Prefix, error) {
	own := -1
	if link, err := netlink.LinkByName(bridge); err == nil {
		own = link.Attrs().Index
	}
	all, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // Then it lacks what is just changing.
		return nil, err
	}
	var found []netip.Prefix
	for _, route := range all {
		if route.Dst == nil || route.LinkIndex == own {
			continue
		}
		addr, ok := netip.AddrFromSlice(route.Dst.IP.To4())
		bits, _ := route.Dst.Mask.Size()
		if ok && bits > 0 {
			found = append(found, netip.PrefixFrom(addr, bits))
		}
	}
	return found, nil
}

// pickSubnet goes through the private networks from a place that the name says.
func pickSubnet(name string, taken []netip.Prefix) (netip.Prefix, bool) {
	sum := sha256.Sum256([]byte(name))
	start := binary.BigEndian.Uint32(sum[:])
	pools := []struct {
		first [2]byte
		count uint32 // of /24
	}{{[2]byte{10, 64}, 191 * 256}, {[2]byte{172, 16}, 16 * 256}, {[2]byte{192, 168}, 256}}
	for _, pool := range pools {
		for i := range pool.count {
			n := (start + i) % pool.count
			addr := netip.AddrFrom4([4]byte{pool.first[0], pool.first[1] + byte(n>>8), byte(n), 0})
			subnet := netip.PrefixFrom(addr, 24)
			if !slices.ContainsFunc(taken, subnet.Overlaps) {
				return subnet, true
			}
		}
	}
	return netip.Prefix{}, false
}
