package enforce

import (
	"fmt"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// approvalNeeded is the reason of the fault of brake.
const approvalNeeded = "APPROVAL_NEEDED"

// wanted reports whether somebody has asked for just this run, and need not be asked again.
func (o Order) wanted() bool {
	return o.Trigger == run.Demand || o.Trigger == run.Once && o.All
}

// brake is a FAILED_PRECONDITION fault (APPROVAL_NEEDED) for a plan that removes more than MaxShare
// of the manifests or of their bytes, in a run that nobody has asked for: a clock, a policy or a
// registry that nobody uses may be wrong. Blobs that no manifest names do not count; what goes in later
// runs, for want of a budget, does.
func (j *job) brake(made run.Plan) error {
	e := j.engine
	if j.approved || e.MaxShare <= 0 || e.MaxShare >= 100 {
		return nil
	}
	var goes plan.Amount
	var later int64 // manifests that the budget leaves to later runs
	for _, v := range made.Removals() {
		if v.Kind == plan.Manifest {
			goes.Manifests, goes.Bytes = goes.Manifests+1, goes.Bytes+v.Frees
		}
	}
	for _, v := range made.Verdicts {
		if v.Kind == plan.Manifest && v.Reason == plan.OverBudget {
			later++
		}
	}
	over := func(goes, stays int64) bool { return goes*100 > (goes+stays)*int64(e.MaxShare) }
	if !over(goes.Manifests+later, made.Keeps.Manifests-later) && !over(goes.Bytes, made.Keeps.Bytes) {
		return nil
	}
	text := fmt.Sprintf("the run would remove %d of %d manifests, %d more in later runs, and %d of %d bytes, more than %d %% "+
		"(schedule.max_removal_percent); nothing was removed",
		goes.Manifests, goes.Manifests+made.Keeps.Manifests, later, goes.Bytes, goes.Bytes+made.Keeps.Bytes, e.MaxShare)
	remedy := "see what would go with `kiln janitor plan`; " +
		"if that is meant, carry that plan out with `kiln janitor run --plan DIGEST --force`"
	if j.order.Trigger == run.Once { // there may be no janitor that could be asked
		remedy = "see what would go with `kiln-janitor run --once --dry-run`; " +
			"if that is meant, do it with `kiln-janitor run --once --force-all`"
	}
	err := fault.New(fault.FailedPrecondition, approvalNeeded, text, remedy)
	err.Metadata = map[string]string{"plan_digest": made.Digest}
	return err
}
