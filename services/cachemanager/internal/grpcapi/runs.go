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
	var at runPlace
	if err := aip.ReadToken(req.GetPageToken(), &at); err != nil {
		return nil, err
	}
	size := aip.PageSize(req.GetPageSize())
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
			if len(res.GetRuns()) == size {
				res.NextPageToken = aip.Token(at)
				return res, nil
			}
			at = runPlace{r.Started.UnixNano(), r.ID}
			if run := wire.RunProto(r); aip.Fits(filter, runFields(run)) {
				res.Runs = append(res.Runs, run)
			}
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
	from, err := aip.Offset(req.GetPageToken())
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
	if len(verdicts) > size {
		verdicts = verdicts[:size]
		res.NextPageToken = aip.Token(from + size)
	}
	for _, v := range verdicts {
		res.Verdicts = append(res.Verdicts, wire.VerdictProto(v))
	}
	return res, nil
}
