// Package auth says who calls and what they may call, and keeps certificates
// current.
package auth

import (
	"context"
	"crypto/tls"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Identity is who calls.
type Identity struct {
	// Name is the first URI name of the client certificate, such as
	// "spiffe://example.org/ci", else its common name. Empty: no identity.
	Name string
}

// Anonymous says that the caller showed no certificate.
func (id Identity) Anonymous() bool { return id.Name == "" }

// String is the name, and "anonymous" without one.
func (id Identity) String() string {
	if id.Anonymous() {
		return "anonymous"
	}
	return id.Name
}

type contextKey struct{}

// NewContext is ctx with the identity of the caller.
func NewContext(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, id)
}

// FromContext is the identity that NewContext put there, else no identity.
func FromContext(ctx context.Context) Identity {
	id, _ := ctx.Value(contextKey{}).(Identity)
	return id
}

// FromPeer is the identity of the peer of a gRPC call.
func FromPeer(ctx context.Context) Identity {
	caller, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}
	}
	info, ok := caller.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Identity{}
	}
	return FromTLS(&info.State)
}

// FromTLS is the identity in a connection's certificate, if that was verified.
func FromTLS(state *tls.ConnectionState) Identity {
	if state == nil || len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return Identity{}
	}
	leaf := state.VerifiedChains[0][0]
	if len(leaf.URIs) > 0 {
		return Identity{Name: leaf.URIs[0].String()}
	}
	return Identity{Name: leaf.Subject.CommonName}
}
