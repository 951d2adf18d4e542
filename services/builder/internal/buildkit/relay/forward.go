package relay

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/moby/buildkit/session/secrets"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// methodSecret is the one method whose messages are read.
const methodSecret = "/moby.buildkit.secrets.v1.Secrets/GetSecret"

// handle serves a call of the daemon. A panic, which is reported, ends this call only.
func (l *Link) handle(_ any, down grpc.ServerStream) error {
	err := lifecycle.Protect(l.client.ctx, func(context.Context) error { return l.pass(down) })
	if _, panicked := errors.AsType[*lifecycle.PanicError](err); panicked {
		return status.Error(codes.Internal, "the builder failed while passing the call on")
	}
	return err
}

// pass passes a call of the daemon on to the client. Both directions go their own
// way, each message waiting until the other end has room for it. A call that
// either end breaks off is broken off at the other.
func (l *Link) pass(down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	ctx, cancel := context.WithCancel(outgoing(down.Context()))
	defer cancel()
	up, err := l.client.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return l.client.explain(err)
	}
	var secret *secretReader
	if method == methodSecret && l.opts.OnSecret != nil {
		secret = &secretReader{tell: l.opts.OnSecret}
	}
	go func() {
		if lifecycle.Protect(l.client.ctx, func(context.Context) error { return sendUp(down, up, secret) }) != nil {
			cancel()
		}
	}()
	return l.client.explain(sendDown(up, down, secret))
}

// explain is the error of a call to the client, as the daemon is to see it.
func (c *Client) explain(err error) error {
	if err != nil && c.ctx.Err() != nil {
		return status.Error(codes.Unavailable, "the client's session has ended")
	}
	return err
}

// outgoing passes the daemon's metadata on, all values of each name, but for what
// belongs to one hop.
func outgoing(ctx context.Context) context.Context {
	in, _ := metadata.FromIncomingContext(ctx)
	out := make(metadata.MD, len(in))
	for name, values := range in {
		switch {
		case strings.HasPrefix(name, ":"), strings.HasPrefix(name, "grpc-"):
		case name == "content-type", name == "user-agent", name == "te":
		default:
			out[name] = values
		}
	}
	return metadata.NewOutgoingContext(ctx, out)
}

// sendUp passes the daemon's messages on until it has no more. It ends at the
// latest when the call does. Its error is that the daemon has broken the call off.
func sendUp(down grpc.ServerStream, up grpc.ClientStream, secret *secretReader) error {
	for {
		var f rawcodec.Frame
		if err := down.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				err = up.CloseSend()
			}
			return err
		}
		secret.request(f)
		if up.SendMsg(&f) != nil {
			return nil //nolint:nilerr // the client has ended the call; sendDown gets its status
		}
	}
}

// sendDown passes the client's header, messages, trailer and status on.
func sendDown(up grpc.ClientStream, down grpc.ServerStream, secret *secretReader) error {
	header, err := up.Header()
	if err == nil && header != nil {
		err = down.SendHeader(header)
	}
	for err == nil {
		var f rawcodec.Frame
		if err = up.RecvMsg(&f); err == nil {
			secret.response(f)
			err = down.SendMsg(&f)
		}
	}
	down.SetTrailer(up.Trailer())
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// secretReader reads copies of the messages of a GetSecret. A nil one reads nothing.
type secretReader struct {
	tell func(id string, value []byte)
	id   atomic.Value
}

func (s *secretReader) request(f rawcodec.Frame) {
	var req secrets.GetSecretRequest
	if s != nil && proto.Unmarshal(f.Data.Materialize(), &req) == nil {
		s.id.Store(req.GetID())
	}
}

func (s *secretReader) response(f rawcodec.Frame) {
	var res secrets.GetSecretResponse
	if s != nil && proto.Unmarshal(f.Data.Materialize(), &res) == nil && len(res.GetData()) > 0 {
		id, _ := s.id.Load().(string)
		s.tell(id, res.GetData())
	}
}
