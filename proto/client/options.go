package client

import (
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
)

// Option is an option of Dial.
type Option func(*settings)

type settings struct {
	tls      *tlsFiles
	insecure bool
	token    string // file
	patience time.Duration
	grpc     []grpc.DialOption
}

// WithTLS connects by TLS. caFile has the authorities that the builder's
// certificate must come from; empty: those of the system. certFile and keyFile
// are the caller's identity, read again for each connection, so that they may be
// renewed; empty: none. serverName is the name that the builder's certificate
// must hold; empty: the host of the target.
func WithTLS(caFile, certFile, keyFile, serverName string) Option {
	return func(s *settings) {
		s.tls = &tlsFiles{ca: caFile, cert: certFile, key: keyFile, serverName: serverName}
	}
}

// WithInsecure allows plain text to a builder on another host. For closed test
// networks only: the builder refuses secrets on such a connection.
func WithInsecure() Option { return func(s *settings) { s.insecure = true } }

// defaultPatience outlasts the restart of a builder.
const defaultPatience = 2 * time.Minute

// WithPatience sets for how long a call is tried again while nothing gets better:
// the builder does not answer, or its queue is full. 0: never. Default: 2 minutes.
func WithPatience(d time.Duration) Option { return func(s *settings) { s.patience = d } }

// WithDialOptions adds options of gRPC, which win over those of Dial: for
// example OpenTelemetry's grpc.WithStatsHandler(otelgrpc.NewClientHandler()),
// which makes the build part of the caller's trace.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(s *settings) { s.grpc = append(s.grpc, opts...) }
}

// IsLocal reports whether what is sent to target stays on this host.
func IsLocal(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		host = target
	}
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}
