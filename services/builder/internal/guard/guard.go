// Package guard says which hosts the sources of a build may come from, and dials
// no other. A name may lead to a refused address only now and then, or only for
// some who ask: so what is judged is the address that is dialled, at the moment it
// is dialled, and a check before is no more than an early and kinder answer.
package guard

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Policy says which sources are allowed. The zero value allows the public hosts of
// all names.
type Policy struct {
	// Schemes of URLs. Empty: https, http, ssh.
	Schemes []string
	// AllowedHosts are "host", "*.domain" or "*". Empty: all.
	AllowedHosts []string
	// DeniedHosts are the same. They win.
	DeniedHosts []string
	// Networks are allowed although they are not public.
	Networks []netip.Prefix
}

// Outcomes of a connection that was asked for, for Guard.Observe.
const (
	Allowed = "allowed"
	Denied  = "denied"
	Failed  = "failed" // allowed, and not made
)

// Guard applies a policy. Its fields are set before it is first used.
type Guard struct {
	// Resolver looks names up. Nil: the host's own.
	Resolver *net.Resolver
	// Observe is told what came of each request to the proxy, in one of the
	// outcomes above. It may be nil.
	Observe func(ctx context.Context, outcome string)

	policy    Policy
	log       *slog.Logger
	transport *http.Transport
}

// Bounds of what the guard does for one connection.
const (
	resolveTimeout = 10 * time.Second
	dialTimeout    = 15 * time.Second
	headerTimeout  = time.Minute // from the request to the head of the answer
	maxHeaderBytes = 64 << 10
)

// New makes a guard. What it refuses is logged.
func New(p Policy, log *slog.Logger) *Guard {
	if len(p.Schemes) == 0 {
		p.Schemes = []string{"https", "http", "ssh"}
	}
	p.Networks = slices.Clone(p.Networks)
	for i, network := range p.Networks {
		p.Networks[i] = plain(network)
	}
	g := &Guard{policy: p, log: log}
	g.transport = &http.Transport{
		Proxy:                  nil, // What stands between would dial in place of the guard.
		DialContext:            g.Dial,
		DisableKeepAlives:      true, // Nothing is left behind when an answer is read.
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	return g
}

// plain is a network of IPv4 addresses as such, however it is written.
func plain(network netip.Prefix) netip.Prefix {
	if addr := network.Addr(); addr.Is4In6() && network.Bits() >= 96 {
		network = netip.PrefixFrom(addr.Unmap(), network.Bits()-96)
	}
	return network.Masked()
}

// CheckURL says whether a URL, or git's short form user@host:path, is of a form,
// scheme and host that are allowed, without looking anything up. Its errors are
// *fault.Error: INVALID_FIELD for what is not a URL, POLICY_DENIED for the rest.
func (g *Guard) CheckURL(raw string) error {
	_, err := g.check(raw)
	return err
}

// check is CheckURL, and returns what the URL leads to.
func (g *Guard) check(raw string) (target, error) {
	t, err := parse(raw)
	if err != nil {
		return target{}, err
	}
	if !slices.Contains(g.policy.Schemes, t.scheme) {
		return target{}, denied(t, "", "the scheme "+t.scheme+" is not allowed", "policy.sources.schemes")
	}
	return t, g.checkHost(t)
}

// checkHost judges a host by its name, and by its address where it is one.
func (g *Guard) checkHost(t target) error {
	switch {
	case matches(g.policy.DeniedHosts, t.host):
		return denied(t, "", "the host is refused", "policy.sources.denied_hosts")
	case len(g.policy.AllowedHosts) > 0 && !matches(g.policy.AllowedHosts, t.host):
		return denied(t, "", "the host is not among those that are allowed", "policy.sources.allowed_hosts")
	case t.addr.IsValid():
		return g.checkAddr(t, t.addr)
	case t.host == "localhost" || strings.HasSuffix(t.host, ".localhost"): // RFC 6761
		return g.checkAddr(t, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	return nil
}

// checkAddr judges an address that a host has.
func (g *Guard) checkAddr(t target, addr netip.Addr) error {
	why := g.refuses(addr)
	if why == "" {
		return nil
	}
	return denied(t, addr.String(), "its address "+addr.String()+" is "+why, "policy.sources.networks")
}

// matches says whether a host is one of the patterns' hosts.
func matches(patterns []string, host string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		pattern = strings.ToLower(strings.TrimSuffix(pattern, "."))
		if domain, wild := strings.CutPrefix(pattern, "*."); wild {
			return strings.HasSuffix(host, "."+domain)
		}
		if addr, err := netip.ParseAddr(strings.Trim(pattern, "[]")); err == nil {
			pattern = addr.Unmap().String()
		}
		return pattern == "*" || pattern == host
	})
}
