package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/progress/progressui"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/testkit"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run is a build by BuildKit's own client, as buildctl and buildx make it.
type run struct {
	ref   string
	shown string // plain progress
	err   error
}

func (r *rig) run(ctx context.Context, c *client.Client, opt client.SolveOpt) run {
	opt.Ref = identity.NewID()
	attrs := opt.FrontendAttrs
	if attrs == nil {
		opt.FrontendAttrs = map[string]string{}
	}
	statuses := make(chan *client.SolveStatus)
	var shown bytes.Buffer
	display, _ := progressui.NewDisplay(&shown, progressui.PlainMode)
	var group sync.WaitGroup
	group.Go(func() { _, _ = display.UpdateFrom(context.WithoutCancel(ctx), statuses) })
	frontend := opt.Frontend
	_, err := c.Build(ctx, opt, "test", func(ctx context.Context, c gwclient.Client) (*gwclient.Result, error) {
		return c.Solve(ctx, gwclient.SolveRequest{Frontend: frontend, FrontendOpt: attrs})
	}, statuses)
	group.Wait()
	return run{ref: opt.Ref, shown: shown.String(), err: err}
}

func (r *rig) start(ctx context.Context, c *client.Client, opt client.SolveOpt) <-chan run {
	done := make(chan run, 1)
	go func() { done <- r.run(ctx, c, opt) }()
	return done
}

// unended waits until n builds are in a state, and returns them.
func (r *rig) unended(t *testing.T, n int, state build.State) []string {
	t.Helper()
	var refs []string
	testkit.Eventually(t, 5*time.Second, func() bool {
		refs = nil
		for _, id := range r.store.ids() {
			if rec, err := r.builds.Get(t.Context(), id); err == nil && rec.State == state {
				refs = append(refs, id)
			}
		}
		return len(refs) == n
	})
	return refs
}

func TestABuild(t *testing.T) {
	r := newRig(t)
	got := r.run(t.Context(), r.client(t, "ann"), client.SolveOpt{
		Frontend: "dockerfile.v0", Exports: []client.ExportEntry{{Type: "image", Attrs: map[string]string{"name": "a:1,b:1"}}},
	})
	if got.err != nil {
		t.Fatal(got.err)
	}
	// Without waiting: what the client knows has ended has ended here too.
	rec, err := r.builds.Get(t.Context(), got.ref)
	if err != nil || rec.State != build.Succeeded || rec.Origin != build.OriginGateway || rec.Caller != "ann" || rec.Daemon != "d1" {
		t.Errorf("%+v, %v", rec, err)
	}
	if out := rec.Outcome.Outputs; len(out) != 1 || out[0].Digest != "sha256:abc" || len(out[0].Tags) != 2 {
		t.Errorf("outputs %+v", out)
	}
	if rec.Steps != (build.StepCounts{Total: 1, Completed: 1}) {
		t.Errorf("steps %+v", rec.Steps)
	}
	if !strings.Contains(got.shown, "RUN it") || strings.Contains(got.shown, "waiting for") {
		t.Errorf("shown:\n%s", got.shown)
	}
}

// Builds wait for longer than a daemon would look for them, say why, and are then
// built; what they answer to Ping is asked of the daemon once.
func TestBuildsThatWait(t *testing.T) {
	r := newRig(t)
	open := r.gate.hold()
	var runs []<-chan run
	for range 3 {
		runs = append(runs, r.start(t.Context(), r.client(t, "ann"), client.SolveOpt{Frontend: "dockerfile.v0"}))
	}
	r.unended(t, 3, build.Queued)
	time.Sleep(patience * 3 / 2)
	open()
	for _, done := range runs {
		got := <-done
		if got.err != nil {
			t.Fatalf("%v\n%s", got.err, got.shown)
		}
		for _, want := range []string{
			"[internal] waiting for a build slot (place ", "4 builds are running", "place 1: 4 builds are running", "DONE", "RUN it", "ran",
		} {
			if !strings.Contains(got.shown, want) {
				t.Errorf("no %q in\n%s", want, got.shown)
			}
		}
		if rec := r.final(t, got.ref); rec.State != build.Succeeded || rec.Outcome.Times.Queue < patience {
			t.Errorf("%+v", rec.Outcome)
		}
	}
	r.daemon.mu.Lock()
	defer r.daemon.mu.Unlock()
	if r.daemon.pings != 1 {
		t.Errorf("%d probes", r.daemon.pings)
	}
}

// The calls of one build arrive in any order, also long after one another.
func TestCallsInAnyOrder(t *testing.T) {
	for name, order := range map[string][]string{
		"solve first": {"solve", "status", "ping"}, "status first": {"status", "ping", "solve"},
		"ping first": {"ping", "status", "solve"}, "solve second": {"status", "solve", "ping"},
	} {
		for _, waits := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				open := func() {}
				if waits {
					open = r.gate.hold()
				}
				c, ref := r.client(t, "ann"), identity.NewID()
				errs := make(chan error, len(order))
				for _, call := range order {
					go func() { errs <- r.call(t.Context(), c, call, ref) }()
					time.Sleep(patience / 4)
				}
				time.Sleep(patience)
				open()
				for range order {
					if err := <-errs; err != nil {
						t.Error(err)
					}
				}
				r.final(t, ref)
			})
		}
	}
}

// call makes one of the calls of a build, and after a ping ends the build.
func (r *rig) call(ctx context.Context, c *client.Client, name, ref string) error {
	switch name {
	case "solve":
		_, err := c.ControlClient().Solve(ctx, &controlapi.SolveRequest{Ref: ref})
		return err
	case "status":
		stream, err := c.ControlClient().Status(ctx, &controlapi.StatusRequest{Ref: ref})
		for seen := 0; ; seen++ {
			var res *controlapi.StatusResponse
			if err == nil {
				res, err = stream.Recv()
			}
			if err != nil && seen > 1 && grpcerrors.Code(err) == codes.Unknown {
				return nil // EOF
			}
			if err != nil {
				return err
			}
			_ = res
		}
	default:
		bridge := c.GatewayClientForBuild(ref)
		if _, err := bridge.Ping(ctx, &gatewaypb.PingRequest{}); err != nil {
			return err
		}
		_, err := bridge.Return(ctx, &gatewaypb.ReturnRequest{})
		return err
	}
}

// A full queue refuses a build in words that a person understands.
func TestAFullQueue(t *testing.T) {
	r := newRig(t)
	r.gate.full = true
	got := r.run(t.Context(), r.client(t, "ann"), client.SolveOpt{Frontend: "dockerfile.v0"})
	if grpcerrors.Code(got.err) != codes.ResourceExhausted || !strings.Contains(got.err.Error(), "3 builds wait, the limit (try again later)") {
		t.Error(got.err)
	}
}

// CancelBuild ends a build that waits and one that runs, with all its calls, and
// its client learns why.
func TestCancelBuild(t *testing.T) {
	r := newRig(t)
	running := r.start(t.Context(), r.client(t, "ann"), client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"hang": "y"}})
	ids := r.unended(t, 1, build.Running)
	open := r.gate.hold()
	defer open()
	queued := r.start(t.Context(), r.client(t, "ann"), client.SolveOpt{Frontend: "dockerfile.v0"})
	ids = append(ids, r.unended(t, 1, build.Queued)...)
	for _, id := range ids {
		if rec, err := r.builds.Cancel(t.Context(), id); err != nil || rec.State != build.Cancelled {
			t.Errorf("%+v, %v", rec, err)
		}
	}
	for _, done := range []<-chan run{running, queued} {
		start := time.Now()
		got := <-done
		if grpcerrors.Code(got.err) != codes.Canceled || !strings.Contains(got.err.Error(), "CancelBuild") {
			t.Error(got.err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("the client learnt it after %s", took)
		}
	}
}

// A builder that stops ends the builds of the gateway as interrupted.
func TestAStoppedBuilder(t *testing.T) {
	r := newRig(t)
	running := r.start(t.Context(), r.client(t, "ann"), client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"hang": "y"}})
	ids := r.unended(t, 1, build.Running)
	open := r.gate.hold()
	defer open()
	queued := r.start(t.Context(), r.client(t, "ann"), client.SolveOpt{Frontend: "dockerfile.v0"})
	ids = append(ids, r.unended(t, 1, build.Queued)...)
	r.builds.Interrupt()
	for _, done := range []<-chan run{running, queued} {
		if got := <-done; grpcerrors.Code(got.err) != codes.Aborted {
			t.Error(got.err)
		}
	}
	for _, id := range ids {
		if rec := r.final(t, id); rec.State != build.Interrupted {
			t.Errorf("%+v", rec)
		}
	}
}

// The status of a build that is slow on its way to the daemon comes once the daemon
// has it. That of one which is ended on its way just ends: its client gets the reason
// as the answer to its Solve.
func TestStatusOfABuildOnItsWay(t *testing.T) {
	t.Run("arrives", func(t *testing.T) {
		r := newRig(t)
		r.daemon.late = patience * 3 / 2
		c, ref := r.client(t, "ann"), identity.NewID()
		calls := []string{"solve", "status", "ping"}
		errs := make(chan error, len(calls))
		for _, call := range calls[:2] {
			go func() { errs <- r.call(t.Context(), c, call, ref) }()
		}
		r.unended(t, 1, build.Running)
		time.Sleep(patience)
		go func() { errs <- r.call(t.Context(), c, calls[2], ref) }()
		for range calls {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("is ended", func(t *testing.T) {
		r := newRig(t)
		r.daemon.late = time.Minute
		c, ref := r.client(t, "ann"), identity.NewID()
		solved := make(chan error, 1)
		go func() { solved <- r.call(t.Context(), c, "solve", ref) }()
		r.unended(t, 1, build.Running)
		stream, err := c.ControlClient().Status(t.Context(), &controlapi.StatusRequest{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		r.builds.Interrupt()
		if err := <-solved; grpcerrors.Code(err) != codes.Aborted {
			t.Error(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

// Clients that vanish at any moment leave one end each, and no turn.
func TestClientsThatVanish(t *testing.T) {
	r := newRig(t)
	for i := range 12 {
		open := func() {}
		if i%2 == 1 {
			open = r.gate.hold()
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Duration(i)*7*time.Millisecond, cancel)
		r.run(ctx, r.client(t, "ann"), client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"hang": "y"}})
		cancel()
		open()
		r.gate.hold()()
	}
	testkit.Eventually(t, 5*time.Second, func() bool { return r.gate.held() == 0 })
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	for id, rec := range r.store.records {
		if rec.State.Final() && rec.State != build.Cancelled {
			t.Errorf("%s is %s", id, rec.State)
		}
	}
}

// What the policy does not grant is refused in each of the calls that may ask for
// it, and leaves a failed build.
func TestPolicy(t *testing.T) {
	for name, opt := range map[string]client.SolveOpt{
		"entitlement":            {Frontend: "dockerfile.v0", AllowedEntitlements: []string{"network.host"}},
		"entitlement of a probe": {Frontend: "dockerfile.v0", AllowedEntitlements: []string{"device=x"}, Internal: true},
		"frontend":               {Frontend: "gateway.v0", FrontendAttrs: map[string]string{"source": "evil"}},
		"generator":              {Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"attest:sbom": "generator=evil"}},
		"frontend by argument":   {Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"build-arg:BUILDKIT_SYNTAX": "evil"}},
		"cache export":           {Frontend: "dockerfile.v0", CacheExports: []client.CacheOptionsEntry{{Type: "s3", Attrs: map[string]string{"bucket": "b"}}}},
		"cache import":           {Frontend: "dockerfile.v0", CacheImports: []client.CacheOptionsEntry{{Type: "azblob", Attrs: map[string]string{"account_url": "http://169.254.169.254/"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			got := r.run(t.Context(), r.client(t, "ann"), opt)
			if grpcerrors.Code(got.err) != codes.PermissionDenied || !strings.Contains(got.err.Error(), "is not granted (leave it out)") {
				t.Error(got.err)
			}
			if opt.Internal {
				return
			}
			rec := r.final(t, got.ref)
			if f := rec.Outcome.Failure; rec.State != build.Failed || f.Reason != "POLICY_DENIED" || f.Class != build.Policy || f.Kind != fault.PermissionDenied {
				t.Errorf("%s, %+v", rec.State, f)
			}
		})
	}
}

// The session and the build of another caller are out of reach.
func TestOthersSessionsAndBuilds(t *testing.T) {
	r := newRig(t)
	c := r.client(t, "ann")
	victim := r.start(t.Context(), c, client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"hang": "y"}})
	build1 := r.unended(t, 1, build.Running)[0]
	var session string
	r.gateway.routes.mu.Lock()
	for id := range r.gateway.routes.sessions {
		session = id
	}
	r.gateway.routes.mu.Unlock()

	eve := r.client(t, "eve")
	source, err := proto.Marshal(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://x", Attrs: map[string]string{pb.AttrLocalSessionID: session}}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, req := range map[string]*controlapi.SolveRequest{
		"session":   {Session: session},
		"policy":    {SourcePolicySession: session},
		"attribute": {FrontendAttrs: map[string]string{"local-sessionid:context": session}},
		"graph":     {Definition: &pb.Definition{Def: [][]byte{source}}},
		"input":     {FrontendInputs: map[string]*pb.Definition{"x": {Def: [][]byte{source}}}},
		"rewrite":   {SourcePolicy: &spb.Policy{Rules: []*spb.Rule{{Updates: &spb.Update{Attrs: map[string]string{pb.AttrLocalSessionID: session}}}}}},
	} {
		req.Ref = identity.NewID()
		if _, err := eve.ControlClient().Solve(t.Context(), req); grpcerrors.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
		if rec := r.final(t, req.Ref); rec.State != build.Failed || rec.Outcome.Failure.Kind != fault.NotFound {
			t.Errorf("%s: %+v", name, rec)
		}
	}
	if _, err := eve.GatewayClientForBuild(build1).ReadFile(t.Context(), &gatewaypb.ReadFileRequest{}); grpcerrors.Code(err) != codes.NotFound {
		t.Errorf("a file of another's build: %v", err)
	}
	if _, err := c.ControlClient().Solve(t.Context(), &controlapi.SolveRequest{Ref: build1}); grpcerrors.Code(err) != codes.AlreadyExists {
		t.Errorf("the same ref again: %v", err)
	}
	_, _ = r.builds.Cancel(t.Context(), build1)
	<-victim
}

func TestSolve_TimesOut(t *testing.T) {
	r := newRig(t)
	r.builds.MaxBuildTime = 300 * time.Millisecond
	got := r.run(t.Context(), r.client(t, "ann"), client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"hang": "y"}})
	if grpcerrors.Code(got.err) != codes.DeadlineExceeded {
		t.Errorf("its client gets %v", got.err)
	}
	if rec := r.final(t, got.ref); rec.State != build.TimedOut {
		t.Errorf("its record is %s", rec.State)
	}
}

func TestSolve_RefusesRefsAndNamesWithoutBound(t *testing.T) {
	r := newRig(t)
	c := r.client(t, "ann")
	long := strings.Repeat("a,", 1<<20)
	for name, req := range map[string]*controlapi.SolveRequest{
		"a long ref":    {Ref: strings.Repeat("a", 129)},
		"a ref of path": {Ref: "../x"},
		"many names":    {Ref: identity.NewID(), Exporters: []*controlapi.Exporter{{Type: "image", Attrs: map[string]string{"name": long}}}},
	} {
		if _, err := c.ControlClient().Solve(t.Context(), req); grpcerrors.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.store.Get(t.Context(), req.Ref); err == nil {
			t.Errorf("%s: it left a record", name)
		}
	}
}
