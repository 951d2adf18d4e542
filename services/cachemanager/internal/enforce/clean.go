package enforce

import (
	"context"
	"fmt"
	"sync"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// Repairer is a cache that can be repaired: a directory.
type Repairer interface {
	// Repair puts right what is wrong, and tells of each defect; in a dry run, it only
	// tells.
	Repair(ctx context.Context, dry bool, tell func(cache.Defect)) error
}

// emptied is the policy of a run that empties caches.
var emptied = policy.Policy{Rules: []policy.Rule{{Name: "clean", Keep: &policy.Keep{Records: new(int64)}}}}

// asCleaned gives what goes the reason that it has when a cache is emptied.
func asCleaned(p *plan.Plan) {
	for i := range p.Verdicts {
		if v := &p.Verdicts[i]; v.Remove {
			v.Reason, v.Explain = plan.Cleaned, "the cache is emptied"
		}
	}
}

// toClean are the caches of a run that cleans: those that are named or, of none, all
// directories. A daemon can be emptied only.
func (e *Engine) toClean(refs []cache.Ref, what Clean) ([]Cache, error) {
	caches, err := e.choose(refs)
	if err != nil {
		return nil, err
	}
	var all []Cache
	for _, c := range caches {
		if len(refs) == 0 && c.Ref().Directory == "" {
			continue
		}
		if _, ok := c.(Repairer); !ok && what == Repair {
			return nil, fault.New(fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("cache %q is that of a daemon, which repairs itself", c.Ref()),
				"name directories only, or ask for all to be removed from it")
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fault.New(fault.FailedPrecondition, "WRONG_STATE", "no type=local directory is configured",
			"name directories in the cache manager's configuration (directories), or empty a daemon's cache: `kiln clean-cache --all --cache NAME`")
	}
	return all, nil
}

// repair puts right what is wrong in the caches.
func (j *job) repair(ctx context.Context) {
	j.run.Caches = make([]run.OfCache, len(j.caches))
	var mu sync.Mutex
	each(j.caches, func(i int, c Cache) {
		of := run.OfCache{Cache: c.Ref(), State: run.Succeeded}
		err := j.repairOne(ctx, c, &of, func(defect cache.Defect) {
			mu.Lock()
			defer mu.Unlock()
			j.emit(Event{Repaired: &Repaired{c.Ref(), defect}})
		})
		switch {
		case err == nil:
		case ctx.Err() != nil:
			of.State = run.Cancelled
		default:
			of.State, of.Err = run.Failed, asFault(err)
		}
		j.run.Caches[i] = of
	})
}

func (j *job) repairOne(ctx context.Context, c Cache, of *run.OfCache, tell func(cache.Defect)) error {
	r, ok := c.(Repairer)
	if !ok {
		return nil
	}
	if before, err := c.List(ctx); err == nil {
		of.Before, of.After = bytesOf(before), bytesOf(before)
	}
	if err := r.Repair(ctx, j.run.Dry, tell); err != nil || j.run.Dry {
		return err
	}
	after, err := c.List(ctx)
	if err == nil {
		of.After = bytesOf(after)
	}
	return err
}
