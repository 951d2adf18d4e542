package builder

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// reporter tells the cache manager what builds were, so that it knows whose records are
// whose. A cache manager that is away for a while is told when it is back.
type reporter struct {
	api  cachemanagerv1.CacheManagerServiceClient
	log  *slog.Logger
	ends chan *cachemanagerv1.ReportBuildRequest
	full atomic.Bool // reports were lost, and that was said
}

const (
	reportsKept   = 1000 // while the cache manager is away
	reportTimeout = 10 * time.Second
	reportPause   = 2 * time.Second // until one that failed is tried again
	lastReports   = 2 * time.Second // for all that is left when the builder stops
	maxStepName   = 1024            // bytes, by the contract
	maxSteps      = 10_000
	maxImages     = 100
)

func newReporter(api cachemanagerv1.CacheManagerServiceClient, log *slog.Logger) *reporter {
	return &reporter{api: api, log: log, ends: make(chan *cachemanagerv1.ReportBuildRequest, reportsKept)}
}

// add tells of a build soon. It does not wait. A nil reporter tells nobody; of a build
// that no daemon had there is nothing to tell.
func (r *reporter) add(rec build.Record, graph []build.StepEvent, workers []string) {
	if r == nil || len(graph) == 0 || len(workers) == 0 {
		return
	}
	select {
	case r.ends <- report(rec, graph, workers):
		r.full.Store(false)
	default:
		if !r.full.Swap(true) {
			r.log.Warn("builds are not reported: the cache manager has been away for too many", "build", rec.ID)
		}
	}
}

func report(rec build.Record, graph []build.StepEvent, workers []string) *cachemanagerv1.ReportBuildRequest {
	req := &cachemanagerv1.ReportBuildRequest{
		BuildId: rec.ID, Project: rec.Project, WorkerIds: workers, EndTime: timestamppb.New(rec.Ended),
		CachedSteps: int64(rec.Steps.Cached), TotalSteps: int64(rec.Steps.Total), Images: rec.Tags[:min(len(rec.Tags), maxImages)],
	}
	for _, s := range graph {
		if s.State != build.StepDone && s.State != build.StepCached || len(req.Steps) == maxSteps {
			continue // it has no result
		}
		step := &cachemanagerv1.ReportedStep{
			Digest: s.Digest, Name: strings.ToValidUTF8(s.Name[:min(len(s.Name), maxStepName)], ""), Cached: s.State == build.StepCached,
		}
		if !s.Start.IsZero() {
			step.StartTime = timestamppb.New(s.Start)
		}
		if !s.End.IsZero() {
			step.EndTime = timestamppb.New(s.End)
		}
		req.Steps = append(req.Steps, step)
	}
	return req
}

// run tells of builds until ctx ends, and then of those that are left, within bounds.
func (r *reporter) run(ctx context.Context) error {
	for {
		select {
		case req := <-r.ends:
			r.tell(ctx, req)
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastReports)
			defer cancel()
			for ctx.Err() == nil {
				select {
				case req := <-r.ends:
					r.tell(ctx, req)
				default:
					return nil
				}
			}
			return nil
		}
	}
}

// tell tells of one build, again and again while the cache manager is away, until ctx
// ends.
func (r *reporter) tell(ctx context.Context, req *cachemanagerv1.ReportBuildRequest) {
	said := false
	for {
		call, cancel := context.WithTimeout(ctx, reportTimeout)
		_, err := r.api.ReportBuild(call, req)
		cancel()
		switch {
		case err == nil:
			return
		case !said:
			r.log.WarnContext(ctx, "the cache manager was not told of a build", "build", req.GetBuildId(), "error", err)
			said = true
		}
		if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.ResourceExhausted {
			return // it will not take it
		}
		select {
		case <-ctx.Done():
			select {
			case r.ends <- req: // once more, when the builder stops
			default:
			}
			return
		case <-time.After(reportPause):
		}
	}
}
