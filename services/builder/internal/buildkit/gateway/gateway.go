// Package gateway passes BuildKit's own API on to a daemon, message for message,
// so that unmodified BuildKit clients build through the builder. It reads what
// goes by just enough to remember the builds.
package gateway

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// services are those of buildkitd that clients need. Its health and reflection
// are answered by the builder for itself.
var services = map[string]bool{
	"moby.buildkit.v1.Control":                            true,
	"moby.buildkit.v1.frontend.LLBBridge":                 true,
	"containerd.services.content.v1.Content":              true,
	"opentelemetry.proto.collector.trace.v1.TraceService": true,
}

// ServerOptions are what a server needs that has the gateway.
func (g *Gateway) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnknownServiceHandler(g.Handle),
		grpc.ForceServerCodecV2(rawcodec.Codec{}),
		grpc.StaticStreamWindowSize(buildkit.StreamWindow),
		grpc.StaticConnWindowSize(buildkit.ConnectionWindow),
	}
}

// Upstream is a daemon that calls are passed on to.
type Upstream interface {
	Name() string
	Conn() *grpc.ClientConn
}

// Gateway passes calls on.
type Gateway struct {
	pick   func(context.Context) (Upstream, error)
	builds *build.Service
	caller func(context.Context) build.Caller
}

// New returns a gateway to the daemons that pick returns, which tells builds of
// the builds that it sees. caller says who makes a call.
func New(pick func(context.Context) (Upstream, error), builds *build.Service, caller func(context.Context) build.Caller) *Gateway {
	return &Gateway{pick: pick, builds: builds, caller: caller}
}

// Handle serves every method that the server does not know by itself; see
// grpc.UnknownServiceHandler.
func (g *Gateway) Handle(_ any, down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if !services[service] {
		return status.Errorf(codes.Unimplemented, "unknown method %s", method)
	}
	upstream, err := g.pick(down.Context())
	if err != nil {
		return err
	}
	// Ending the call to the daemon with this one is what cancels a build: BuildKit
	// has no other way.
	ctx, cancel := context.WithCancel(outgoing(down.Context()))
	defer cancel()
	watch := g.watch(down.Context(), service, name, upstream.Name())
	if streams[method] {
		err = passStream(ctx, cancel, upstream.Conn(), method, down, watch)
	} else {
		err = passUnary(ctx, upstream.Conn(), method, down, watch)
	}
	watch.ended(err)
	return err
}

// streams are the methods that are not one request and one response. What is
// unary travels in fewer frames, and a build makes dozens of such calls.
var streams = map[string]bool{
	"/moby.buildkit.v1.Control/Prune":                  true,
	"/moby.buildkit.v1.Control/Status":                 true,
	"/moby.buildkit.v1.Control/Session":                true,
	"/moby.buildkit.v1.Control/ListenBuildHistory":     true,
	"/moby.buildkit.v1.frontend.LLBBridge/ExecProcess": true,
	"/containerd.services.content.v1.Content/List":     true,
	"/containerd.services.content.v1.Content/Read":     true,
	"/containerd.services.content.v1.Content/Write":    true,
}

func passUnary(ctx context.Context, conn *grpc.ClientConn, method string, down grpc.ServerStream, watch watcher) error {
	var request, response rawcodec.Frame
	if err := down.RecvMsg(&request); err != nil {
		return err
	}
	watch.request(request)
	var header, trailer metadata.MD
	err := conn.Invoke(ctx, method, &request, &response, grpc.Header(&header), grpc.Trailer(&trailer), grpc.ForceCodecV2(rawcodec.Codec{}),
		grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage))
	down.SetTrailer(trailer)
	if setErr := down.SetHeader(header); err == nil {
		err = setErr
	}
	if err != nil {
		return err
	}
	watch.response(response)
	return down.SendMsg(&response)
}

func passStream(ctx context.Context, cancel func(), conn *grpc.ClientConn, method string, down grpc.ServerStream, watch watcher) error {
	up, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodecV2(rawcodec.Codec{}),
		grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage))
	if err != nil {
		return err
	}
	go sendUp(down, up, watch, cancel)
	return sendDown(up, down, watch)
}

// maxMessage is the size of messages that BuildKit allows, in bytes.
const maxMessage = 16 << 20

// outgoing passes a caller's metadata on, all values of each name, but for what
// belongs to one connection or hop.
func outgoing(ctx context.Context) context.Context {
	in, _ := metadata.FromIncomingContext(ctx)
	out := make(metadata.MD, len(in))
	for name, values := range in {
		switch {
		case strings.HasPrefix(name, ":"), strings.HasPrefix(name, "grpc-"):
		case name == "content-type", name == "user-agent", name == "te", name == "authorization":
		case name == "traceparent", name == "tracestate":
			// Set anew by this hop's own span, which is a child of the caller's.
		default:
			out[name] = values
		}
	}
	return metadata.NewOutgoingContext(ctx, out)
}

// sendUp passes the caller's messages on until the caller has no more. It ends
// at the latest when the call does.
func sendUp(down grpc.ServerStream, up grpc.ClientStream, watch watcher, cancel func()) {
	for {
		var f rawcodec.Frame
		if err := down.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				err = up.CloseSend()
			}
			if err != nil {
				cancel()
			}
			return
		}
		watch.request(f)
		if err := up.SendMsg(&f); err != nil {
			return // the daemon has ended the call; sendDown gets its status
		}
	}
}

// sendDown passes the daemon's header, messages, trailer and status on. The
// header goes at once: BuildKit's clients read the daemon's clock in it.
func sendDown(up grpc.ClientStream, down grpc.ServerStream, watch watcher) error {
	header, err := up.Header()
	if err == nil && header != nil {
		err = down.SendHeader(header)
	}
	for err == nil {
		var f rawcodec.Frame
		if err = up.RecvMsg(&f); err == nil {
			watch.response(f)
			err = down.SendMsg(&f)
		}
	}
	down.SetTrailer(up.Trailer())
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
