package gateway

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/protolimit"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

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

// pass passes a whole call on. The call to the daemon ends with ctx. A request
// that was read from down already is given as first.
func pass(ctx context.Context, conn *grpc.ClientConn, method string, down grpc.ServerStream, first *rawcodec.Frame) error {
	if streams[method] {
		return passStream(ctx, conn, method, down)
	}
	if first == nil {
		first = new(rawcodec.Frame)
		if err := down.RecvMsg(first); err != nil {
			return err
		}
	}
	response, err := exchange(ctx, conn, method, down, first)
	if err != nil {
		return err
	}
	return down.SendMsg(&response)
}

// exchange sends one request to the daemon and returns its response, passing on
// header and trailer. The request is spent.
func exchange(ctx context.Context, conn *grpc.ClientConn, method string, down grpc.ServerStream, request *rawcodec.Frame) (rawcodec.Frame, error) {
	var response rawcodec.Frame
	var header, trailer metadata.MD
	err := conn.Invoke(outgoing(ctx), method, request, &response, append(callOptions(), grpc.Header(&header), grpc.Trailer(&trailer))...)
	down.SetTrailer(trailer)
	if setErr := down.SetHeader(header); err == nil {
		err = setErr
	}
	return response, err
}

func passStream(ctx context.Context, conn *grpc.ClientConn, method string, down grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(outgoing(ctx))
	defer cancel()
	up, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, callOptions()...)
	if err != nil {
		return err
	}
	go sendUp(down, up, cancel)
	return sendDown(up, down)
}

// maxMessage is the size of messages that BuildKit allows, in bytes.
const maxMessage = 16 << 20

func callOptions() []grpc.CallOption {
	return []grpc.CallOption{
		grpc.ForceCodecV2(rawcodec.Codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage),
	}
}

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
func sendUp(down grpc.ServerStream, up grpc.ClientStream, cancel func()) {
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
		if err := up.SendMsg(&f); err != nil {
			return // the daemon has ended the call; sendDown gets its status
		}
	}
}

// sendDown passes the daemon's header, messages, trailer and status on. The
// header goes at once: BuildKit's clients read the daemon's clock in it.
func sendDown(up grpc.ClientStream, down grpc.ServerStream) error {
	header, err := up.Header()
	if err == nil && header != nil {
		err = down.SendHeader(header)
	}
	for err == nil {
		var f rawcodec.Frame
		if err = up.RecvMsg(&f); err == nil {
			err = down.SendMsg(&f)
		}
	}
	down.SetTrailer(up.Trailer())
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// receive reads a request and decodes a copy of it, afresh: BuildKit's messages
// must not be reused. One that cannot be read is not passed on: the daemon might
// read it in another way than the builder, and build what was not looked at.
func receive(down grpc.ServerStream, into proto.Message) (*rawcodec.Frame, error) {
	request := new(rawcodec.Frame)
	if err := down.RecvMsg(request); err != nil {
		return nil, err
	}
	if err := protolimit.Unmarshal(request.Data.Materialize(), into, protolimit.Default); err != nil {
		return nil, unreadable(err)
	}
	return request, nil
}
