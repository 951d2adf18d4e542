package gateway

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// Daemon is a buildkitd daemon that calls are passed on to.
type Daemon interface {
	Name() string
	Conn() *grpc.ClientConn
}

// Daemons chooses daemons. Its errors are UNAVAILABLE faults.
type Daemons interface {
	// Pick returns a daemon for a build. It answered a moment ago.
	Pick(ctx context.Context) (Daemon, error)
	// Current returns a daemon for a call that belongs to no build. It answered
	// the last regular check.
	Current(ctx context.Context) (Daemon, error)
}

// upstream is a daemon with the ways in which calls are passed on to it: messages
// are passed as bytes, and header, trailer and status as they come.
type upstream struct{ Daemon }

// maxMessage is the size of messages that BuildKit allows, in bytes.
const maxMessage = 16 << 20

func callOptions() []grpc.CallOption {
	return []grpc.CallOption{
		grpc.ForceCodecV2(rawcodec.Codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage),
	}
}

// exchange sends one request to the daemon and returns its response. It passes on
// header and trailer. The request is spent. The call to the daemon ends with ctx.
func (u *upstream) exchange(ctx context.Context, c *call, request *rawcodec.Frame) (rawcodec.Frame, error) {
	var response rawcodec.Frame
	var header, trailer metadata.MD
	err := u.Conn().Invoke(outgoing(ctx), c.method, request, &response, append(callOptions(), grpc.Header(&header), grpc.Trailer(&trailer))...)
	c.SetTrailer(trailer)
	if setErr := c.SetHeader(header); err == nil {
		err = setErr
	}
	return response, err
}

// unary passes a call with one request and one response on.
func (u *upstream) unary(ctx context.Context, c *call, request *rawcodec.Frame) error {
	response, err := u.exchange(ctx, c, request)
	if err != nil {
		return err
	}
	return c.SendMsg(&response)
}

// both passes the messages of a streaming call on in both directions.
func (u *upstream) both(ctx context.Context, c *call) error {
	ctx, cancel := context.WithCancel(outgoing(ctx))
	defer cancel()
	up, err := u.Conn().NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, c.method, callOptions()...)
	if err != nil {
		return err
	}
	go func() {
		if lifecycle.Protect(c.Context(), func(context.Context) error { sendUp(c, up, cancel); return nil }) != nil {
			cancel() // it panicked
		}
	}()
	return sendDown(up, c)
}

// answers passes on what the daemon answers to one request.
func (u *upstream) answers(ctx context.Context, c *call, request *rawcodec.Frame) error {
	up, err := u.ask(ctx, c.method, request)
	if err != nil {
		return err
	}
	return sendDown(up, c)
}

// ask sends the one request of a call with many responses. The call ends with ctx.
func (u *upstream) ask(ctx context.Context, method string, request any) (grpc.ClientStream, error) {
	up, err := u.Conn().NewStream(outgoing(ctx), &grpc.StreamDesc{ServerStreams: true}, method, callOptions()...)
	if err != nil {
		return nil, err
	}
	if err := up.SendMsg(request); err == nil {
		_ = up.CloseSend() // its error is the status of the stream, which the reader gets
	}
	return up, nil
}

// outgoing returns ctx with the metadata of its incoming call, all values of each
// name, except what belongs to one connection or hop.
func outgoing(ctx context.Context) context.Context {
	in, _ := metadata.FromIncomingContext(ctx)
	out := make(metadata.MD, len(in))
	for name, values := range in {
		switch {
		case strings.HasPrefix(name, ":"), strings.HasPrefix(name, "grpc-"):
		case name == "content-type", name == "user-agent", name == "te", name == "authorization":
		case name == "traceparent", name == "tracestate":
			// This hop's own span, a child of the caller's, sets them anew.
		default:
			out[name] = values
		}
	}
	return metadata.NewOutgoingContext(ctx, out)
}

// sendUp passes the client's messages on until the client has no more. It ends at
// the latest when the call does.
func sendUp(c *call, up grpc.ClientStream, cancel func()) {
	for {
		var f rawcodec.Frame
		if err := c.RecvMsg(&f); err != nil {
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

// sendDown passes the daemon's header, messages, trailer and status on. The header
// goes at once: BuildKit's clients read the daemon's clock in it.
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
