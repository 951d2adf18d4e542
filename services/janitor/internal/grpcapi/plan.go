package grpcapi

import (
	"context"

	"github.com/kilnbuild/kiln/pkg/aip"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// planPlace is what the page token of a plan holds.
type planPlace struct {
	Digest string
	From   int
	Kept   bool
	Size   int32
}

// PlanRun implements the RPC.
func (s *Server) PlanRun(ctx context.Context, req *janitorv1.PlanRunRequest) (*janitorv1.PlanRunResponse, error) {
	at := planPlace{Kept: req.GetWithKept(), Size: req.GetPageSize()}
	list := s.Pages.Kept(ctx, req)
	if err := list.Read(&at); err != nil {
		return nil, err
	}
	p, err := s.planAt(ctx, req, at)
	if err != nil {
		return nil, err
	}
	shown := p.Verdicts
	if !at.Kept {
		shown = p.Removals()
	}
	res := &janitorv1.PlanRunResponse{Plan: wire.PlanProto(p)}
	var next int
	if res.Verdicts, next = aip.Page(aip.NewRoom(at.Size, res), shown, at.From, wire.VerdictProto); next > 0 {
		res.NextPageToken = list.Token(planPlace{p.Digest, next, at.Kept, at.Size})
	}
	return res, nil
}

// planAt makes a plan, or goes on with the one that a page token names.
func (s *Server) planAt(ctx context.Context, req *janitorv1.PlanRunRequest, at planPlace) (run.Plan, error) {
	if at.Digest != "" {
		return s.Engine.PlanOf(at.Digest)
	}
	ask := enforce.Ask{Repositories: policy.Globs(req.GetRepositories()...)}
	if req.GetPolicy() != nil {
		p := wire.Policy(req.GetPolicy())
		p.Version = 0
		ask.Policy = &p
	}
	if req.GetAt() != nil {
		ask.At = req.GetAt().AsTime()
	}
	return s.Engine.Plan(ctx, ask)
}
