// Package relay ends BuildKit sessions of clients in the builder.
//
// A BuildKit session is an HTTP/2 connection inside a Control/Session stream, on
// which the daemon is the client: it asks for files, credentials and secrets, and
// sends what a build exports. A Client is the builder's end of such a session. A
// Link is a session of the builder's own at a daemon, with the same id; it passes
// every call of the daemon on to the client, message for message and undecoded.
// So a session waits in the queue without a timer at a daemon running, and can be
// linked to several daemons, or to another one after a failure.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// Options are the bounds of a client's session. Zero values are replaced by
// defaults.
type Options struct {
	// Handshake is how long a client may take to begin HTTP/2; BuildKit's clients
	// wait as long for the other side.
	Handshake time.Duration
	// HealthEvery is how often a client that sends nothing is asked whether it is
	// alive, and HealthTimeout how long it has to answer. A client that misses two
	// checks is dead.
	HealthEvery, HealthTimeout time.Duration
}

func (o Options) complete() Options {
	if o.Handshake == 0 {
		o.Handshake = 10 * time.Second
	}
	if o.HealthEvery == 0 {
		o.HealthEvery = 5 * time.Second
	}
	if o.HealthTimeout == 0 {
		o.HealthTimeout = 15 * time.Second
	}
	return o
}

// Client is the session of a client. Its methods may be called by several
// goroutines.
type Client struct {
	offer  offer
	tunnel *tunnel
	conn   *grpc.ClientConn
	ctx    context.Context // ends with the session
	cancel context.CancelFunc

	once sync.Once
	done chan struct{}
	err  error // why the session ended; read after done

	mu    sync.Mutex
	links map[*grpc.ClientConn]*Link // the last one at each daemon
}

// Accept begins the session that a client asks for with a Control/Session call.
// It returns at once: whether the client speaks HTTP/2 shows later. The caller
// waits for Done, then returns from the call, which frees what the session holds.
// The server of the stream must use rawcodec. Errors: INVALID_FIELD when the
// metadata of the call is malformed.
func Accept(ctx context.Context, stream grpc.ServerStream, opts Options) (*Client, error) {
	offer, err := offerOf(stream.Context())
	if err != nil {
		return nil, err
	}
	opts = opts.complete()
	c := &Client{offer: offer, tunnel: newTunnel(stream), done: make(chan struct{}), links: make(map[*grpc.ClientConn]*Link)}
	c.ctx, c.cancel = context.WithCancel(ctx)
	if c.conn, err = clientConn(c.tunnel, opts); err != nil {
		c.cancel()
		return nil, fault.Wrap(err, fault.Internal, "INTERNAL", "cannot begin the session", "")
	}
	c.tunnel.onClose = c.broke
	context.AfterFunc(c.ctx, func() { c.end(context.Cause(c.ctx)) })
	context.AfterFunc(stream.Context(), func() { c.end(io.EOF) })
	c.conn.Connect()
	go c.watch(opts)
	return c, nil
}

// Flow-control windows of both ends, in bytes. They are fixed, because gRPC
// measures dynamic ones by a ping on nearly every message. A stream whose reader is
// slow holds at most its window in memory.
const (
	streamWindow     = 1 << 20
	connectionWindow = 16 << 20
	// maxMessage is the size of messages that BuildKit allows in a session.
	maxMessage = 16 << 20
	// maxHeaders bounds the metadata of a call, which has BuildKit's error details.
	maxHeaders = 4 << 20
	// writeBatch is how much is sent to the other end at once. Its buffer is shared
	// among all sessions, so that idle ones hold none.
	writeBatch = 64 << 10
)

var errOneConnection = errors.New("a session has one connection")

// clientConn makes the HTTP/2 client of a session. The tunnel itself is a buffer
// for reading, so that the client needs none.
func clientConn(t *tunnel, opts Options) (*grpc.ClientConn, error) {
	var dialled sync.Once
	dial := func(context.Context, string) (conn net.Conn, err error) {
		err = errOneConnection
		dialled.Do(func() { conn, err = t, nil })
		return conn, err
	}
	return grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: opts.Handshake}),
		grpc.WithIdleTimeout(0), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithReadBufferSize(0), grpc.WithWriteBufferSize(writeBatch),
		grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(connectionWindow),
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(rawcodec.Codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
}

// ID returns the id that the client gave its session.
func (c *Client) ID() string { return c.offer.id }

// Name returns the name of the session; most clients give none.
func (c *Client) Name() string { return c.offer.name }

// SharedKey returns the key that the client chose for its local files. It is not
// to be trusted, and no daemon may see it; see OpenOptions.
func (c *Client) SharedKey() string { return c.offer.sharedKey }

// Methods returns the gRPC methods that the client offers.
func (c *Client) Methods() []string { return c.offer.methods }

// Done is closed when the session has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the session ended, nil while it has not and when the client has
// closed it. Faults: UNAVAILABLE for a client that no longer answers,
// INVALID_ARGUMENT for one that does not speak HTTP/2.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Close ends the session and its links.
func (c *Client) Close() { c.end(io.EOF) }

// broke ends the session when the client has ended its stream, or the HTTP/2 client
// has given the connection up.
func (c *Client) broke(cause error) {
	if errors.Is(cause, net.ErrClosed) {
		cause = fault.Wrap(cause, fault.InvalidArgument, "INVALID_FIELD", "the client broke HTTP/2 on its session", "open sessions with a BuildKit client")
	}
	c.end(cause)
}

// end ends the session for a cause; io.EOF and the end of a context are no errors.
// It does not wait: the HTTP/2 client lets go of the stream when the handler of
// the stream returns.
func (c *Client) end(cause error) {
	c.once.Do(func() {
		if _, ok := errors.AsType[*fault.Error](cause); ok {
			c.err = cause
		}
		close(c.done)
		c.cancel()
		c.tunnel.shut()
		go func() { _ = c.conn.Close() }()
	})
}
