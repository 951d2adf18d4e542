package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// fail notes that nothing could be done.
func (j *job) fail(ctx context.Context, err error) {
	switch {
	case errors.Is(err, context.Canceled), ctx.Err() != nil:
		j.run.State = j.cut()
	default:
		j.run.State, j.run.Err = run.Failed, asFault(err)
	}
}

// cut is the state of a run that was ended before its time: by its caller or, where
// there is none, by the end of the service.
func (j *job) cut() run.State {
	if j.order.Trigger == run.Demand {
		return run.Cancelled
	}
	return run.Interrupted
}

// finish says how the run went, and stores it.
func (j *job) finish(ctx context.Context) {
	j.run.Ended = time.Now()
	for _, m := range j.missed {
		j.run.Caches = append(j.run.Caches, run.OfCache{Cache: m.Cache, State: run.Failed, Err: asFault(m.Err)})
	}
	slices.SortFunc(j.run.Caches, func(a, b run.OfCache) int { return a.Cache.Compare(b.Cache) })
	if j.run.State == run.Running {
		j.conclude()
	}
	stored, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := j.engine.State.FinishRun(stored, j.run); err != nil {
		j.engine.Log.ErrorContext(ctx, "how a run ended cannot be stored", "run", j.run.ID, "error", err)
	}
	j.engine.Metrics.RunEnded(ctx, j.run)
}

// conclude makes one state of those of the caches.
func (j *job) conclude() {
	count := map[run.State]int{}
	var names []string
	for i := range j.run.Caches {
		c := &j.run.Caches[i]
		if c.State == run.Running { // a dry run
			c.State = run.Succeeded
		}
		count[c.State]++
		if c.Err != nil {
			names = append(names, c.Cache.String())
			j.run.Err = c.Err
		}
	}
	all := len(j.run.Caches)
	switch {
	case count[run.Cancelled] > 0:
		j.run.State = j.cut()
	case count[run.Succeeded] == all && !j.spent:
		j.run.State = run.Succeeded
	case count[run.Failed] == all:
		j.run.State = run.Failed
	default:
		j.run.State = run.Partial
	}
	if j.held != nil && j.run.Err == nil {
		j.run.Err = j.held.fault()
		if j.run.State == run.Succeeded {
			j.run.State = run.Partial
		}
	}
	if len(names) > 0 && len(names) < all || len(names) > 1 {
		last := asFault(j.run.Err)
		j.run.Err = fault.Wrap(last, last.Kind, last.Reason,
			fmt.Sprintf("%d of %d caches could not be kept to the policy: %s", len(names), all, strings.Join(names, ", ")),
			"each cache of the run has its own error; the next run tries again")
	}
}
