package enforce

import (
	"fmt"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// maxPlans is how many plans are kept, which are in memory.
const maxPlans = 8

// plans are those that were made last.
type plans struct {
	mu  sync.Mutex
	all []*kept // oldest first
}

// kept is a plan that can be carried out once.
type kept struct {
	plan  run.Plan
	taken bool
}

func (p *plans) put(made run.Plan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := append(p.all, &kept{plan: made})
	p.all = append([]*kept(nil), all[max(0, len(all)-maxPlans):]...)
}

func (p *plans) get(digest string) (run.Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, err := p.find(digest)
	if err != nil {
		return run.Plan{}, err
	}
	return k.plan, nil
}

func (p *plans) find(digest string) (*kept, error) {
	for _, one := range p.all {
		if one.plan.Digest == digest {
			return one, nil
		}
	}
	return nil, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no plan %s", digest),
		"plan again with PlanRun: plans are kept for minutes, and not over a restart")
}

// take returns a plan to carry it out, once. It is an ABORTED (PLAN_STALE) fault when that
// was done before, or it has expired.
func (p *plans) take(digest string, now time.Time) (run.Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, err := p.find(digest)
	switch {
	case err != nil:
		return run.Plan{}, err
	case k.plan.Hypothetical:
		return run.Plan{}, fault.New(fault.FailedPrecondition, "WRONG_STATE", "the plan is for another time", "plan without a time with PlanRun")
	case k.taken:
		return run.Plan{}, fault.New(fault.Aborted, "PLAN_STALE", "the plan was carried out before", "plan again with PlanRun")
	case now.After(k.plan.Expires):
		return run.Plan{}, fault.New(fault.Aborted, "PLAN_STALE", "the plan has expired", "plan again with PlanRun")
	}
	k.taken = true
	return k.plan, nil
}

// untake lets a plan be carried out again: the run did not begin.
func (p *plans) untake(digest string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k, err := p.find(digest); err == nil {
		k.taken = false
	}
}
