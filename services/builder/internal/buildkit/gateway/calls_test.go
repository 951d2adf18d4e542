package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// soon is far less than any of BuildKit's clocks.
const soon = patience / 2

// A frontend's call that names no build is answered at once, as buildkitd does.
func TestFrontendCall_WithoutBuildIsAnsweredAtOnce(t *testing.T) {
	r := newRig(t)
	start := time.Now()
	_, err := gatewaypb.NewLLBBridgeClient(r.conn(t)).Ping(t.Context(), &gatewaypb.PingRequest{})
	if grpcerrors.Code(err) != codes.Unknown || !strings.Contains(err.Error(), "no buildid found in context") {
		t.Error(err)
	}
	if took := time.Since(start); took > soon {
		t.Errorf("it took %s", took)
	}
}

// A Solve that the daemon refuses before it has a job ends at once, and so do its
// status and its slot.
func TestSolve_RefusedByTheDaemonEndsAtOnce(t *testing.T) {
	r := newRig(t)
	c, ref := r.client(t, "ann"), identity.NewID()
	start := time.Now()
	status, err := c.ControlClient().Status(t.Context(), &controlapi.StatusRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.ControlClient().Solve(t.Context(), &controlapi.SolveRequest{Ref: ref, FrontendAttrs: map[string]string{"refuse": "y"}})
	if err == nil || !strings.Contains(err.Error(), "before there is a job") {
		t.Error(err)
	}
	for err = nil; err == nil; {
		_, err = status.Recv()
	}
	if took := time.Since(start); took > soon {
		t.Errorf("it took %s", took)
	}
	if n := r.gate.held(); n != 0 {
		t.Errorf("%d slots are held", n)
	}
}

// No attribute lets a build go to the daemon beside another one without a slot.
func TestSolves_NoneGoesToTheDaemonWithoutASlot(t *testing.T) {
	r := newRig(t, withSlots(2))
	c := r.client(t, "ann")
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	for i := range 100 {
		attrs := map[string]string{fmt.Sprint("context:", i): "input:base", "hang": "y"}
		group.Go(func() {
			_, _ = c.ControlClient().Solve(ctx, &controlapi.SolveRequest{Ref: identity.NewID(), Frontend: "dockerfile.v0", FrontendAttrs: attrs})
		})
	}
	r.unended(t, 98, build.Queued)
	r.daemon.mu.Lock()
	defer r.daemon.mu.Unlock()
	if r.daemon.most > 2 {
		t.Errorf("%d builds went to the daemon with 2 slots", r.daemon.most)
	}
}

// An internal solve is a probe, without slot and record, only if it gives nothing out.
func TestInternalSolve_ThatGivesSomethingOutIsABuild(t *testing.T) {
	image := []*controlapi.Exporter{{Type: "image", Attrs: map[string]string{"name": "a:1", "push": "true"}}}
	for name, req := range map[string]*controlapi.SolveRequest{
		"exporter":            {Exporters: image},
		"older exporter":      {ExporterDeprecated: "image"},
		"exporter of session": {EnableSessionExporter: true},
		"cache":               {Cache: &controlapi.CacheOptions{Exports: []*controlapi.CacheOptionsEntry{{Type: "inline"}}}},
		"older cache":         {Cache: &controlapi.CacheOptions{ExportRefDeprecated: "a:cache"}},
		"frontend":            {Frontend: "dockerfile.v0"},
		"graph":               {Definition: &pb.Definition{}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			defer r.gate.hold()()
			req.Ref, req.Internal = identity.NewID(), true
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = r.client(t, "ann").ControlClient().Solve(ctx, req)
			}()
			r.unended(t, 1, build.Queued)
			cancel()
			<-ended
			r.final(t, req.Ref)
		})
	}
}

// A probe may read sources. What runs steps is refused.
func TestProbe_RunsNoSteps(t *testing.T) {
	r := newRig(t)
	defer r.gate.hold()() // a probe needs no slot
	op := func(op *pb.Op) *pb.Definition {
		raw, err := proto.Marshal(op)
		if err != nil {
			t.Fatal(err)
		}
		return &pb.Definition{Def: [][]byte{raw}}
	}
	run := op(&pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{}}})
	source := op(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "git://x"}}})
	for name, test := range map[string]struct {
		call  func(context.Context, gatewaypb.LLBBridgeClient) error
		wrong bool
	}{
		"source": {solves(&gatewaypb.SolveRequest{Definition: source}), false},
		"question about a Dockerfile": {solves(&gatewaypb.SolveRequest{
			Frontend: "dockerfile.v0", FrontendOpt: map[string]string{"requestid": "frontend.outline"},
		}), false},
		"frontend that knows no questions": {solves(&gatewaypb.SolveRequest{
			Frontend: "gateway.v0", FrontendOpt: map[string]string{"requestid": "frontend.outline", "source": oldFrontend},
		}), true},
		"question with its build": {solves(&gatewaypb.SolveRequest{
			Frontend: "dockerfile.v0", Evaluate: true, FrontendOpt: map[string]string{"requestid": "frontend.outline"},
		}), true},
		"step":          {solves(&gatewaypb.SolveRequest{Definition: run}), true},
		"step of input": {solves(&gatewaypb.SolveRequest{FrontendInputs: map[string]*pb.Definition{"x": run}}), true},
		"Dockerfile":    {solves(&gatewaypb.SolveRequest{Frontend: "dockerfile.v0"}), true},
		"container": {func(ctx context.Context, c gatewaypb.LLBBridgeClient) error {
			_, err := c.NewContainer(ctx, &gatewaypb.NewContainerRequest{})
			return err
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			c, ref := r.client(t, "ann"), identity.NewID()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = c.ControlClient().Solve(ctx, &controlapi.SolveRequest{Ref: ref, Internal: true})
			}()
			err := test.call(ctx, c.GatewayClientForBuild(ref))
			if test.wrong != (grpcerrors.Code(err) == codes.FailedPrecondition) {
				t.Error(err)
			}
			cancel()
			<-ended
			if _, err := r.builds.Get(t.Context(), ref); fault.KindOf(err) != fault.NotFound {
				t.Errorf("it left a record: %v", err)
			}
		})
	}
}

func solves(req *gatewaypb.SolveRequest) func(context.Context, gatewaypb.LLBBridgeClient) error {
	return func(ctx context.Context, c gatewaypb.LLBBridgeClient) error {
		_, err := c.Solve(ctx, req)
		return err
	}
}

// A ref that an attempt of a build by RPC has, or will have, is not for others.
func TestSolve_CannotTakeTheRefOfAnAttempt(t *testing.T) {
	r := newRig(t)
	id := "123e4567-e89b-42d3-a456-426614174000"
	r.store.records[id] = build.Record{ID: id, Origin: build.OriginAPI, State: build.Succeeded, Caller: "ann", Project: "default"}
	for _, ref := range []string{id, id + "-2", id + "-again-1", id + "-2-again-3"} {
		_, err := r.client(t, "eve").ControlClient().Solve(t.Context(), &controlapi.SolveRequest{Ref: ref})
		if grpcerrors.Code(err) != codes.AlreadyExists {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// What the daemon tells of a build by RPC shows its secrets, which only WatchBuild masks:
// nobody gets it, not even the caller whose build it is.
func TestStatus_OfABuildByRPCWithSecretsIsRefused(t *testing.T) {
	r := newRig(t)
	const id = "123e4567-e89b-42d3-a456-426614174000"
	r.store.records[id] = build.Record{
		ID: id, Origin: build.OriginAPI, State: build.Running, Caller: "ann", Project: "default", HasSecrets: true,
	}
	for _, ref := range []string{id, id + "-2"} {
		stream, err := r.client(t, "ann").ControlClient().Status(t.Context(), &controlapi.StatusRequest{Ref: ref})
		if err == nil {
			_, err = stream.Recv()
		}
		if grpcerrors.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "WatchBuild") {
			t.Errorf("%s: %v, want FAILED_PRECONDITION with the call that shows it", ref, err)
		}
	}
}

// A daemon that collects no spans is no failure of the client that sends some.
func TestSpans_AreTakenWithoutACollector(t *testing.T) {
	r := newRig(t)
	if _, err := tracepb.NewTraceServiceClient(r.conn(t)).Export(t.Context(), &tracepb.ExportTraceServiceRequest{}); err != nil {
		t.Error(err)
	}
}

// A build through the gateway has no request that RetryBuild could run again.
func TestCancelledBuild_IsNotAdvisedToRetry(t *testing.T) {
	r := newRig(t)
	done := r.start(t.Context(), r.client(t, "ann"), client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"hang": "y"}})
	id := r.unended(t, 1, build.Running)[0]
	rec, err := r.builds.Cancel(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if remedy := rec.Outcome.Failure.Remedy; remedy == "" || strings.Contains(remedy, "RetryBuild") {
		t.Errorf("remedy %q", remedy)
	}
	<-done
}

// The calls of one identity are bounded, and leave room for others.
func TestHeld_BoundsTheCallsOfAnIdentity(t *testing.T) {
	h := newHeld()
	for range maxCallsOfEach {
		if _, err := h.enter("eve"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.enter("eve"); fault.KindOf(err) != fault.ResourceExhausted {
		t.Errorf("one more of the same: %v", err)
	}
	done, err := h.enter("ann")
	if err != nil {
		t.Fatal(err)
	}
	done()
	if len(h.of) != 1 {
		t.Errorf("%d identities are counted", len(h.of))
	}
}

// A build for a project that its caller may not use leaves no record there.
func TestSolve_ForAForeignProjectLeavesNoRecord(t *testing.T) {
	r := newRig(t)
	rules := []*configv1.AccessRule{{Identities: []string{"eve"}, Methods: []string{methodSolve}, Projects: []string{"web"}}}
	grant, err := auth.FromRules(rules, false)(t.Context(), methodSolve, auth.Identity{Name: "eve"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(&controlapi.SolveRequest{Ref: identity.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	sent := metadata.Pairs(ProjectKey, "payroll", identityKey, "eve")
	ctx := metadata.NewIncomingContext(auth.WithGrant(t.Context(), grant), sent)
	down := one{ctx: ctx, request: raw}
	err = r.gateway.solve(&call{ServerStream: down, method: methodSolve, owner: r.gateway.ownerOf(ctx)})
	if fault.KindOf(err) != fault.PermissionDenied {
		t.Error(err)
	}
	if ids := r.store.ids(); len(ids) != 0 {
		t.Errorf("it left %q", ids)
	}
}

// one is the stream of a call with one request.
type one struct {
	grpc.ServerStream
	ctx     context.Context //nolint:containedctx // as a stream has it
	request []byte
}

func (o one) Context() context.Context { return o.ctx }

func (o one) RecvMsg(into any) error {
	into.(*rawcodec.Frame).Data = rawcodec.FrameOf(o.request).Data
	return nil
}

// The daemon's record of a build by RPC has its secrets until it is dropped.
func TestHistory_HasNoBuildsWithSecrets(t *testing.T) {
	r := newRig(t)
	for id, secrets := range map[string]bool{"with": true, "without": false} {
		r.store.records[id] = build.Record{ID: id, Origin: build.OriginAPI, Caller: "ann", Project: "web", HasSecrets: secrets}
		h := &ownHistory{
			gateway: r.gateway, known: make(map[string]bool),
			call: &call{ServerStream: one{ctx: t.Context()}, owner: owner{identity: "ann"}},
		}
		if own, err := h.own(t.Context(), id); err != nil || own == secrets {
			t.Errorf("a build %s secrets: shown %v, %v", id, own, err)
		}
	}
}
