package gateway

import (
	"context"
	"fmt"
	"maps"
	"slices"

	controlapi "github.com/moby/buildkit/api/services/control"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/protocodec"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/graph"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// A probe is an internal solve by which a client asks what a daemon can do, or reads
// sources: buildx reads a remote bake file, the metadata of images for a policy, or
// what `--call` prints. It is no build: it takes no slot and leaves no record. So it
// may give nothing out and run no steps.

// isProbe reports whether an internal solve is a probe. Any other is a build.
func isProbe(req *controlapi.SolveRequest) bool {
	cache := req.GetCache()
	return req.GetInternal() && req.GetFrontend() == "" && req.GetDefinition() == nil &&
		len(req.GetExporters()) == 0 && req.GetExporterDeprecated() == "" && !req.GetEnableSessionExporter() &&
		len(cache.GetExports()) == 0 && cache.GetExportRefDeprecated() == ""
}

// probe passes an internal solve on. It may last as long as a build.
func (g *Gateway) probe(c *call, r *route, request *rawcodec.Frame, req *controlapi.SolveRequest) error {
	done, ok := g.routes.probe(c.owner)
	if !ok {
		return fault.New(fault.ResourceExhausted, "LIMIT_REACHED", fmt.Sprintf("%d internal solves of the caller are under way, the limit", maxProbes),
			"end some of them first")
	}
	defer done()
	sessions, release, err := g.allow(c.Context(), c, req, true)
	if err != nil {
		return err
	}
	defer release()
	ctx := c.Context()
	if limit := g.builds.MaxBuildTime; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fault.New(fault.DeadlineExceeded, "TIMED_OUT",
			fmt.Sprintf("the internal solve took longer than %s", limit), "end it earlier"))
		defer cancel()
	}
	ctx, cancel, unbind := r.bind(ctx)
	defer cancel(nil)
	defer unbind()
	up, err := g.place(ctx, sessions, openedBeside(req))
	if err != nil {
		cancel(err)
		return whyEnded(ctx)
	}
	r.send(up, nil)
	response, err := up.exchange(ctx, c, request)
	if err != nil {
		if ctx.Err() != nil {
			return whyEnded(ctx)
		}
		return err
	}
	return c.SendMsg(&response)
}

var errRuns = fault.New(fault.FailedPrecondition, "WRONG_STATE", "an internal solve may read sources and run no steps",
	"send the solve without Internal")

// withoutResult returns an error when a frontend has returned a result, whose steps
// the client could have run: one that knows no requests about a Dockerfile, as the
// first releases of docker/dockerfile, builds it.
func withoutResult(response *rawcodec.Frame) error {
	var res gatewaypb.SolveResponse
	if err := protocodec.Unmarshal(response.Data.Materialize(), &res); err != nil {
		return err
	}
	result := res.GetResult()
	refs := []string{res.GetRef(), result.GetRefDeprecated(), result.GetRef().GetId()}
	refs = slices.AppendSeq(refs, maps.Values(result.GetRefsDeprecated().GetRefs()))
	for _, ref := range result.GetRefs().GetRefs() {
		refs = append(refs, ref.GetId())
	}
	if len(result.GetAttestations()) > 0 || slices.ContainsFunc(refs, func(id string) bool { return id != "" }) {
		return errRuns
	}
	return nil
}

// onlyReads returns an error when a call of a probe would run steps.
func onlyReads(req proto.Message) error {
	r, ok := req.(*gatewaypb.SolveRequest)
	if !ok {
		if _, container := req.(*gatewaypb.NewContainerRequest); container {
			return errRuns
		}
		return nil
	}
	// A frontend that answers a request about a Dockerfile returns no result to run; see
	// withoutResult. It may read the Dockerfile from an input.
	if r.GetFrontend() != "" && (r.GetFrontendOpt()["requestid"] == "" || r.GetEvaluate()) {
		return errRuns
	}
	graphs := []*pb.Definition{r.GetDefinition()}
	for _, def := range r.GetFrontendInputs() {
		graphs = append(graphs, def)
	}
	for _, def := range graphs {
		if err := graph.Walk(def, graph.Default, func(op *pb.Op) error {
			if op.GetExec() != nil || op.GetBuild() != nil {
				return errRuns
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
