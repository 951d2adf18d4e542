package relay_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/grpchijack"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/relay"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon has the sessions of a buildkitd.
type daemon struct {
	controlapi.UnimplementedControlServer
	manager *session.Manager
	conn    *grpc.ClientConn // to it

	mu sync.Mutex
	md metadata.MD // of the last session
}

func newDaemon(t testing.TB) *daemon {
	t.Helper()
	manager, err := session.NewManager()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{manager: manager}
	server := grpc.NewServer()
	controlapi.RegisterControlServer(server, d)
	d.conn = dial(t, serve(t, server))
	return d
}

// Session is what buildkitd does with one.
func (d *daemon) Session(stream controlapi.Control_SessionServer) error {
	conn, closed, opts := grpchijack.Hijack(stream)
	defer func() { _ = conn.Close() }()
	d.mu.Lock()
	d.md = opts
	d.mu.Unlock()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		<-closed
		cancel()
	}()
	return d.manager.HandleConn(ctx, conn, opts)
}

// caller waits for a session.
func (d *daemon) caller(t testing.TB, id string) session.Caller {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	caller, err := d.manager.Get(ctx, id, false)
	if err != nil {
		t.Fatal(err)
	}
	return caller
}

// front is a builder whose clients' sessions come out of accepted.
type front struct {
	opts     relay.Options
	addr     string
	accepted chan *relay.Client
	ended    chan error
}

func newFront(t testing.TB, opts relay.Options) *front {
	t.Helper()
	f := &front{opts: opts, accepted: make(chan *relay.Client, 1000), ended: make(chan error, 1000)}
	f.addr = serve(t, grpc.NewServer(grpc.UnknownServiceHandler(f.handle), grpc.ForceServerCodecV2(rawcodec.Codec{})))
	return f
}

func (f *front) handle(_ any, stream grpc.ServerStream) error {
	c, err := relay.Accept(stream.Context(), stream, f.opts)
	if err == nil {
		f.accepted <- c
		<-c.Done()
		err = c.Err()
	}
	f.ended <- err
	return err
}

func (f *front) next(t testing.TB) *relay.Client {
	t.Helper()
	select {
	case c := <-f.accepted:
		return c
	case <-time.After(10 * time.Second):
		t.Fatal("no session has come")
		return nil
	}
}

// connect runs an unmodified session with the builder, until the test ends or stop
// is called.
func (f *front) connect(t testing.TB, sharedKey string, offers ...session.Attachable) (s *session.Session, c *relay.Client, stop func()) {
	t.Helper()
	s, err := session.NewSession(t.Context(), sharedKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, offer := range offers {
		s.Allow(offer)
	}
	conn := dial(t, f.addr)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = s.Run(context.WithoutCancel(t.Context()), grpchijack.Dialer(controlapi.NewControlClient(conn)))
	}()
	stop = sync.OnceFunc(func() {
		_ = s.Close()
		_ = conn.Close()
		<-ran
	})
	t.Cleanup(stop)
	return s, f.next(t), stop
}

func open(t testing.TB, c *relay.Client, d *daemon, opts relay.OpenOptions) *relay.Link {
	t.Helper()
	link, err := c.Open(t.Context(), d.conn, opts)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// linked is a session that is open at a daemon through the builder.
func linked(t testing.TB, offers ...session.Attachable) session.Caller {
	t.Helper()
	d, f := newDaemon(t), newFront(t, relay.Options{})
	s, c, _ := f.connect(t, "", offers...)
	open(t, c, d, relay.OpenOptions{})
	return d.caller(t, s.ID())
}

func serve(t testing.TB, server *grpc.Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return listener.Addr().String()
}

func dial(t testing.TB, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func within(t testing.TB, done <-chan struct{}, limit time.Duration, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("%s after %v", what, limit)
	}
}
