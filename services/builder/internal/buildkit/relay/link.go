package relay

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// methodSession is the method of a daemon that begins a session.
const methodSession = "/moby.buildkit.v1.Control/Session"

// preface is how long a daemon may take to begin HTTP/2 on a session.
const preface = 15 * time.Second

// OpenOptions say how a session is opened at a daemon.
type OpenOptions struct {
	// SharedKey is the key under which the daemon keeps the client's local files,
	// which must not be one that a client can choose: see synckey.Keys.Client.
	SharedKey string
	// OnSecret is told of every secret that the client gives to the daemon, before
	// the daemon gets it, as buildkit.AddSecret wants to be. It must not keep value.
	// nil: nobody is told.
	OnSecret func(id string, value []byte)
}

// Link is the session of a client at one daemon.
type Link struct {
	client *Client
	opts   OpenOptions
	server *grpc.Server
	stream grpc.ClientStream
	tunnel *tunnel
	cancel context.CancelFunc

	once    sync.Once
	leaving atomic.Bool
	done    chan struct{}
	err     error // read after done
}

// Open opens the session of the client at a daemon. It may be opened at several, and
// again at one where a link was closed, for whose end Open waits then. The link ends
// with the client's session and with the connection to the daemon, not with ctx,
// of whose values only the link makes use later. Errors: UNAVAILABLE when the client's
// session has ended, FAILED_PRECONDITION when it is open at the daemon, and those of
// the daemon.
func (c *Client) Open(ctx context.Context, daemon *grpc.ClientConn, opts OpenOptions) (*Link, error) {
	l := &Link{client: c, opts: opts, done: make(chan struct{})}
	if err := c.enter(ctx, daemon, l); err != nil {
		return nil, err
	}
	if err := l.open(context.WithoutCancel(ctx), daemon); err != nil {
		l.cancel()
		close(l.done)
		return nil, err
	}
	stop := context.AfterFunc(c.ctx, l.Close)
	go func() {
		defer stop()
		_ = l.server.Serve(listenerOf(l.tunnel))
	}()
	return l, nil
}

// enter makes a link the one of the client at a daemon. BuildKit forgets a session
// when an earlier one of its id ends, so that there must be one at a time.
func (c *Client) enter(ctx context.Context, daemon *grpc.ClientConn, l *Link) error {
	for {
		if c.ctx.Err() != nil {
			return fault.New(fault.Unavailable, "UNAVAILABLE", "the client's session has ended", "build again")
		}
		c.mu.Lock()
		before := c.links[daemon]
		if before == nil || before.ended() {
			c.links[daemon] = l
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		if !before.leaving.Load() {
			return fault.New(fault.FailedPrecondition, "WRONG_STATE", "the session is open at the daemon", "use the link that is open")
		}
		select {
		case <-before.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (l *Link) open(ctx context.Context, daemon *grpc.ClientConn) (err error) {
	ctx, l.cancel = context.WithCancel(ctx)
	ctx = metadata.NewOutgoingContext(ctx, l.client.offer.metadata(l.opts.SharedKey))
	l.stream, err = daemon.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, methodSession,
		grpc.ForceCodecV2(rawcodec.Codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage))
	if err != nil {
		return err
	}
	l.tunnel = newTunnel(l.stream)
	l.tunnel.onClose = l.end
	l.server = grpc.NewServer(
		grpc.UnknownServiceHandler(l.handle), grpc.ForceServerCodecV2(rawcodec.Codec{}),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeaders),
		grpc.ReadBufferSize(0), grpc.WriteBufferSize(writeBatch),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connectionWindow),
		grpc.ConnectionTimeout(preface),
	)
	return nil
}

// Began waits until the daemon has begun HTTP/2 on the link: it knows the session then. It
// looks for one that a build names for five seconds only, which a busy daemon may take to
// begin. It returns when the link or ctx ends, too.
func (l *Link) Began(ctx context.Context) {
	select {
	case <-l.tunnel.spoke:
	case <-l.done:
	case <-ctx.Done():
	}
}

// Done is closed when the link has ended, and the daemon has let go of the session.
func (l *Link) Done() <-chan struct{} { return l.done }

func (l *Link) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// Err returns why the link ended: the daemon's error, and nil when it was closed or
// has not ended.
func (l *Link) Err() error {
	if l.ended() {
		return l.err
	}
	return nil
}

// Close ends the link and the calls that pass through it, and does not wait for
// Done. The client's session stays.
func (l *Link) Close() { l.end(nil) }

func (l *Link) end(cause error) {
	l.once.Do(func() {
		if cause != nil && !errors.Is(cause, io.EOF) && status.Code(cause) != codes.Canceled {
			l.err = cause
		}
		l.leaving.Store(true)
		go l.leave()
	})
}

// letGo is how long a daemon may take to let go of a session.
const letGo = 2 * time.Second

// leave ends the stream as BuildKit's clients do, so that its end says that the
// daemon has forgotten the session.
func (l *Link) leave() {
	defer close(l.done)
	defer l.cancel()
	patience := time.AfterFunc(letGo, l.cancel)
	defer patience.Stop()
	l.tunnel.closeSend(l.stream)
	l.server.Stop()
	for l.tunnel.receive() == nil { // until the end
		continue
	}
}
