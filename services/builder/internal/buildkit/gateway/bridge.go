package gateway

import (
	"context"
	"errors"
	"time"

	"github.com/moby/buildkit/client/buildid"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// arriveWithin is how long a frontend's call waits for the Solve of its build. A
// client waits as long for the answer to its first call.
const arriveWithin = 15 * time.Second

// visit is a call of a build's frontend, of a build that has a daemon.
type visit struct {
	*call
	ctx   context.Context //nolint:containedctx // of the call, and of the build
	route *route
	state state
	judge func(*rawcodec.Frame) error // whether the client may have the response; nil: it may
}

// respond gives the client the daemon's response, or ends a build that may not have it.
func (v *visit) respond(response *rawcodec.Frame) error {
	if v.judge != nil {
		if err := v.judge(response); err != nil {
			v.route.cut(err)
			return err
		}
	}
	return v.SendMsg(response)
}

// light serves a call that gives the daemon no work to do.
func light(serve func(*Gateway, *visit) error) method {
	return func(g *Gateway, c *call) error { return g.bridge(c, serve) }
}

// work serves a call that has the daemon work, and so needs the slot of its build.
func work(serve func(*Gateway, *visit) error) method {
	return light(func(g *Gateway, v *visit) error {
		s := v.state.slot
		if s == nil { // a probe
			return serve(g, v)
		}
		if err := s.acquire(v.ctx); err != nil {
			return err
		}
		defer s.release()
		if v.method == methodReturn {
			s.keep()
		}
		return serve(g, v)
	})
}

// bridge serves a call of a frontend, once the daemon has the build. Only the caller
// whose build it is may make it. It ends when the build is ended before its time, so
// that nothing of it goes on in the daemon.
func (g *Gateway) bridge(c *call, serve func(*Gateway, *visit) error) error {
	ref := buildid.FromIncomingContext(c.Context())
	if ref == "" {
		return status.Error(codes.Unknown, "no buildid found in context") // as buildkitd says
	}
	if err := build.CheckID(ref); err != nil {
		return err
	}
	r := g.routes.enter(ref)
	defer g.routes.leave(r)
	s, answered, err := g.arrival(c, r)
	if answered || err != nil {
		return err
	}
	switch {
	case r.life.Err() != nil:
		return context.Cause(r.life)
	case s.phase == ended:
		return noBuild(ref)
	}
	ctx, cancel := context.WithCancelCause(c.Context())
	defer cancel(nil)
	defer context.AfterFunc(r.life, func() { cancel(context.Cause(r.life)) })()
	err = serve(g, &visit{call: c, ctx: ctx, route: r, state: s})
	if r.life.Err() != nil {
		return context.Cause(r.life)
	}
	return err
}

// arrival waits until the build has a daemon. A Ping of a build that waits for its
// slot is answered meanwhile: clients wait 15 seconds for that, and builds longer.
func (g *Gateway) arrival(c *call, r *route) (s state, answered bool, err error) {
	ctx, cancel := context.WithTimeoutCause(c.Context(), arriveWithin, noBuild(r.ref))
	defer cancel()
	if s, err = r.await(ctx, waiting); err != nil {
		return s, false, err
	}
	if s.owner.identity != c.owner.identity {
		return s, false, noBuild(r.ref)
	}
	if c.method == methodPing {
		if s, err = r.until(c.Context(), func(s state) bool { return s.queued() || s.phase > waiting }); err != nil {
			return s, false, err
		}
		if s.queued() {
			return s, true, g.pong(c)
		}
	}
	s, err = r.await(c.Context(), placed)
	return s, false, err
}

// noBuild is what BuildKit says of a build that it does not know; see
// solver/errdefs.
func noBuild(ref string) error { return status.Errorf(codes.NotFound, "no such job %s", ref) }

// answer passes on a call with one request and one response.
func answer(g *Gateway, v *visit) error {
	request, err := v.frame()
	if err != nil {
		return err
	}
	return g.answer(v, request)
}

// answer passes a request on. A build that is on its way to the daemon may not be
// there yet, and the daemon looks for it for three seconds only.
func (g *Gateway) answer(v *visit, request *rawcodec.Frame) error {
	up := v.state.daemon
	if v.state.phase >= running {
		response, err := up.exchange(v.ctx, v.call, request)
		if err != nil {
			return err
		}
		return v.respond(&response)
	}
	raw := request.Data.Materialize()
	request.Data.Free()
	for {
		response, err := up.exchange(v.ctx, v.call, rawcodec.FrameOf(raw))
		if err == nil {
			v.route.answered()
			return v.respond(&response)
		}
		if s, _ := v.route.now(); status.Code(err) != codes.NotFound || s.phase != placed {
			return err
		}
		select {
		case <-time.After(askAgain):
		case <-v.ctx.Done():
			return context.Cause(v.ctx)
		}
	}
}

// exec passes the process of a frontend's container on.
func exec(_ *Gateway, v *visit) error { return v.state.daemon.both(v.ctx, v.call) }

// inspected makes the messages of the methods whose requests are checked.
var inspected = map[string]func() proto.Message{
	bridgeMethods + "Solve":              func() proto.Message { return new(gatewaypb.SolveRequest) },
	bridgeMethods + "ResolveImageConfig": func() proto.Message { return new(gatewaypb.ResolveImageConfigRequest) },
	bridgeMethods + "ResolveSourceMeta":  func() proto.Message { return new(gatewaypb.ResolveSourceMetaRequest) },
	bridgeMethods + "NewContainer":       func() proto.Message { return new(gatewaypb.NewContainerRequest) },
}

// checked passes a call on if its request is allowed, and opens the sessions that it
// names. A build that asks for what it may not have is ended.
func checked(g *Gateway, v *visit) error {
	req := inspected[v.method]()
	request, err := v.receive(req)
	if err != nil {
		return err
	}
	sessions, release, err := g.allow(v.ctx, v.call, req, v.state.probe)
	if err != nil {
		v.route.cut(err)
		return err
	}
	defer release()
	if err := openAt(v.ctx, sessions, v.state.daemon); err != nil {
		return err
	}
	if solve, ok := req.(*gatewaypb.SolveRequest); ok && v.state.probe && solve.GetFrontend() != "" {
		v.judge = withoutResult
	}
	return g.answer(v, request)
}

// allow checks a request against the policy and the caller's rules, and takes the
// sessions that it names until release is called.
func (g *Gateway) allow(ctx context.Context, c *call, req proto.Message, probe bool) (_ []*sessionRoute, release func(), err error) {
	err = g.check(ctx, req)
	if err == nil && probe {
		err = onlyReads(req)
	}
	ids, unread := sessionsOf(req)
	if err = errors.Join(err, unread); err != nil {
		return nil, nil, err
	}
	return g.routes.claim(c.owner, ids)
}
