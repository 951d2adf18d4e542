package stepnet

import (
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// maxResolvers is how many name servers the resolver of the C library asks.
const maxResolvers = 3

// hostResolvers returns a function that returns the name servers of a resolv.conf, as
// the file says at that moment: laptops change their network.
func hostResolvers(path string) func() []netip.AddrPort {
	var (
		mu      sync.Mutex
		read    time.Time
		servers = defaultResolvers
	)
	return func() []netip.AddrPort {
		mu.Lock()
		defer mu.Unlock()
		info, err := os.Stat(path)
		if err != nil || info.ModTime().Equal(read) {
			return servers
		}
		if text, err := os.ReadFile(path); err == nil {
			read, servers = info.ModTime(), parseResolvers(string(text))
		}
		return servers
	}
}

// defaultResolvers is what resolv.conf(5) says of a file without name servers.
var defaultResolvers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort)}

func parseResolvers(text string) []netip.AddrPort {
	var servers []netip.AddrPort
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" || len(servers) == maxResolvers {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(addr, dnsPort))
		}
	}
	if len(servers) == 0 {
		return defaultResolvers
	}
	return servers
}
