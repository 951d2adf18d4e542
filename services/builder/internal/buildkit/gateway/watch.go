package gateway

import (
	"context"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// ProjectKey is the metadata key by which a client of the gateway may name the
// project of its build.
const ProjectKey = "kiln-project"

// watcher looks at the messages of one call as they go by. request is called
// from one goroutine, response and then ended from another.
type watcher interface {
	request(rawcodec.Frame)
	response(rawcodec.Frame)
	ended(error)
}

func (g *Gateway) watch(ctx context.Context, service, method, daemon string) watcher {
	if service == "moby.buildkit.v1.Control" {
		switch method {
		case "Solve":
			return &solveWatcher{ctx: ctx, gateway: g, daemon: daemon}
		case "Status":
			return &statusWatcher{gateway: g, progress: buildkit.NewProgress(), started: time.Now()}
		}
	}
	return blind{}
}

// read decodes a copy of a message into a fresh one: BuildKit's messages must
// not be reused.
func read(f rawcodec.Frame, into proto.Message) bool {
	return proto.Unmarshal(f.Data.Materialize(), into) == nil
}

type blind struct{}

func (blind) request(rawcodec.Frame)  {}
func (blind) response(rawcodec.Frame) {}
func (blind) ended(error)             {}

// solveWatcher remembers a build from its Solve.
type solveWatcher struct {
	ctx     context.Context
	gateway *Gateway
	daemon  string

	mu       sync.Mutex // request may still run when the call has ended
	observed *build.Observed
	tags     []string
	result   *controlapi.SolveResponse
}

func (w *solveWatcher) request(f rawcodec.Frame) {
	var req controlapi.SolveRequest
	// Internal solves are probes of the client, and no builds.
	if !read(f, &req) || req.Internal || req.Ref == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, exporter := range req.Exporters {
		for tag := range strings.SplitSeq(exporter.GetAttrs()["name"], ",") {
			if tag != "" {
				w.tags = append(w.tags, tag)
			}
		}
	}
	w.observed = w.gateway.builds.Observe(w.ctx, req.Ref, w.daemon, project(w.ctx), w.tags, w.gateway.caller(w.ctx))
}

func project(ctx context.Context) string {
	if named := metadata.ValueFromIncomingContext(ctx, ProjectKey); len(named) > 0 && build.ValidProject(named[0]) {
		return named[0]
	}
	return build.DefaultProject
}

func (w *solveWatcher) response(f rawcodec.Frame) {
	var res controlapi.SolveResponse
	if read(f, &res) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.result = &res
	}
}

func (w *solveWatcher) ended(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.observed == nil {
		return
	}
	ctx := context.WithoutCancel(w.ctx)
	switch {
	case err == nil:
		w.observed.End(ctx, build.Succeeded, nil, w.outputs())
	case w.ctx.Err() != nil || grpcerrors.Code(err) == codes.Canceled:
		failure := buildkit.FailureOf(context.Canceled, nil)
		failure.Message = "the build was cancelled by its caller"
		w.observed.End(ctx, build.Cancelled, failure, nil)
	default:
		w.observed.End(ctx, build.Failed, buildkit.FailureOf(grpcerrors.FromGRPC(err), nil), nil)
	}
}

func (w *solveWatcher) outputs() []build.OutputResult {
	image := buildkit.ImageOf(w.result.GetExporterResponse(), w.tags)
	if image.Digest == "" {
		return nil
	}
	return []build.OutputResult{image}
}

// statusWatcher counts the steps of a build from its Status.
type statusWatcher struct {
	gateway  *Gateway
	progress *buildkit.Progress
	started  time.Time

	mu  sync.Mutex
	ref string
}

func (w *statusWatcher) request(f rawcodec.Frame) {
	var req controlapi.StatusRequest
	if read(f, &req) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ref = req.Ref
	}
}

func (w *statusWatcher) response(f rawcodec.Frame) {
	var res controlapi.StatusResponse
	if !read(f, &res) || len(res.Vertexes) == 0 {
		return
	}
	w.progress.Update(client.NewSolveStatus(&res), func(any) {})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gateway.builds.ObserveProgress(w.ref, w.progress.Counts(), w.progress.Times(w.started))
}

func (w *statusWatcher) ended(error) {}
