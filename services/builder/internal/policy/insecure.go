package policy

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Insecure returns a POLICY_DENIED fault unless a registry, by its host and port, may be
// used without TLS or with a certificate that nobody checks: one that is granted, or one
// on loopback. An empty host is one that the request does not name; only "*" grants it.
func (p *Policy) Insecure(host string) error {
	if onLoopback(host) {
		return nil
	}
	granted := func(pattern string) bool {
		prefix, wild := strings.CutSuffix(pattern, "*")
		return strings.EqualFold(pattern, host) || wild && strings.HasPrefix(strings.ToLower(host), strings.ToLower(prefix))
	}
	if p != nil && slices.ContainsFunc(p.insecure, granted) {
		return nil
	}
	shown := cmp.Or(host, "one that is not named")
	return denied(fmt.Sprintf("registry.insecure for the registry %q is not granted", shown), shown, "policy.insecure_registries")
}

// onLoopback reports whether a host and port are on loopback by their name.
func onLoopback(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	addr, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return name == "localhost" || err == nil && addr.Unmap().IsLoopback()
}
