package gateway

import (
	"context"
	"time"

	"github.com/moby/buildkit/client/buildid"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// bridge passes a call of a client's frontend on, once the daemon has the build.
// Only the caller whose build it is may make it. It ends when the build is ended
// before its time, so that nothing of it goes on in the daemon.
func (g *Gateway) bridge(method string, down grpc.ServerStream, upstream Upstream) error {
	ref := buildid.FromIncomingContext(down.Context())
	s := g.solves.enter(ref)
	defer g.solves.leave(s)
	if done, err := g.hold(method, down, upstream, s); done || err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(down.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.cut, func() { cancel(context.Cause(s.cut)) })()
	err := g.passBridge(ctx, upstream.Conn(), method, down, s)
	if s.cut.Err() != nil {
		return context.Cause(s.cut)
	}
	return err
}

// hold waits until the daemon has the build. It reports whether it has answered
// the call itself.
func (g *Gateway) hold(method string, down grpc.ServerStream, upstream Upstream, s *solve) (done bool, err error) {
	ctx := down.Context()
	select {
	case <-s.come:
	case <-time.After(arriveWithin):
		return true, noBuild(s.ref)
	case <-ctx.Done():
		return true, context.Cause(ctx)
	}
	if !s.belongs(g.caller(ctx).Identity) {
		return true, fault.New(fault.PermissionDenied, "DENIED", "the build belongs to another caller", "make calls of your own builds only")
	}
	if method == methodPing {
		select {
		case <-s.sent:
		case <-s.held.Done():
			if s.waiting() {
				// A client waits 15 seconds for the answer, and builds wait for longer.
				return true, g.pong(down, upstream)
			}
		}
	}
	select {
	case <-s.sent:
	case <-ctx.Done():
		return true, context.Cause(ctx)
	}
	switch {
	case s.running():
		return false, nil
	case s.cut.Err() != nil:
		return true, context.Cause(s.cut)
	default:
		return true, noBuild(s.ref)
	}
}

// noBuild is what BuildKit says of a build that it does not know; see
// solver/errdefs.
func noBuild(ref string) error { return status.Errorf(codes.NotFound, "no such job %s", ref) }

// inspected makes the messages of the methods whose requests are looked at.
var inspected = map[string]func() proto.Message{
	bridgeMethods + "Solve":              func() proto.Message { return new(gatewaypb.SolveRequest) },
	bridgeMethods + "ResolveImageConfig": func() proto.Message { return new(gatewaypb.ResolveImageConfigRequest) },
	bridgeMethods + "ResolveSourceMeta":  func() proto.Message { return new(gatewaypb.ResolveSourceMetaRequest) },
}

// passBridge passes a call on if its request is allowed. A build that asks for
// what it may not have is ended.
func (g *Gateway) passBridge(ctx context.Context, conn *grpc.ClientConn, method string, down grpc.ServerStream, s *solve) error {
	message := inspected[method]
	if message == nil {
		return pass(ctx, conn, method, down, nil)
	}
	req := message()
	request, err := receive(down, req)
	if err != nil {
		return err
	}
	release, err := g.check(ctx, req)
	if err != nil {
		s.setCut(err)
		return err
	}
	defer release()
	return pass(ctx, conn, method, down, request)
}
