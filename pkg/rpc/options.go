package rpc

import (
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

const (
	// defaultMessageBytes is what BuildKit's clients and daemons use.
	defaultMessageBytes = 16 << 20
	// handshakeTimeout bounds the time from a connection to its first frame.
	handshakeTimeout = 10 * time.Second
	// maxHeaderBytes bounds the metadata of a call.
	maxHeaderBytes = 256 << 10
)

// limits are the LimitsConfig with defaults filled in.
type limits struct {
	messageBytes  int
	streams       uint32
	unaryTimeout  time.Duration
	shutdownGrace time.Duration
}

func limitsOf(cfg *configv1.LimitsConfig) limits {
	l := limits{messageBytes: defaultMessageBytes, streams: 100_000, unaryTimeout: time.Minute, shutdownGrace: 15 * time.Second}
	if n := cfg.GetMaxMessageBytes(); n != 0 {
		l.messageBytes = int(n)
	}
	if n := cfg.GetMaxConcurrentStreams(); n != 0 {
		l.streams = n
	}
	if d := cfg.GetUnaryTimeout(); d != nil {
		l.unaryTimeout = d.AsDuration()
	}
	if d := cfg.GetShutdownGrace(); d != nil {
		l.shutdownGrace = d.AsDuration()
	}
	return l
}

// serverOptions are the options of every server. Options that a service adds
// come after them and win.
func serverOptions(l limits, tel *telemetry.Telemetry, g *guard) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(tel.Tracer),
			otelgrpc.WithMeterProvider(tel.Meter),
			otelgrpc.WithPropagators(tel.Propagator),
			otelgrpc.WithFilter(filters.Not(filters.HealthCheck())),
		)),
		grpc.ChainUnaryInterceptor(g.outerUnary, recoverUnary(), g.innerUnary),
		grpc.ChainStreamInterceptor(g.outerStream, recoverStream(), g.innerStream),
		grpc.UnknownServiceHandler(unknownService),
		grpc.MaxRecvMsgSize(l.messageBytes),
		grpc.MaxSendMsgSize(l.messageBytes),
		grpc.MaxConcurrentStreams(l.streams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	}
	if g.creds != nil {
		opts = append(opts, grpc.Creds(g.creds))
	}
	return opts
}
