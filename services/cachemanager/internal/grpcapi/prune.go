package grpcapi

import (
	"context"
	"errors"
	"time"

	"github.com/kilnbuild/kiln/pkg/aip"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/gc"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

func planAsk(caches []*cachemanagerv1.CacheRef) enforce.Ask {
	return enforce.Ask{Caches: refsOf(caches)}
}

// planPlace is what the page token of a plan holds.
type planPlace struct {
	Digest string
	From   int
	Kept   bool
	Size   int32
}

// PlanPrune implements the RPC.
func (s *Server) PlanPrune(ctx context.Context, req *cachemanagerv1.PlanPruneRequest) (*cachemanagerv1.PlanPruneResponse, error) {
	at := planPlace{Kept: req.GetWithKept(), Size: req.GetPageSize()}
	list := s.opts.Pages.Kept(ctx, req)
	if err := list.Read(&at); err != nil {
		return nil, err
	}
	p, err := s.planAt(ctx, req, at)
	if err != nil {
		return nil, err
	}
	var shown []plan.Verdict
	for _, v := range p.Verdicts {
		if v.Remove || v.Shrink > 0 || at.Kept {
			shown = append(shown, v)
		}
	}
	res := &cachemanagerv1.PlanPruneResponse{Plan: wire.PlanProto(p)}
	var next int
	if res.Verdicts, next = aip.Page(aip.NewRoom(at.Size, res), shown, at.From, wire.VerdictProto); next > 0 {
		res.NextPageToken = list.Token(planPlace{p.Digest, next, at.Kept, at.Size})
	}
	return res, nil
}

// planAt makes a plan, or goes on with the one that a page token names.
func (s *Server) planAt(ctx context.Context, req *cachemanagerv1.PlanPruneRequest, at planPlace) (run.Plan, error) {
	if at.Digest != "" {
		return s.opts.State.PlanOf(ctx, at.Digest)
	}
	ask := planAsk(req.GetCaches())
	if req.GetAt() != nil {
		ask.At = req.GetAt().AsTime()
	}
	if rules := req.GetDaemonRules(); rules != nil {
		return s.opts.Engine.PlanOfDaemons(ctx, ask.Caches, specsOf(rules), ask.At)
	}
	if req.GetPolicy() != nil {
		p, err := wire.Policy(req.GetPolicy())
		if err != nil {
			return run.Plan{}, err
		}
		p.Version = 0
		ask.Policy = &p
	}
	return s.opts.Engine.Plan(ctx, ask)
}

func specsOf(in *cachemanagerv1.DaemonRules) (specs []gc.Spec) {
	for _, rule := range in.GetRules() {
		specs = append(specs, gc.Spec{
			All: rule.GetAll(), Filters: rule.GetFilters(), KeepDuration: rule.GetKeepDuration().AsDuration(),
			ReservedBytes: rule.GetReservedSpaceBytes(), MaxUsedBytes: rule.GetMaxUsedSpaceBytes(), MinFreeBytes: rule.GetMinFreeSpaceBytes(),
		})
	}
	return specs
}

// Prune implements the RPC.
func (s *Server) Prune(req *cachemanagerv1.PruneRequest, stream cachemanagerv1.CacheManagerService_PruneServer) error {
	order := enforce.Order{
		Trigger: run.Demand, Caches: refsOf(req.GetCaches()), PlanDigest: req.GetPlanDigest(), Force: req.GetForce(), All: req.GetForceAll(),
		Caller: caller(stream.Context()), RequestID: req.GetRequestId(),
	}
	if req.GetAfterBuild() {
		order.Trigger = run.Build
	}
	if req.GetPolicy() != nil {
		p, err := wire.Policy(req.GetPolicy())
		if err != nil {
			return err
		}
		p.Version = 0
		order.Policy = &p
	}
	if req.GetBudget() != nil {
		order.Budget = wire.Budget(req.GetBudget())
	}
	return s.run(stream.Context(), order, func(e enforce.Event) error { return stream.Send(eventProto(e)) })
}

// run carries an order out, and sends all that happens. A caller that is gone ends the
// run.
func (s *Server) run(ctx context.Context, order enforce.Order, send func(enforce.Event) error) error {
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	_, err := s.opts.Engine.Run(running, order, func(e enforce.Event) {
		if err := send(e); err != nil {
			cancel(context.Canceled)
		}
	})
	if known, ok := errors.AsType[*enforce.ErrKnown](err); ok {
		return s.follow(ctx, known.Run, send)
	}
	return err
}

func eventProto(e enforce.Event) *cachemanagerv1.PruneResponse {
	switch {
	case e.Started != nil:
		return &cachemanagerv1.PruneResponse{Event: &cachemanagerv1.PruneResponse_Started{Started: wire.RunProto(*e.Started)}}
	case e.Planned != nil:
		return &cachemanagerv1.PruneResponse{Event: &cachemanagerv1.PruneResponse_Planned{Planned: wire.PlanProto(*e.Planned)}}
	case e.Removed != nil:
		return &cachemanagerv1.PruneResponse{Event: &cachemanagerv1.PruneResponse_Removed{Removed: wire.VerdictProto(*e.Removed)}}
	case e.Kept != nil:
		return &cachemanagerv1.PruneResponse{Event: &cachemanagerv1.PruneResponse_Kept{Kept: wire.VerdictProto(*e.Kept)}}
	case e.Missed != nil:
		return &cachemanagerv1.PruneResponse{Event: &cachemanagerv1.PruneResponse_Missed{Missed: wire.MissedProto(*e.Missed)}}
	default:
		return &cachemanagerv1.PruneResponse{Event: &cachemanagerv1.PruneResponse_Finished{Finished: wire.RunProto(*e.Finished)}}
	}
}

// followEvery is how often a run that another call has started is looked at.
const followEvery = 200 * time.Millisecond

// follow tells of a run that another call has started, to its end.
func (s *Server) follow(ctx context.Context, r run.Run, send func(enforce.Event) error) error {
	if err := send(enforce.Event{Started: &r}); err != nil {
		return err
	}
	for from := 0; ; {
		r, err := s.opts.State.RunOf(ctx, r.ID) // before its verdicts: none comes after its end
		if err != nil {
			return err
		}
		verdicts, err := s.opts.State.Verdicts(ctx, r.ID, from, 1000)
		if err != nil {
			return err
		}
		from += len(verdicts)
		for i := range verdicts {
			e := enforce.Event{Kept: &verdicts[i]}
			if verdicts[i].Remove || verdicts[i].Shrink > 0 {
				e = enforce.Event{Removed: &verdicts[i]}
			}
			if err := send(e); err != nil {
				return err
			}
		}
		switch {
		case len(verdicts) > 0:
			continue
		case r.State != run.Running:
			return send(enforce.Event{Finished: &r})
		}
		select {
		case <-time.After(followEvery):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
