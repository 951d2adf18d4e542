package rpc

import (
	"context"
	"net"
	"net/netip"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// SecureTransport says whether nobody but the caller and this host can read the
// call: it came over TLS, over a unix socket, or from loopback to loopback. It is
// false for a context that is not of a call.
func SecureTransport(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	if _, encrypted := p.AuthInfo.(credentials.TLSInfo); encrypted {
		return true
	}
	if p.Addr == nil || p.LocalAddr == nil {
		return false
	}
	if p.LocalAddr.Network() == "unix" {
		return true
	}
	return isLoopback(p.Addr) && isLoopback(p.LocalAddr)
}

func isLoopback(address net.Addr) bool {
	parsed, err := netip.ParseAddrPort(address.String())
	return err == nil && parsed.Addr().Unmap().IsLoopback()
}
