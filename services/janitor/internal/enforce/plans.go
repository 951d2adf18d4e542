package enforce

import (
	"fmt"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// maxPlans is how many plans are kept, which are in memory.
const maxPlans = 8

// plans are those that were made last.
type plans struct {
	mu  sync.Mutex
	all []run.Plan // oldest first
}

func (p *plans) put(made run.Plan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, made)
	p.all = slices.Clone(p.all[max(0, len(p.all)-maxPlans):])
}

func (p *plans) get(digest string) (run.Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.all {
		if one.Digest == digest {
			return one, nil
		}
	}
	return run.Plan{}, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no plan %s", digest),
		"plan again with PlanRun: plans are kept for minutes, and not over a restart")
}
