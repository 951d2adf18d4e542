package rpc

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// guard stands around each call: outside, it learns who calls, maps the error
// and logs; inside, it decides whether the call may be served.
type guard struct {
	log      *slog.Logger
	panicked lifecycle.Reporter
	access   *access
	creds    credentials.TransportCredentials // nil: plain text
	audit    *audit
	limits   limits
	draining <-chan struct{}
}

// healthWatch never ends by itself, so it is ended when the server drains.
const healthWatch = "/grpc.health.v1.Health/Watch"

// ours says whether a method is of Kiln's own contracts. Those are strict; what
// clients of other contracts send through us is theirs.
func ours(method string) bool { return strings.HasPrefix(method, "/kiln.") }

func (g *guard) outerUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	id, err := g.access.identify(ctx)
	ctx, noted := g.audit.entryOf(auth.NewContext(lifecycle.WithReporter(ctx, g.panicked), id), info.FullMethod, id)
	var resp any
	if err == nil {
		resp, err = next(ctx, req)
	}
	err = g.finish(ctx, noted, req, err)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (g *guard) innerUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	grant, err := g.access.authorize(ctx, info.FullMethod, auth.FromContext(ctx))
	if err != nil {
		return nil, err
	}
	ctx = auth.WithGrant(ctx, grant)
	if !ours(info.FullMethod) {
		return next(ctx, req)
	}
	ctx, cancel, err := bound(ctx, g.limits.unaryTimeout)
	if err != nil {
		return nil, err
	}
	defer cancel()
	if err := check(req); err != nil {
		return nil, err
	}
	if g.audit.required { // else one entry, at the end, says all
		if err := begin(ctx, req); err != nil {
			return nil, err
		}
	}
	return next(ctx, req)
}

// begin notes the begin of the call of ctx.
func begin(ctx context.Context, request any) error {
	noted, _ := ctx.Value(entryKey{}).(*entry)
	return noted.begin(ctx, request)
}

func (g *guard) outerStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	id, err := g.access.identify(stream.Context())
	ctx, noted := g.audit.entryOf(auth.NewContext(lifecycle.WithReporter(stream.Context(), g.panicked), id), info.FullMethod, id)
	if info.FullMethod == healthWatch {
		var cancel context.CancelFunc
		ctx, cancel = untilClosed(ctx, g.draining)
		defer cancel()
	}
	guarded := &guardedStream{ServerStream: stream, ctx: ctx, strict: ours(info.FullMethod)}
	if err == nil {
		err = next(srv, guarded)
	}
	return g.finish(ctx, noted, guarded.first.Load(), err)
}

func (g *guard) innerStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx := stream.Context()
	grant, err := g.access.authorize(ctx, info.FullMethod, auth.FromContext(ctx))
	if err != nil {
		return err
	}
	if g.audit.required && !ours(info.FullMethod) { // whose requests are not read here
		if err := begin(ctx, nil); err != nil {
			return err
		}
	}
	return next(srv, &grantedStream{ServerStream: stream, ctx: auth.WithGrant(ctx, grant)})
}

// grantedStream has the context of a call that is allowed.
type grantedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *grantedStream) Context() context.Context { return s.ctx }

// finish maps the error of a call and logs the call.
func (g *guard) finish(ctx context.Context, noted *entry, request any, err error) error {
	if err == nil {
		noted.end(ctx, request, status.New(codes.OK, ""))
		if g.log.Enabled(ctx, slog.LevelDebug) {
			g.log.DebugContext(ctx, "call", "method", noted.method, "code", codes.OK.String(),
				"duration", time.Since(noted.start), "identity", noted.id.String())
		}
		return nil
	}
	st := Status(err)
	if ours(noted.method) {
		st = explain(ctx, noted.method, st)
	}
	noted.end(ctx, request, st)
	g.logFailure(ctx, noted.method, noted.id, noted.start, st, err)
	return st.Err()
}

// unknownService answers calls of methods that nothing serves.
func unknownService(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	return notServed(method)
}

func notServed(method string) error {
	return fault.New(fault.Unimplemented, "UNIMPLEMENTED", method+" is not served by this version",
		"call a method that is served, or a server of a later version; the API reference says which methods are")
}

// explain completes a status with what only the call knows.
func explain(ctx context.Context, method string, st *status.Status) *status.Status {
	switch {
	case st.Code() == codes.Unimplemented && len(st.Proto().GetDetails()) == 0:
		// From the embedded Unimplemented…Server.
		return Status(notServed(method))
	case st.Code() == codes.Internal:
		return withTraceID(ctx, st)
	default:
		return st
	}
}

// guardedStream has the context of the call, and checks messages that come in.
type guardedStream struct {
	grpc.ServerStream
	ctx    context.Context
	strict bool
	first  atomic.Value // the first message that came, of our own contracts; a handler may receive beside its end
}

func (s *guardedStream) Context() context.Context { return s.ctx }

func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if !s.strict {
		return nil
	}
	if err := check(m); err != nil || !s.first.CompareAndSwap(nil, m) {
		return err
	}
	return begin(s.ctx, m)
}

// untilClosed is ctx, cancelled also when done is closed.
func untilClosed(ctx context.Context, done <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
