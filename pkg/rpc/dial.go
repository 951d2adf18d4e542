package rpc

import (
	"fmt"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// ClientOptions says how to connect.
type ClientOptions struct {
	// TLS is the certificates. Nil: plain text.
	TLS *configv1.ClientTLS
	// Telemetry takes traces and metrics. Nil: nothing does.
	Telemetry *telemetry.Telemetry
	// MaxMessageBytes is the largest message, in bytes. 0: 16 MiB.
	MaxMessageBytes int
	// Ping is how long a connection on which calls run may be silent before the
	// server is asked whether it is there; one that does not say so is given up.
	// 0: 6 minutes. Kiln's servers allow 10 seconds and more; others, buildkitd
	// among them, close connections that ping more often than every 5 minutes.
	Ping time.Duration
	// GRPC is further options, which win over those of Dial.
	GRPC []grpc.DialOption
}

const (
	// defaultPing is more than the 5 minutes that gRPC servers ask for.
	defaultPing = 6 * time.Minute
	// pingTimeout is how long the answer to a ping may take.
	pingTimeout = 20 * time.Second
)

// Dial makes a client connection to a gRPC server: "host:port",
// "tcp://host:port" or "unix:///path". It connects on the first call, and again
// when the connection is lost, within seconds.
func Dial(target string, opts ClientOptions) (*grpc.ClientConn, error) {
	tel := opts.Telemetry
	if tel == nil {
		tel = telemetry.Discard()
	}
	creds := insecure.NewCredentials()
	if opts.TLS != nil {
		var err error
		if creds, err = auth.ClientCredentials(opts.TLS, tel.Logger); err != nil {
			return nil, err
		}
	}
	bytes := opts.MaxMessageBytes
	if bytes == 0 {
		bytes = defaultMessageBytes
	}
	ping := opts.Ping
	if ping == 0 {
		ping = defaultPing
	}
	dialOpts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(tel.Tracer),
			otelgrpc.WithMeterProvider(tel.Meter),
			otelgrpc.WithPropagators(tel.Propagator),
		)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(bytes), grpc.MaxCallSendMsgSize(bytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: ping, Timeout: pingTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	conn, err := grpc.NewClient(strings.TrimPrefix(target, "tcp://"), append(dialOpts, opts.GRPC...)...)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", target, err)
	}
	return conn, nil
}
