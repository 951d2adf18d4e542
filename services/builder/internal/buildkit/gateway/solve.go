package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/grpcerrors"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/protocodec"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/outcome"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// solve takes the build that a Solve asks for to its end. Ending the call to the
// daemon is what cancels a build: BuildKit has no other way.
func (g *Gateway) solve(down grpc.ServerStream, upstream Upstream) (err error) {
	var req controlapi.SolveRequest
	request, err := receive(down, &req)
	if err != nil {
		return err
	}
	if req.GetRef() == "" {
		return fault.Invalid("Ref", "", "a build needs an id", "send a ref that no other build has")
	}
	s := g.solves.enter(req.GetRef())
	if !s.arrive(g.clientOf(down.Context())) {
		g.solves.leave(s)
		return fault.New(fault.AlreadyExists, "ALREADY_EXISTS", fmt.Sprintf("job ID %s exists", s.ref), "send a ref that no other build has")
	}
	defer g.solves.linger(s)
	defer func() { s.end(err) }()
	if req.GetInternal() {
		return g.probe(down, upstream, request, &req, s)
	}
	return g.build(down, upstream, request, &req, s)
}

func (g *Gateway) clientOf(ctx context.Context) clientID {
	c := clientID{identity: g.caller(ctx).Identity}
	if from, ok := peer.FromContext(ctx); ok {
		c.connection = from.Addr.String()
	}
	return c
}

// probe passes an internal solve on: clients ask by it what a daemon can do, and
// it is no build.
func (g *Gateway) probe(down grpc.ServerStream, upstream Upstream, request *rawcodec.Frame, req *controlapi.SolveRequest, s *solve) error {
	release, err := g.check(down.Context(), req)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel, unbind := s.bind(down.Context())
	defer cancel(nil)
	defer unbind()
	s.send()
	return pass(ctx, upstream.Conn(), methodSolve, down, request)
}

// errBroke is how a build ended that the gateway itself broke.
var errBroke = fault.New(fault.Internal, "INTERNAL", "the builder failed while passing the build on", "report it with the trace id of the build")

// build runs a build. Its end is told before its client learns of it.
func (g *Gateway) build(down grpc.ServerStream, upstream Upstream, request *rawcodec.Frame, req *controlapi.SolveRequest, s *solve) error {
	tags := tagsOf(req)
	ctx, observed, err := g.builds.Observe(down.Context(), build.Observation{
		ID: s.ref, Project: project(down.Context()), Tags: tags, Caller: g.caller(down.Context()),
	})
	if err != nil {
		return err
	}
	ctx, cancel, unbind := s.bind(ctx)
	defer cancel(nil)
	defer unbind()
	// A panic, which ends this call only, leaves neither a slot taken nor a build
	// without an end.
	defer func() { observed.End(ctx, outcome.FailureOf(ctx, errBroke, nil), build.Result{}) }()
	release, err := g.admit(ctx, req, s, observed)
	if err != nil {
		cancel(err)
		observed.End(ctx, outcome.FailureOf(ctx, err, nil), build.Result{})
		return whyEnded(ctx)
	}
	defer release()
	observed.Begin(upstream.Name())
	told := follow(ctx, upstream.Conn(), s.ref, observed.Event)
	s.send()
	response, err := exchange(ctx, upstream.Conn(), methodSolve, down, request)
	result := told.end()
	unbind() // what ends from here on has not been cut
	if err != nil {
		answer := err
		if ctx.Err() != nil { // before End, which ends it
			answer = whyEnded(ctx)
		}
		observed.End(ctx, outcome.FailureOf(ctx, grpcerrors.FromGRPC(err), told.progress), result)
		return answer
	}
	result.Outputs = outputsOf(response, tags)
	observed.End(ctx, nil, result)
	return down.SendMsg(&response)
}

// admit holds a build to the policy and waits for its turn.
func (g *Gateway) admit(ctx context.Context, req *controlapi.SolveRequest, s *solve, observed *build.Observed) (release func(), err error) {
	release, err = g.check(ctx, req)
	if err != nil {
		return nil, err
	}
	if linked(req) && g.solves.join(s) {
		return release, nil
	}
	ctx, span := trace.SpanFromContext(ctx).TracerProvider().Tracer(tracer).Start(ctx, "wait for a build slot")
	defer span.End()
	if err := observed.Wait(ctx, s.waits); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

const tracer = "github.com/kilnbuild/kiln/services/builder/internal/buildkit/gateway"

// linked reports whether a build takes as its input the result of another one of
// the same client, as targets of a bake do. The other waits in the client for this
// one, and holds its turn meanwhile.
func linked(req *controlapi.SolveRequest) bool {
	for name, value := range req.GetFrontendAttrs() {
		if strings.HasPrefix(name, "context:") && strings.HasPrefix(value, "input:") {
			return true
		}
	}
	return false
}

// bind ties the call of a Solve and its build together, until unbind is called:
// when one is ended, so is the other. The calls of its frontend end with the build.
func (s *solve) bind(ctx context.Context) (_ context.Context, cancel context.CancelCauseFunc, unbind func()) {
	ctx, cancel = context.WithCancelCause(ctx)
	stopCall := context.AfterFunc(s.cut, func() { cancel(context.Cause(s.cut)) })
	stopBuild := context.AfterFunc(ctx, func() { s.setCut(whyEnded(ctx)) })
	return ctx, cancel, func() {
		stopBuild()
		stopCall()
	}
}

// whyEnded is what a client is told whose build was ended before its time.
func whyEnded(ctx context.Context) error {
	if own, ok := errors.AsType[*fault.Error](context.Cause(ctx)); ok {
		return own
	}
	return fault.New(fault.Canceled, "CANCELLED", "the build was cancelled with CancelBuild", "build again")
}

func tagsOf(req *controlapi.SolveRequest) []string {
	var tags []string
	for _, exporter := range req.GetExporters() {
		for tag := range strings.SplitSeq(exporter.GetAttrs()["name"], ",") {
			if tag != "" {
				tags = append(tags, tag)
			}
		}
	}
	return tags
}

func project(ctx context.Context) string {
	if named := metadata.ValueFromIncomingContext(ctx, ProjectKey); len(named) > 0 && build.ValidProject(named[0]) {
		return named[0]
	}
	return build.DefaultProject
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
