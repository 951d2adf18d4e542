package relay_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/session/secrets/secretsprovider"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/relay"
)

// begin opens a Session stream.
func begin(t testing.TB, conn *grpc.ClientConn, md metadata.MD) controlapi.Control_SessionClient {
	t.Helper()
	stream, err := controlapi.NewControlClient(conn).Session(metadata.NewOutgoingContext(t.Context(), md))
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// settings returns an empty SETTINGS frame, with which an HTTP/2 server begins.
func settings() []byte { return []byte{0, 0, 0, 4, 0, 0, 0, 0, 0} }

func TestClient_EndsThatDoesNotSpeakHTTP2(t *testing.T) {
	hugeFrame := append(binary.BigEndian.AppendUint32(nil, 0xffffff00), 0, 0, 0, 0, 1)
	for name, sends := range map[string][][]byte{
		"nothing":         nil,
		"garbage":         {[]byte("HTTP/1.1 200 OK\r\n\r\nhello, this is not what was asked for")},
		"a huge frame":    {settings(), hugeFrame},
		"empty pieces":    {nil, nil, nil},
		"half a settings": {settings()[:5]},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, relay.Options{Handshake: time.Second})
			stream := begin(t, dial(t, f.addr), metadata.Pairs("x-docker-expose-session-uuid", "abc"))
			for _, data := range sends {
				if err := stream.Send(&controlapi.BytesMessage{Data: data}); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case err := <-f.ended:
				if fault.KindOf(err) != fault.InvalidArgument {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it has not ended")
			}
		})
	}
}

// One byte now and then must not keep a session open that never begins.
func TestClient_EndsThatBeginsTooSlowly(t *testing.T) {
	f := newFront(t, relay.Options{Handshake: time.Second})
	stream := begin(t, dial(t, f.addr), metadata.Pairs("x-docker-expose-session-uuid", "abc"))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := <-f.ended; err == nil {
			t.Error("the session ended without an error")
		}
	}()
	huge := slowly(settings())
	for {
		select {
		case <-ended:
			return
		case <-time.After(100 * time.Millisecond):
			if err := stream.Send(&controlapi.BytesMessage{Data: huge()}); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
	}
}

func slowly(data []byte) func() []byte {
	return func() []byte {
		one := data[:1]
		if len(data) > 2 {
			data = data[1:]
		}
		return one
	}
}

// wall is a connection that a test can freeze, as a dead host does.
type wall struct {
	net.Conn
	frozen chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (w *wall) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	select {
	case <-w.frozen:
		<-w.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (w *wall) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.Conn.Close()
}

func TestClient_EndsThatNoLongerAnswers(t *testing.T) {
	f := newFront(t, relay.Options{HealthEvery: 100 * time.Millisecond, HealthTimeout: 300 * time.Millisecond})
	s, err := session.NewSession(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	s.Allow(secretsprovider.FromMap(nil))
	conn := dial(t, f.addr)
	frozen := make(chan struct{})
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		dialer := grpchijack.Dialer(controlapi.NewControlClient(conn))
		_ = s.Run(context.WithoutCancel(t.Context()), func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			inner, err := dialer(ctx, proto, meta)
			return &wall{Conn: inner, frozen: frozen, closed: make(chan struct{})}, err
		})
	}()
	c := f.next(t)
	select {
	case <-c.Done():
		t.Fatalf("a client that is alive was given up: %v", c.Err())
	case <-time.After(2 * time.Second):
	}
	close(frozen)
	within(t, c.Done(), 5*time.Second, "the session has not ended")
	if fault.KindOf(c.Err()) != fault.Unavailable {
		t.Error(c.Err())
	}
	_ = s.Close()
	<-ran
}
