package client

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

const (
	// maxMessageBytes is what Kiln's servers send and take.
	maxMessageBytes = 16 << 20
	// A connection on which a call waits in silence is asked whether it is there.
	// Kiln's servers allow a ping every 10 seconds.
	pingAfter   = 30 * time.Second
	pingTimeout = 10 * time.Second
)

// Client calls one builder. Its methods may be called at the same time.
type Client struct {
	conn     *grpc.ClientConn
	api      builderv1.BuilderServiceClient
	patience time.Duration
	local    bool // the builder is on this host
}

// Dial makes a client of the builder at target: "host:port" or "unix:///path".
// It connects on the first call, and again whenever the connection is lost. An
// error is of the options: a certificate that does not load, or plain text to
// another host without [WithInsecure].
func Dial(target string, opts ...Option) (*Client, error) {
	s := settingsOf(opts)
	conn, err := connect(target, s)
	if err != nil {
		return nil, err
	}
	return &Client{conn: conn, api: builderv1.NewBuilderServiceClient(conn), patience: s.patience, local: IsLocal(target)}, nil
}

// Connect makes a connection to another of Kiln's services, such as the cache
// manager, as Dial makes one to a builder.
func Connect(target string, opts ...Option) (*grpc.ClientConn, error) {
	return connect(target, settingsOf(opts))
}

func settingsOf(opts []Option) settings {
	s := settings{patience: defaultPatience}
	for _, opt := range opts {
		opt(&s)
	}
	return s
}

func connect(target string, s settings) (*grpc.ClientConn, error) {
	target = strings.TrimPrefix(target, "tcp://")
	creds := insecure.NewCredentials()
	switch {
	case s.tls != nil:
		config, err := s.tls.config()
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(config)
	case !IsLocal(target) && !s.insecure:
		return nil, fmt.Errorf("%s is another host, and the connection has no TLS: use WithTLS, or WithInsecure in a closed network", target)
	}
	dialOpts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
		Keepalive(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxPause},
			MinConnectTimeout: 5 * time.Second,
		}),
	}, s.grpc...)
	if s.token != "" {
		dialOpts = append(dialOpts, TokenFile(s.token, IsLocal(target)))
	}
	conn, err := grpc.NewClient(target, dialOpts...)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", target, err)
	}
	return conn, nil
}

// Keepalive is the option of gRPC by which a connection with an open call notices
// within 40 seconds that the other side is gone, for other clients.
func Keepalive() grpc.DialOption {
	return grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout})
}

// API is the contract itself, for calls that the client does not wrap. They are
// not tried again.
func (c *Client) API() builderv1.BuilderServiceClient { return c.api }

// Close ends the connection, and all calls on it. Builds go on.
func (c *Client) Close() error { return c.conn.Close() }
