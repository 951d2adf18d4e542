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
// registry that nobody uses may be wrong. Blobs that no manifest names do not count.
func (j *job) brake(made run.Plan) error {
	e := j.engine
	if j.approved || e.MaxShare <= 0 || e.MaxShare >= 100 {
		return nil
	}
	var goes plan.Amount
	for _, v := range made.Removals() {
		if v.Kind == plan.Manifest {
			goes.Manifests, goes.Bytes = goes.Manifests+1, goes.Bytes+v.Frees
		}
	}
	over := func(goes, stays int64) bool { return goes*100 > (goes+stays)*int64(e.MaxShare) }
	if !over(goes.Manifests, made.Keeps.Manifests) && !over(goes.Bytes, made.Keeps.Bytes) {
		return nil
	}
	text := fmt.Sprintf("the run would remove %d of %d manifests and %d of %d bytes, more than %d %% (schedule.max_removal_percent); "+
		"nothing was removed", goes.Manifests, goes.Manifests+made.Keeps.Manifests, goes.Bytes, goes.Bytes+made.Keeps.Bytes, e.MaxShare)
	err := fault.New(fault.FailedPrecondition, approvalNeeded, text, "see what would go with `kiln janitor plan`; "+
		"if that is meant, carry that plan out with `kiln janitor run --plan DIGEST --force`")
	err.Metadata = map[string]string{"plan_digest": made.Digest}
	return err
}
