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

// CheckPlan returns a plan that can be carried out.
func (s *Store) CheckPlan(ctx context.Context, digest string, now time.Time) (run.Plan, error) {
	p, err := s.PlanOf(ctx, digest)
	if err != nil {
		return run.Plan{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return p, s.check(digest, p, now)
}

// TakePlan keeps others from carrying out a plan, or is the fault of CheckPlan.
func (s *Store) TakePlan(ctx context.Context, digest string, now time.Time) error {
	p, err := s.PlanOf(ctx, digest)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(digest, p, now); err != nil {
		return err
	}
	s.plans[digest].taken = true
	return nil
}

// ReturnPlan lets a plan be carried out that was taken: its run was not begun.
func (s *Store) ReturnPlan(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.plans[digest]; k != nil {
		k.taken = false
	}
}

// check says why a plan cannot be carried out. mu is held.
func (s *Store) check(digest string, p run.Plan, now time.Time) error {
	k := s.plans[digest]
	switch {
	case k == nil || now.After(p.Expires):
		return fault.New(fault.Aborted, "PLAN_STALE", "the plan has expired", "plan again with PlanPrune")
	case p.Hypothetical:
		return fault.New(fault.FailedPrecondition, "WRONG_STATE", "the plan is for another time, or by the daemon's own rules", "plan without these with PlanPrune")
	case k.taken:
		return fault.New(fault.Aborted, "PLAN_STALE", "the plan was carried out before", "plan again with PlanPrune")
	}
	return nil
}
