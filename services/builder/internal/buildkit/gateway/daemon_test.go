package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/buildid"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/grpchijack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// patience is how long the daemon of these tests looks for a build that it does
// not know, as buildkitd does for 3 and 6 seconds. A busy machine may keep the
// calls of a client apart for a good part of it.
const patience = 2 * time.Second

// daemon keeps BuildKit's rules on jobs, and builds nothing: so a test says when
// what happens, which the e2e tests on buildkitd cannot.
type daemon struct {
	controlapi.UnimplementedControlServer

	sessions *session.Manager

	mu    sync.Mutex
	jobs  map[string]*job
	late  time.Duration // how long a solve is on its way
	pings int
	asked []string // refs of the Status calls

	running, most int // solves under way, now and at most
}

// job is a solve of a client that runs its frontend by itself. It ends when the
// client returns a result.
type job struct {
	result   chan error
	ended    chan struct{}
	hang     bool
	internal bool
}

func (d *daemon) find(ctx context.Context, ref string) (*job, error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		d.mu.Lock()
		j := d.jobs[ref]
		d.mu.Unlock()
		if j != nil {
			return j, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, status.Errorf(codes.NotFound, "no such job %s", ref)
}

func (d *daemon) Solve(ctx context.Context, req *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	if req.FrontendAttrs["refuse"] != "" {
		return nil, errors.New("it is refused before there is a job")
	}
	j := &job{result: make(chan error, 1), ended: make(chan struct{}), hang: req.FrontendAttrs["hang"] != "", internal: req.Internal}
	select {
	case <-time.After(d.late):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	d.mu.Lock()
	if d.jobs[req.Ref] != nil {
		d.mu.Unlock()
		return nil, fmt.Errorf("job ID %s exists", req.Ref)
	}
	d.jobs[req.Ref] = j
	d.running++
	d.most = max(d.most, d.running)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.running--
		close(j.ended)
	}()
	select {
	case err := <-j.result:
		return &controlapi.SolveResponse{ExporterResponse: map[string]string{"containerimage.digest": "sha256:abc"}}, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (d *daemon) Status(req *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	d.mu.Lock()
	d.asked = append(d.asked, req.Ref)
	d.mu.Unlock()
	if err := stream.SendHeader(metadata.Pairs(timestampKey, "now")); err != nil {
		return err
	}
	j, err := d.find(stream.Context(), req.Ref)
	if err != nil {
		return err
	}
	v := &controlapi.Vertex{Digest: "sha256:1", Name: "[1/1] RUN it", Started: timestamppb.Now()}
	if err := stream.Send(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{v}}); err != nil {
		return err
	}
	select {
	case <-j.ended:
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	v.Completed = timestamppb.Now()
	return stream.Send(&controlapi.StatusResponse{
		Vertexes: []*controlapi.Vertex{v}, Logs: []*controlapi.VertexLog{{Vertex: v.Digest, Msg: []byte("ran\n"), Timestamp: timestamppb.Now()}},
	})
}

func (d *daemon) Session(stream controlapi.Control_SessionServer) error {
	conn, closed, opts := grpchijack.Hijack(stream)
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		<-closed
		cancel()
	}()
	return d.sessions.HandleConn(ctx, conn, opts)
}

func (d *daemon) ListWorkers(context.Context, *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	return &controlapi.ListWorkersResponse{}, nil
}

func (d *daemon) Ping(ctx context.Context, _ *gatewaypb.PingRequest) (*gatewaypb.PongResponse, error) {
	j, err := d.find(ctx, buildid.FromIncomingContext(ctx))
	if err != nil {
		return nil, err
	}
	if j.internal {
		d.mu.Lock()
		d.pings++
		d.mu.Unlock()
	}
	return &gatewaypb.PongResponse{FrontendAPICaps: gatewaypb.Caps.All()}, nil
}

// oldFrontend is the image of a frontend that knows no requests about a Dockerfile.
const oldFrontend = "docker/dockerfile:1.0"

// bridgeServer is the frontend's side of the daemon: a method of its name stands
// in both services.
type bridgeServer struct {
	gatewaypb.UnimplementedLLBBridgeServer
	*daemon
}

func (b bridgeServer) Ping(ctx context.Context, req *gatewaypb.PingRequest) (*gatewaypb.PongResponse, error) {
	return b.daemon.Ping(ctx, req)
}

func (b bridgeServer) Solve(ctx context.Context, req *gatewaypb.SolveRequest) (*gatewaypb.SolveResponse, error) {
	j, err := b.find(ctx, buildid.FromIncomingContext(ctx))
	if err != nil {
		return nil, err
	}
	if j.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ref := &gatewaypb.Ref{}
	if req.FrontendOpt["source"] == oldFrontend {
		ref.Id = "result"
	}
	return &gatewaypb.SolveResponse{Result: &gatewaypb.Result{Result: &gatewaypb.Result_Ref{Ref: ref}}}, nil
}

func (b bridgeServer) Return(ctx context.Context, req *gatewaypb.ReturnRequest) (*gatewaypb.ReturnResponse, error) {
	j, err := b.find(ctx, buildid.FromIncomingContext(ctx))
	if err != nil {
		return nil, err
	}
	var failed error
	if req.Error != nil {
		failed = status.Error(codes.Code(req.Error.Code), req.Error.Message) //nolint:gosec // a code
	}
	j.result <- failed
	<-j.ended
	time.Sleep(patience / 40) // its answer may come after that to the Solve
	return &gatewaypb.ReturnResponse{}, nil
}
