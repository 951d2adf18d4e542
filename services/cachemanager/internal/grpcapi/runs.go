package grpcapi

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/pkg/aip"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// runPlace is what the page token of runs holds: the last one of the page before.
type runPlace struct {
	Started int64
	ID      string
}

// ListRuns implements the RPC.
func (s *Server) ListRuns(ctx context.Context, req *cachemanagerv1.ListRunsRequest) (*cachemanagerv1.ListRunsResponse, error) {
	filter, err := runSchema.Filter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	list, err := s.opts.Pages.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	var at runPlace
	if err := list.Read(&at); err != nil {
		return nil, err
	}
	room := aip.NewRoom(req.GetPageSize())
	res := &cachemanagerv1.ListRunsResponse{}
	for {
		var before time.Time
		if at.ID != "" {
			before = time.Unix(0, at.Started)
		}
		runs, err := s.opts.State.Runs(ctx, readAtOnce, before, at.ID)
		if err != nil {
			return nil, err
		}
		for _, r := range runs {
			out := wire.RunProto(r)
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

// readAtOnce is how many runs are read from the state at a time.
const readAtOnce = 200

// GetRun implements the RPC.
func (s *Server) GetRun(ctx context.Context, req *cachemanagerv1.GetRunRequest) (*cachemanagerv1.GetRunResponse, error) {
	list, err := s.opts.Pages.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	from, err := list.Offset()
	if err != nil {
		return nil, err
	}
	r, err := s.opts.State.RunOf(ctx, req.GetRunId())
	if err != nil {
		return nil, err
	}
	size := aip.PageSize(req.GetPageSize())
	verdicts, err := s.opts.State.Verdicts(ctx, r.ID, from, size+1)
	if err != nil {
		return nil, err
	}
	res := &cachemanagerv1.GetRunResponse{Run: wire.RunProto(r)}
	var next int
	if res.Verdicts, next = aip.Page(aip.NewRoom(req.GetPageSize(), res), verdicts, 0, wire.VerdictProto); next > 0 {
		res.NextPageToken = list.Token(from + next)
	}
	return res, nil
}
