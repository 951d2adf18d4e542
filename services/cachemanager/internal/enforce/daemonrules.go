package enforce

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/gc"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// Ruled is a cache that collects by rules of its own.
type Ruled interface {
	// Rules makes rules that can be simulated: those given or, without any, its own.
	Rules(ctx context.Context, specs []gc.Spec) ([]gc.Rule, error)
}

// PlanOfDaemons says what daemons would remove by rules of BuildKit's: those given or,
// without any, their own. Such a plan cannot be carried out.
func (e *Engine) PlanOfDaemons(ctx context.Context, refs []cache.Ref, specs []gc.Spec, at time.Time) (run.Plan, error) {
	caches, err := e.choose(refs)
	if err != nil {
		return run.Plan{}, err
	}
	listings, missed, err := e.list(ctx, caches)
	if err != nil {
		return run.Plan{}, err
	}
	now := e.Now()
	out := run.Plan{Plan: &plan.Plan{}, Created: now, Expires: now.Add(planLasts), Missed: missed, Hypothetical: true}
	if at.IsZero() {
		at = now
	}
	for _, l := range listings {
		one, err := e.planOfDaemon(ctx, l, specs, at)
		if err != nil {
			return run.Plan{}, err
		}
		out.Plan = one.With(out.Plan)
	}
	out.Digest = digest(out)
	return out, e.State.SavePlan(ctx, out) // for its further pages
}

func (e *Engine) planOfDaemon(ctx context.Context, l cache.Listing, specs []gc.Spec, at time.Time) (*plan.Plan, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	chosen, err := e.choose([]cache.Ref{l.Cache})
	if err != nil {
		return nil, err
	}
	ruled, ok := chosen[0].(Ruled)
	if !ok {
		return nil, fault.New(fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("cache %q has no rules of its own", l.Cache), "name daemons only")
	}
	rules, err := ruled.Rules(ctx, specs)
	if err != nil {
		return nil, err
	}
	return gc.Simulate(l, rules, at), nil
}
