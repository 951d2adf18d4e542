package enforce

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// Ask says what to plan.
type Ask struct {
	Caches []cache.Ref    // empty: all
	Policy *policy.Policy // nil: the one in force
	At     time.Time      // that ages are counted to; zero: now
}

// planLasts is how long a plan can be carried out.
const planLasts = 15 * time.Minute

// Plan says what a policy would remove, and keeps the plan so that Run can carry it
// out.
func (e *Engine) Plan(ctx context.Context, ask Ask) (run.Plan, error) {
	p, err := e.policy(ctx, ask.Policy)
	if err != nil {
		return run.Plan{}, err
	}
	caches, err := e.choose(ask.Caches)
	if err != nil {
		return run.Plan{}, err
	}
	made, err := e.plan(ctx, caches, p, ask.At)
	if err == nil {
		err = e.State.SavePlan(ctx, made)
	}
	return made, err
}

// policy returns a policy that can be applied: the given one, or the one in force.
func (e *Engine) policy(ctx context.Context, given *policy.Policy) (policy.Policy, error) {
	if given != nil {
		return policy.Resolve(*given)
	}
	inForce, err := e.State.PolicyInForce(ctx)
	if err != nil {
		return policy.Policy{}, err
	}
	return policy.Resolve(inForce)
}

// plan lists the caches and simulates the policy.
func (e *Engine) plan(ctx context.Context, caches []Cache, p policy.Policy, at time.Time) (run.Plan, error) {
	listings, missed, err := e.list(ctx, caches)
	if err != nil {
		return run.Plan{}, err
	}
	return e.planOf(ctx, caches, listings, missed, p, at)
}

func (e *Engine) planOf(ctx context.Context, caches []Cache, listings []cache.Listing, missed []run.Missed, p policy.Policy, at time.Time) (run.Plan, error) {
	now := e.Now()
	out := run.Plan{Created: now, Expires: now.Add(planLasts), Missed: missed, Hypothetical: !at.IsZero()}
	if at.IsZero() {
		at = now
	}
	pins, err := e.State.Pins(ctx, now)
	if err != nil {
		return run.Plan{}, err
	}
	held, err := leases(ctx, caches)
	if err != nil {
		return run.Plan{}, err
	}
	out.Plan = plan.Make(plan.Input{Listings: listings, Policy: p, Pins: pins, Leases: held, Now: at})
	out.Digest = digest(out)
	return out, nil
}

// digest is over all that would go, in order, with the use that it has now, and when
// the plan was made: two plans have one only if they are the same.
func digest(p run.Plan) string {
	h := sha256.New()
	// A hash takes all that is written to it.
	_, _ = fmt.Fprintf(h, "%d %d\n", p.Created.UnixNano(), p.PolicyVersion)
	for _, v := range p.Verdicts {
		if v.Remove || v.Shrink > 0 {
			_, _ = fmt.Fprintf(h, "%q %q %q %d %d\n", v.Cache.Daemon, v.Cache.Directory, v.Record.ID, v.Shrink, v.Record.LastUsed.UnixNano())
		}
	}
	_, _ = io.WriteString(h, "end\n")
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}
