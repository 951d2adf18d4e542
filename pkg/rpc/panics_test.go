package rpc_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// A panic is logged as an error with its value and stack, and counted, wherever a
// server recovers it: in its own methods, in a call that is passed on, in a goroutine
// of a call, and in an HTTP handler.
func TestPanics_AreLoggedAndCounted(t *testing.T) {
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "s", LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	codec := rawCodec{encoding.GetCodecV2("proto")}
	r := start(t, rigOptions{
		tel: tel,
		impl: &builds{
			get: func(context.Context, *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
				panic("boom unary")
			},
			build: func(_ *builderv1.BuildRequest, stream grpc.ServerStreamingServer[builderv1.BuildResponse]) error {
				ended := make(chan error)
				go func() {
					ended <- lifecycle.Protect(stream.Context(), func(context.Context) error { panic("boom goroutine") })
				}()
				return <-ended
			},
		},
		server: []grpc.ServerOption{grpc.ForceServerCodecV2(codec), grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { panic("boom passed on") })},
		depend: func(s *rpc.Server) {
			s.HandleHTTP("GET /panic", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom http") }))
		},
	})
	_, unary := r.client.GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "b"})
	refused(t, unary, codes.Internal, "INTERNAL")
	refused(t, r.buildErr(within(t), inlineBuild(nil)), codes.Internal, "INTERNAL")
	stream, err := r.conn.NewStream(within(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/moby.buildkit.v1.Control/Solve", grpc.ForceCodecV2(codec))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, stream.RecvMsg(new(frame)), codes.Internal, "INTERNAL")
	if res, err := http.Get("http://" + r.server.HTTPAddr() + "/panic"); err == nil { //nolint:noctx // loopback
		_ = res.Body.Close()
		t.Error("a handler that panics answers")
	}
	for _, value := range []string{"boom unary", "boom goroutine", "boom passed on", "boom http"} {
		if !reported(r.log.String(), value) {
			t.Errorf("the log lacks %q as an error with its stack:\n%s", value, r.log.String())
		}
	}
	if metrics := scrape(t, r); !strings.Contains(metrics, "kiln_panics_total") || !strings.Contains(metrics, "} 4\n") {
		t.Errorf("4 panics are not counted:\n%s", metrics)
	}
}

func reported(log, value string) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, `"level":"ERROR"`) && strings.Contains(line, `"panic":"`+value+`"`) && strings.Contains(line, "panics_test.go") {
			return true
		}
	}
	return false
}

// scrape returns the lines about panics of the server's metrics.
func scrape(t *testing.T, r *rig) string {
	t.Helper()
	res, err := http.Get("http://" + r.server.HTTPAddr() + "/metrics") //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "kiln_panics") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
