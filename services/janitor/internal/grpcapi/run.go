package grpcapi

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/auth"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

func caller(ctx context.Context) string { return auth.FromContext(ctx).Name }

// Run implements the RPC.
func (s *Server) Run(req *janitorv1.RunRequest, stream janitorv1.JanitorService_RunServer) error {
	ctx := stream.Context()
	order := enforce.Order{
		Trigger: run.Demand, PlanDigest: req.GetPlanDigest(), Repositories: policy.Globs(req.GetRepositories()...), Force: req.GetForce(), All: req.GetForceAll(),
		Caller: caller(ctx), RequestID: req.GetRequestId(),
	}
	if req.GetPolicy() != nil {
		p := wire.Policy(req.GetPolicy())
		p.Version = 0
		order.Policy = &p
	}
	if req.GetBudget() != nil {
		budget := wire.Budget(req.GetBudget())
		order.Budget = &budget
	}
	// The run outlives the call.
	active, err := s.Engine.Start(s.Life, order, trace.SpanContextFromContext(ctx))
	if known, ok := errors.AsType[*enforce.ErrKnown](err); ok {
		return s.follow(ctx, known.Run, stream.Send)
	}
	if err != nil {
		return err
	}
	return s.watch(ctx, active, stream.Send)
}

// silence is the longest that nothing is told while a run is under way.
const silence = 4 * time.Second

// watch tells of a run that is under way here, to its end.
func (s *Server) watch(ctx context.Context, active *enforce.Active, send func(*janitorv1.RunResponse) error) error {
	for from := 0; ; {
		waiting, cancel := context.WithTimeout(ctx, silence)
		events := active.Next(waiting, from)
		timedOut := waiting.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if len(events) == 0 && !timedOut {
			return nil
		}
		if len(events) == 0 {
			if err := send(progressProto(active.Run().Progress)); err != nil {
				return err
			}
		}
		from += len(events)
		for _, e := range events {
			if err := send(eventProto(e)); err != nil {
				return err
			}
		}
	}
}

// follow tells of a run that another call has started.
func (s *Server) follow(ctx context.Context, r run.Run, send func(*janitorv1.RunResponse) error) error {
	if active := s.Engine.Following(r.ID); active != nil {
		return s.watch(ctx, active, send)
	}
	r, err := s.State.RunOf(ctx, r.ID)
	if err != nil {
		return err
	}
	if err := send(eventProto(enforce.Event{Started: &r})); err != nil {
		return err
	}
	const atOnce = 1000
	for from := 0; ; from += atOnce {
		verdicts, err := s.State.Verdicts(ctx, r.ID, from, atOnce)
		if err != nil {
			return err
		}
		for i := range verdicts {
			e := enforce.Event{Kept: &verdicts[i]}
			if verdicts[i].Remove {
				e = enforce.Event{Removed: &verdicts[i]}
			}
			if err := send(eventProto(e)); err != nil {
				return err
			}
		}
		if len(verdicts) < atOnce {
			return send(eventProto(enforce.Event{Finished: &r}))
		}
	}
}

func progressProto(p run.Progress) *janitorv1.RunResponse {
	return &janitorv1.RunResponse{Event: &janitorv1.RunResponse_Progress{Progress: wire.ProgressProto(p)}}
}

func eventProto(e enforce.Event) *janitorv1.RunResponse {
	switch {
	case e.Started != nil:
		return &janitorv1.RunResponse{Event: &janitorv1.RunResponse_Started{Started: wire.RunProto(*e.Started)}}
	case e.Planned != nil:
		return &janitorv1.RunResponse{Event: &janitorv1.RunResponse_Planned{Planned: wire.PlanProto(*e.Planned)}}
	case e.Progress != nil:
		return progressProto(*e.Progress)
	case e.Removed != nil:
		return &janitorv1.RunResponse{Event: &janitorv1.RunResponse_Removed{Removed: wire.VerdictProto(*e.Removed)}}
	case e.Kept != nil:
		return &janitorv1.RunResponse{Event: &janitorv1.RunResponse_Kept{Kept: wire.VerdictProto(*e.Kept)}}
	case e.Defect != nil:
		return &janitorv1.RunResponse{Event: &janitorv1.RunResponse_Defect{Defect: wire.DefectProto(*e.Defect)}}
	default:
		return &janitorv1.RunResponse{Event: &janitorv1.RunResponse_Finished{Finished: wire.RunProto(*e.Finished)}}
	}
}

// now is the run as it stands: one under way is further than what is stored of it.
func (s *Server) now(r run.Run) run.Run {
	if active := s.Engine.Following(r.ID); active != nil {
		return active.Run()
	}
	return r
}

// GetRun implements the RPC.
func (s *Server) GetRun(ctx context.Context, req *janitorv1.GetRunRequest) (*janitorv1.GetRunResponse, error) {
	list, err := s.Pages.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	from, err := list.Offset()
	if err != nil {
		return nil, err
	}
	r, err := s.State.RunOf(ctx, req.GetRunId())
	if err != nil {
		return nil, err
	}
	size := aip.PageSize(req.GetPageSize())
	verdicts, err := s.State.Verdicts(ctx, r.ID, from, size+1)
	if err != nil {
		return nil, err
	}
	res := &janitorv1.GetRunResponse{Run: wire.RunProto(s.now(r))}
	var next int
	if res.Verdicts, next = aip.Page(aip.NewRoom(req.GetPageSize(), res), verdicts, 0, wire.VerdictProto); next > 0 {
		res.NextPageToken = list.Token(from + next)
	}
	return res, nil
}

// runPlace is what the page token of runs holds: the last one of the page before.
type runPlace struct {
	Started int64
	ID      string
}

// readAtOnce is how many runs are read from the state at a time.
const readAtOnce = 200

// ListRuns implements the RPC.
func (s *Server) ListRuns(ctx context.Context, req *janitorv1.ListRunsRequest) (*janitorv1.ListRunsResponse, error) {
	filter, err := runSchema.Filter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	list, err := s.Pages.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	var at runPlace
	if err := list.Read(&at); err != nil {
		return nil, err
	}
	room := aip.NewRoom(req.GetPageSize())
	res := &janitorv1.ListRunsResponse{}
	for {
		var before time.Time
		if at.ID != "" {
			before = time.Unix(0, at.Started)
		}
		runs, err := s.State.Runs(ctx, readAtOnce, before, at.ID)
		if err != nil {
			return nil, err
		}
		for _, r := range runs {
			out := wire.RunProto(s.now(r))
			if aip.Fits(filter, runFields(out)) {
				if !room.Take(out) {
					res.NextPageToken = list.Token(at)
					return res, nil
				}
				res.Runs = append(res.Runs, out)
			}
			at = runPlace{r.Started.UnixNano(), r.ID}
		}
		if len(runs) < readAtOnce {
			return res, nil
		}
	}
}

// CancelRun implements the RPC.
func (s *Server) CancelRun(ctx context.Context, req *janitorv1.CancelRunRequest) (*janitorv1.CancelRunResponse, error) {
	if _, err := s.State.RunOf(ctx, req.GetRunId()); err != nil {
		return nil, err
	}
	ended, err := s.Engine.Cancel(ctx, req.GetRunId())
	if err == nil && !ended {
		_, err = s.Engine.Abandon(ctx, req.GetRunId())
	}
	if err != nil {
		return nil, err
	}
	r, err := s.State.RunOf(ctx, req.GetRunId())
	if err != nil {
		return nil, err
	}
	return &janitorv1.CancelRunResponse{Run: wire.RunProto(r)}, nil
}
