// Package buildkitd connects to BuildKit's daemons. It is the one place of Kiln that does.
package buildkitd

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/moby/buildkit/client"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/grpccodec"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

const (
	// connectTimeout bounds one attempt to connect: DNS, TCP and the TLS handshake. gRPC takes the
	// backoff delay, which begins at 100 ms, as the bound if none is set.
	connectTimeout = 10 * time.Second
	// maxBackoff bounds the pause between two attempts. gRPC's default is two minutes: too long
	// for a daemon that was restarted.
	maxBackoff = 2 * time.Second
	// defaultPing is longer than the 5 minutes that buildkitd requires between pings.
	defaultPing = 6 * time.Minute
	// pingTimeout bounds the answer to a ping and, on Linux, how long sent bytes may stay
	// unacknowledged (TCP_USER_TIMEOUT). The second bound finds a dead link after the next call.
	pingTimeout = 20 * time.Second
	// maxMessage is the size of the messages that BuildKit sends and accepts, in bytes.
	maxMessage = 16 << 20
)

// BuildKit's sessions are gRPC servers inside its client, to which no option can be passed: the
// codec that gRPC finds by name must read their messages, too.
//
//nolint:gochecknoinits // gRPC allows codecs to be registered while the program initialises only
func init() { encoding.RegisterCodecV2(grpccodec.Codec{}) }

// Options says how to connect to a daemon.
type Options struct {
	// Daemon is the name, the address and the certificates of the daemon.
	Daemon *configv1.DaemonConfig
	// Telemetry gets the spans and metrics of calls. Nil: they are dropped.
	Telemetry *telemetry.Telemetry
	// StreamWindow and ConnectionWindow fix the flow-control windows, in bytes. 0: gRPC measures
	// and adjusts them.
	StreamWindow, ConnectionWindow int32
	// Ping is the silence on a connection with calls under way after which the peer is pinged.
	// 0: 6 minutes, because buildkitd closes connections that ping more often than every 5. Kiln's
	// builder, which serves the same API, allows 10 seconds.
	Ping time.Duration
	// GRPC is further options, such as credentials of each call. They win over the others.
	GRPC []grpc.DialOption
}

// Client returns BuildKit's client of a daemon. It connects on the first call, and connects again
// within seconds after the connection was lost.
func Client(ctx context.Context, opts Options) (*client.Client, error) {
	address, dialOpts, err := opts.dial()
	if err != nil {
		return nil, opts.wrap(err)
	}
	bkOpts := []client.ClientOpt{client.WithTracerProvider(opts.telemetry().Tracer)}
	for _, opt := range dialOpts {
		bkOpts = append(bkOpts, client.WithGRPCDialOption(opt))
	}
	c, err := client.New(ctx, address.String(), bkOpts...)
	return c, opts.wrap(err)
}

// Conn returns a gRPC connection to a daemon, with the behaviour of Client.
func Conn(opts Options) (*grpc.ClientConn, error) {
	address, dialOpts, err := opts.dial()
	if err != nil {
		return nil, opts.wrap(err)
	}
	tel := opts.telemetry()
	dialOpts = append(dialOpts, grpc.WithStatsHandler(otelgrpc.NewClientHandler(
		otelgrpc.WithTracerProvider(tel.Tracer),
		otelgrpc.WithMeterProvider(tel.Meter),
		otelgrpc.WithPropagators(tel.Propagator),
	)))
	conn, err := grpc.NewClient(address.target(), dialOpts...)
	return conn, opts.wrap(err)
}

func (o Options) telemetry() *telemetry.Telemetry {
	if o.Telemetry == nil {
		return telemetry.Discard()
	}
	return o.Telemetry
}

// wrap names the daemon in an error.
func (o Options) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("daemon %q: %w", cmp.Or(o.Daemon.GetName(), o.Daemon.GetAddress()), err)
}

// dial returns the address and the options that Client and Conn share.
func (o Options) dial() (Address, []grpc.DialOption, error) {
	address, err := ParseAddress(o.Daemon.GetAddress())
	if err != nil {
		return address, nil, err
	}
	creds, err := o.credentials(address)
	if err != nil {
		return address, nil, err
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithAuthority(authority(address, o.Daemon.GetTls())),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(grpccodec.Codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		// Said to the daemon, so that it breaks off the call whose error is larger (it holds
		// the Dockerfile) and not the connection, which all builds share.
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: cmp.Or(o.Ping, defaultPing), Timeout: pingTimeout}),
	}
	if o.StreamWindow > 0 {
		opts = append(opts, grpc.WithStaticStreamWindowSize(o.StreamWindow))
	}
	if o.ConnectionWindow > 0 {
		opts = append(opts, grpc.WithStaticConnWindowSize(o.ConnectionWindow))
	}
	return address, append(opts, o.GRPC...), nil
}

func (o Options) credentials(address Address) (credentials.TransportCredentials, error) {
	tls := o.Daemon.GetTls()
	if tls == nil {
		return insecure.NewCredentials(), nil
	}
	if address.socket != "" {
		return nil, fault.Invalid("tls", "", fmt.Sprintf("the daemon has certificates, and buildkitd does not use TLS on a unix socket (%s)", address),
			"remove tls, or write a tcp:// address")
	}
	return auth.ClientCredentials(tls, o.telemetry().Logger)
}

// authority returns the :authority of calls. gRPC requires it to be the server name of the
// certificates where that is set.
func authority(address Address, tls *configv1.ClientTLS) string {
	switch {
	case tls.GetServerName() != "":
		return tls.GetServerName()
	case address.socket != "":
		return "localhost"
	default:
		return address.host
	}
}

// maxHeaders bounds the headers and trailers of one answer of a daemon.
const maxHeaders = 16 << 20
