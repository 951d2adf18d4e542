package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/grpcerrors"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/protocodec"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/outcome"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// solve takes the build that a Solve asks for to its end. Ending the call to the
// daemon is what cancels a build: BuildKit has no other way.
func (g *Gateway) solve(c *call) (err error) {
	var req controlapi.SolveRequest
	request, err := c.receive(&req)
	if err != nil {
		return err
	}
	ref := req.GetRef()
	if ref == "" {
		return fault.Invalid("Ref", "", "a build needs an id", "send a ref that no other build has")
	}
	if err := build.CheckID(ref); err != nil { // before it is kept as the name of a route
		return err
	}
	if err := c.audit(slog.String("ref", brief(ref)), slog.String("session", brief(req.GetSession()))); err != nil {
		return err
	}
	session := req.GetSession()
	defer func() {
		if err != nil {
			g.settle(c, session)
		}
	}()
	// Before there is a record, which would be one of a project that is not the caller's.
	if err := auth.GrantOf(c.Context()).Check(auth.Use{Project: project(c.Context())}); err != nil {
		return err
	}
	if err := g.reserved(c.Context(), ref); err != nil {
		return err
	}
	r := g.routes.enter(ref)
	if !r.arrive(c.owner, project(c.Context())) {
		g.routes.leave(r)
		return refTaken(ref)
	}
	defer g.routes.linger(r)
	defer func() { r.end(err) }()
	if isProbe(&req) {
		return g.probe(c, r, request, &req)
	}
	return g.build(c, r, request, &req)
}

func refTaken(ref string) error {
	return fault.New(fault.AlreadyExists, "ALREADY_EXISTS", fmt.Sprintf("job ID %s exists", ref), "send a ref that no other build has")
}

// errBroke is how a build ended that the gateway itself broke.
var errBroke = fault.New(fault.Internal, "INTERNAL", "the builder failed while passing the build on", "report it with the trace id of the build")

// build runs a build. Its end is stored before its client learns of it.
func (g *Gateway) build(c *call, r *route, request *rawcodec.Frame, req *controlapi.SolveRequest) error {
	asked := whatOf(req)
	ctx, observed, err := g.builds.Observe(c.Context(), build.Observation{
		ID: r.ref, Project: project(c.Context()), Tags: asked.tags, Bytes: int64(request.Data.Len()), Caller: g.caller(c.Context()),
	})
	if err != nil {
		return err
	}
	ctx, cancel, unbind := r.bind(ctx)
	defer cancel(nil)
	defer unbind()
	// A panic, which ends this call only, leaves neither a slot taken nor a build
	// without an end.
	defer func() { observed.End(ctx, outcome.FailureOf(ctx, errBroke, nil), build.Result{}) }()
	sessions, release, err := g.admit(ctx, c, r, req, observed)
	if err != nil {
		cancel(err)
		observed.End(ctx, outcome.FailureOf(ctx, err, nil), build.Result{})
		return whyEnded(ctx)
	}
	defer release()
	up, err := g.place(ctx, sessions, asked.beside)
	if err != nil {
		cancel(err)
		observed.End(ctx, outcome.FailureOf(ctx, err, nil), build.Result{})
		return whyEnded(ctx)
	}
	observed.Begin(up.Name())
	return g.run(ctx, &started{
		call: c, route: r, observed: observed, up: up, asked: asked, unbind: unbind, secrets: secretsOf(sessions, asked.session),
	}, request)
}

// what is what a build needs of its request after it was checked. The request itself
// is not kept while the build waits: decoded, it may take fifty times its bytes, which
// the bound on what waits does not count.
type what struct {
	session    string
	beside     []string // sessions that the client opens beside the Solve
	tags       []string
	clientRuns bool // the client runs the frontend
}

func whatOf(req *controlapi.SolveRequest) what {
	return what{
		session: req.GetSession(), beside: openedBeside(req), tags: tagsOf(req),
		clientRuns: req.GetFrontend() == "" && req.GetDefinition() == nil,
	}
}

// started is a build whose Solve goes to a daemon.
type started struct {
	*call
	route    *route
	observed *build.Observed
	up       *upstream
	asked    what
	unbind   func()
	secrets  *mask.Set
}

// run has the daemon solve a build.
func (g *Gateway) run(ctx context.Context, s *started, request *rawcodec.Frame) error {
	slot := newSlot(ctx, g.queue, s.owner, s.observed, s.asked.clientRuns)
	defer slot.end()
	view := g.steps.Begin(s.secrets)
	defer view.End()
	s.route.watch(view)
	told := follow(ctx, s.up, s.route, view, s.observed.Event)
	s.route.send(s.up, slot)
	response, err := s.up.exchange(ctx, s.call, request)
	slot.end()
	s.observed.Yield() // the daemon works on it no more; what it has to tell may come late
	result := told.end(err)
	s.unbind() // what ends from here on has not been cut
	if err != nil {
		answer := err
		if ctx.Err() != nil { // before End, which ends it
			answer = whyEnded(ctx)
		}
		s.observed.End(ctx, told.failure(ctx, grpcerrors.FromGRPC(err)), result)
		return answer
	}
	result.Outputs = outputsOf(response, s.asked.tags)
	s.observed.End(ctx, nil, result)
	return s.SendMsg(&response)
}

// settleWithin bounds how long a refusal waits for the client's session.
const settleWithin = time.Second

// settle waits until the session of a build stands that has failed. A refusal that
// overtakes the session has the client close it in the middle of its beginning.
func (g *Gateway) settle(c *call, session string) {
	if session == "" || c.Context().Err() != nil {
		return
	}
	sessions, release, err := g.routes.claim(c.owner, []string{session})
	if err != nil {
		return
	}
	defer release()
	ctx, cancel := context.WithTimeout(c.Context(), settleWithin)
	defer cancel()
	awaitOpened(ctx, sessions, []string{session})
	sessions[0].settle()
}

// admit checks a build against the policy, takes the sessions that it names, and
// waits for its slot.
func (g *Gateway) admit(ctx context.Context, c *call, r *route, req *controlapi.SolveRequest, observed *build.Observed) (_ []*sessionRoute, release func(), err error) {
	sessions, release, err := g.allow(ctx, c, req, false)
	if err != nil {
		return nil, nil, err
	}
	ctx, span := trace.SpanFromContext(ctx).TracerProvider().Tracer(tracer).Start(ctx, "wait for a build slot")
	defer span.End()
	defer g.queue.waits(c.owner)()
	if err := observed.Wait(ctx, r.stand); err != nil {
		release()
		return nil, nil, err
	}
	return sessions, release, nil
}

const tracer = "github.com/kilnbuild/kiln/services/builder/internal/buildkit/gateway"

// place chooses the daemon of a build, and opens the sessions that it names there.
func (g *Gateway) place(ctx context.Context, sessions []*sessionRoute, beside []string) (*upstream, error) {
	awaitOpened(ctx, sessions, beside)
	daemon, err := g.daemons.Pick(ctx)
	if err != nil {
		return nil, err
	}
	up := &upstream{daemon}
	return up, unreachable(up, openAt(ctx, sessions, up))
}

// unreachable names the daemon in the error of a call that did not reach it.
func unreachable(up *upstream, err error) error {
	if _, own := errors.AsType[*fault.Error](err); own || status.Code(err) != codes.Unavailable {
		return err
	}
	return fault.New(fault.Unavailable, "UNAVAILABLE", fmt.Sprintf("buildkitd %q does not answer", up.Name()),
		"build again when it runs; `kiln debug` finds out why it does not")
}

// bind ties the call of a Solve and its route together, until unbind is called: when
// one is ended, so is the other. The calls of the frontend end with the route.
func (r *route) bind(ctx context.Context) (_ context.Context, cancel context.CancelCauseFunc, unbind func()) {
	ctx, cancel = context.WithCancelCause(ctx)
	stopCall := context.AfterFunc(r.life, func() { cancel(context.Cause(r.life)) })
	stopRoute := context.AfterFunc(ctx, func() { r.cut(whyEnded(ctx)) })
	return ctx, cancel, func() {
		stopRoute()
		stopCall()
	}
}

// whyEnded is the error of a call whose build was ended before its time.
func whyEnded(ctx context.Context) error {
	cause := context.Cause(ctx)
	if own, ok := errors.AsType[*fault.Error](cause); ok {
		return build.AdviseClient(own)
	}
	if _, ofDaemon := status.FromError(cause); ofDaemon && cause != nil {
		return cause
	}
	return fault.New(fault.Canceled, "CANCELLED", "the build was cancelled with CancelBuild", "build again")
}

// tagsOf returns the names that a build gives to its image, and no more than one too
// many: a message holds millions.
func tagsOf(req *controlapi.SolveRequest) []string {
	var names []string
	for _, exporter := range req.GetExporters() {
		names = append(names, exporter.GetAttrs()["name"])
	}
	if names == nil { // as buildkitd reads it: clients of today send both forms
		names = append(names, req.GetExporterAttrsDeprecated()["name"])
	}
	var tags []string
	for _, list := range names {
		for tag := range strings.SplitSeq(list, ",") {
			if len(tags) > build.MaxTags {
				return tags
			}
			if tag != "" {
				tags = append(tags, tag)
			}
		}
	}
	return tags
}

// outputsOf reads what the daemon answers to a Solve.
func outputsOf(response rawcodec.Frame, tags []string) []build.OutputResult {
	var res controlapi.SolveResponse
	if protocodec.Unmarshal(response.Data.Materialize(), &res) != nil {
		return nil
	}
	image := buildkit.ImageOf(res.GetExporterResponse(), tags)
	if image.Digest == "" {
		return nil
	}
	return []build.OutputResult{image}
}
