package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

func newTelemetry(t testing.TB, service string) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: service, LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

func TestOneTraceOverACall(t *testing.T) {
	otlp := testkit.NewOTLP(t)
	for _, entry := range otlp.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
	server, client := newTelemetry(t, "kiln-builder"), newTelemetry(t, "caller")
	r := start(t, rigOptions{tel: server, impl: &builds{
		get: func(ctx context.Context, _ *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			_, span := server.Tracer.Tracer("test").Start(ctx, "inside")
			span.End()
			return nil, errors.New("secret innards")
		},
	}})
	conn, err := rpc.Dial(r.server.Addr(), rpc.ClientOptions{Telemetry: client})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, root := client.Tracer.Tracer("test").Start(within(t), "root")
	_, err = builderv1.NewBuilderServiceClient(conn).GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: "b"})
	root.End()
	traceID := root.SpanContext().TraceID().String()

	// A fault of ours names the trace, to the caller and in the log.
	st := refused(t, err, codes.Internal, "INTERNAL")
	if got := detail[*errdetails.ErrorInfo](st).GetMetadata()["trace_id"]; got != traceID {
		t.Errorf("trace_id %q, want %q", got, traceID)
	}
	for _, tel := range []*telemetry.Telemetry{client, server} {
		if err := tel.Shutdown(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	parents := map[string]string{} // Name and service to those of the parent.
	byID := map[string]testkit.Span{}
	for _, span := range otlp.Spans() {
		byID[span.SpanID] = span
	}
	for _, span := range byID {
		if span.TraceID != traceID {
			t.Errorf("span %s of another trace", span.Name)
		}
		parents[span.Service+" "+span.Name] = byID[span.ParentID].Service + " " + byID[span.ParentID].Name
	}
	const method = "kiln.builder.v1.BuilderService/GetBuild"
	for span, parent := range map[string]string{
		"kiln-builder inside":    "kiln-builder " + method,
		"kiln-builder " + method: "caller " + method,
		"caller " + method:       "caller root",
	} {
		if parents[span] != parent {
			t.Errorf("the parent of %q is %q, want %q", span, parents[span], parent)
		}
	}
}

// BenchmarkUnary compares a call through our server and client with one through
// bare gRPC, both on loopback.
func BenchmarkUnary(b *testing.B) {
	ctx := b.Context()
	b.Run("kiln", func(b *testing.B) {
		server, err := rpc.NewServer(rpc.ServerOptions{Name: "bench", Config: loopback(), Telemetry: newTelemetry(b, "bench")})
		if err != nil {
			b.Fatal(err)
		}
		builderv1.RegisterBuilderServiceServer(server, &builds{})
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- server.Run(ctx) }()
		conn, err := rpc.Dial(server.Addr(), rpc.ClientOptions{Telemetry: newTelemetry(b, "client")})
		if err != nil {
			b.Fatal(err)
		}
		call(b, conn)
		_ = conn.Close()
		cancel()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	})
	b.Run("bare", func(b *testing.B) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		server := grpc.NewServer()
		builderv1.RegisterBuilderServiceServer(server, &builds{})
		go func() { _ = server.Serve(listener) }()
		defer server.Stop()
		conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		call(b, conn)
	})
}

func call(b *testing.B, conn grpc.ClientConnInterface) {
	b.Helper()
	client := builderv1.NewBuilderServiceClient(conn)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.GetBuild(b.Context(), &builderv1.GetBuildRequest{BuildId: "b"}); err != nil {
			b.Fatal(err)
		}
	}
}
