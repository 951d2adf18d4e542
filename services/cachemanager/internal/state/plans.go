package state

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// maxPlans is how many plans are kept, which are in memory.
const maxPlans = 32

// SavePlan keeps a plan until it expires, in memory: it does not outlive the process.
func (s *Store) SavePlan(_ context.Context, p run.Plan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.plans[p.Digest]; !there {
		s.order = append(s.order, p.Digest)
	}
	s.plans[p.Digest] = &kept{plan: p}
	for len(s.order) > maxPlans {
		delete(s.plans, s.order[0])
		s.order = s.order[1:]
	}
	return nil
}

// PlanOf returns a plan that is kept, or a NOT_FOUND fault.
func (s *Store) PlanOf(_ context.Context, digest string) (run.Plan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.plans[digest]
	if k == nil {
		return run.Plan{}, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no plan %s", digest),
			"plan again with PlanPrune: plans are kept for minutes, and not over a restart")
	}
	return k.plan, nil
}

// TakePlan returns a plan by its digest, once.
func (s *Store) TakePlan(ctx context.Context, digest string, now time.Time) (run.Plan, error) {
	p, err := s.PlanOf(ctx, digest)
	if err != nil {
		return run.Plan{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.plans[digest]
	switch {
	case k == nil || now.After(p.Expires):
		return run.Plan{}, fault.New(fault.Aborted, "PLAN_STALE", "the plan has expired", "plan again with PlanPrune")
	case p.Hypothetical:
		return run.Plan{}, fault.New(fault.FailedPrecondition, "WRONG_STATE", "the plan is for another time, or by the daemon's own rules", "plan without these with PlanPrune")
	case k.taken:
		return run.Plan{}, fault.New(fault.Aborted, "PLAN_STALE", "the plan was carried out before", "plan again with PlanPrune")
	}
	k.taken = true
	return p, nil
}
