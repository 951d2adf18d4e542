package relay_test

import (
	"context"
	"errors"
	"io"
	"runtime"
	"syscall"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/grpchijack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/relay"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// piece is how much a file sync of BuildKit sends in a message, and volume how much a
// benchmark sends in a round.
const (
	piece  = 32 << 10
	volume = 64 << 20
)

// BenchmarkTransfer compares a session that goes to the daemon directly, one that
// is passed on as raw bytes, and one that ends in the builder.
func BenchmarkTransfer(b *testing.B) {
	send := service(func(stream grpc.ServerStream) error { return pump(stream) })
	take := service(func(stream grpc.ServerStream) error { return drain(stream) })
	for _, way := range []struct {
		name    string
		connect func(testing.TB, session.Attachable) session.Caller
	}{{"direct", direct}, {"pipe", piped}, {"relay", func(t testing.TB, s session.Attachable) session.Caller { return linked(t, s) }}} {
		b.Run("context/"+way.name, func(b *testing.B) {
			caller := way.connect(b, send)
			b.SetBytes(volume)
			defer cpu(b)()
			for b.Loop() {
				if err := drain(call(b, b.Context(), caller.Conn())); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("output/"+way.name, func(b *testing.B) {
			caller := way.connect(b, take)
			b.SetBytes(volume)
			defer cpu(b)()
			for b.Loop() {
				stream := call(b, b.Context(), caller.Conn())
				err := errors.Join(pump(stream), stream.CloseSend())
				if end := stream.RecvMsg(new(wrapperspb.BytesValue)); !errors.Is(end, io.EOF) {
					err = errors.Join(err, end)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// cpu reports what a round takes of processors, which a busy machine changes less
// than its time.
func cpu(b *testing.B) func() {
	used := func() time.Duration {
		var r syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64((used()-before).Milliseconds())/float64(b.N), "cpu-ms/op") }
}

func pump(stream interface{ SendMsg(any) error }) error {
	message := wrapperspb.Bytes(make([]byte, piece))
	for range volume / piece {
		if err := stream.SendMsg(message); err != nil {
			return err
		}
	}
	return nil
}

func drain(stream interface{ RecvMsg(any) error }) error {
	for {
		if err := stream.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

func direct(t testing.TB, offer session.Attachable) session.Caller {
	t.Helper()
	d := newDaemon(t)
	return d.caller(t, run(t, d.conn, offer))
}

// piped passes the bytes of sessions on.
func piped(t testing.TB, offer session.Attachable) session.Caller {
	t.Helper()
	d := newDaemon(t)
	addr := serve(t, grpc.NewServer(grpc.ForceServerCodecV2(rawcodec.Codec{}), grpc.StaticStreamWindowSize(4<<20), grpc.StaticConnWindowSize(16<<20),
		grpc.UnknownServiceHandler(func(_ any, down grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(down)
			in, _ := metadata.FromIncomingContext(down.Context())
			for _, hop := range []string{":authority", "content-type", "user-agent"} {
				delete(in, hop)
			}
			up, err := d.conn.NewStream(metadata.NewOutgoingContext(down.Context(), in), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method,
				grpc.ForceCodecV2(rawcodec.Codec{}))
			if err != nil {
				return err
			}
			go copyFrames(up, down)
			copyFrames(down, up)
			return nil
		})))
	return d.caller(t, run(t, dial(t, addr), offer))
}

func copyFrames(to interface{ SendMsg(any) error }, from interface{ RecvMsg(any) error }) {
	for {
		var f rawcodec.Frame
		if from.RecvMsg(&f) != nil || to.SendMsg(&f) != nil {
			return
		}
	}
}

func run(t testing.TB, conn *grpc.ClientConn, offer session.Attachable) (id string) {
	t.Helper()
	s, err := session.NewSession(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	s.Allow(offer)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = s.Run(context.WithoutCancel(t.Context()), grpchijack.Dialer(controlapi.NewControlClient(conn)))
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-ran
	})
	return s.ID()
}

// BenchmarkIdleClient says what a session holds in the builder that is only open.
func BenchmarkIdleClient(b *testing.B) {
	f := newFront(b, relay.Options{})
	conn := dial(b, f.addr)
	before := held()
	const clients = 200
	for range clients {
		run(b, conn, service(nil))
		f.next(b)
	}
	for b.Loop() {
	}
	b.ReportMetric(float64(held()-before)/clients, "B/client")
}

func held() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse) //nolint:gosec // far from the bound
}
