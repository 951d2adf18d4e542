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
	// GRPC is further options, which win over those of Dial.
	GRPC []grpc.DialOption
}

// Dial makes a client connection to a Kiln service: "host:port",
// "tcp://host:port" or "unix:///path". It connects on the first call, and again
// when the connection is lost, within seconds. It pings an idle server every 30
// seconds while calls run, which Kiln's servers allow and buildkitd does not.
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
	dialOpts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(tel.Tracer),
			otelgrpc.WithMeterProvider(tel.Meter),
			otelgrpc.WithPropagators(tel.Propagator),
		)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(bytes), grpc.MaxCallSendMsgSize(bytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
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
