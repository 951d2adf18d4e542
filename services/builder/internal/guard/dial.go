package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// CheckResolved is CheckURL, then looks the host up: each of its addresses must be
// allowed, for nobody knows which of them will be taken. A host that is not found
// is NOT_FOUND, one whose name server does not answer UNAVAILABLE, both with
// SOURCE_NOT_FOUND.
func (g *Guard) CheckResolved(ctx context.Context, raw string) error {
	t, err := g.check(raw)
	if err != nil || t.addr.IsValid() {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addrs, err := g.resolver().LookupNetIP(ctx, "ip", t.host)
	if err != nil {
		return notFound(t.host, err)
	}
	for _, addr := range addrs {
		if err := g.checkAddr(t, addr); err != nil {
			return err
		}
	}
	return nil
}

func (g *Guard) resolver() *net.Resolver {
	if g.Resolver == nil {
		return net.DefaultResolver
	}
	return g.Resolver
}

func notFound(host string, err error) *fault.Error {
	kind := fault.Unavailable
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		kind = fault.NotFound
	}
	return fault.Wrap(err, kind, "SOURCE_NOT_FOUND", "the host "+host+" cannot be looked up", "check its name, and the name servers of the builder's host")
}

// Dial connects to address, "host:port", by TCP, where its host is allowed and the
// address that the connection goes to is. It is net.Dialer.DialContext in all
// else.
func (g *Guard) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return nil, malformed(address, "is not the host:port of a TCP server")
	}
	t := target{url: net.JoinHostPort(host, port), port: port}
	if err := t.setHost(address, host); err != nil {
		return nil, err
	}
	if err := g.checkHost(t); err != nil {
		return nil, err
	}
	dialer := net.Dialer{
		Timeout:  dialTimeout,
		Resolver: g.resolver(),
		// Called with each address itself, once it is looked up and before anything
		// is sent to it.
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("guard: %w", err)
			}
			return g.checkAddr(t, to.Addr())
		},
	}
	return dialer.DialContext(ctx, network, net.JoinHostPort(t.host, port))
}
