package builds

import (
	"fmt"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

// states are the names of the states of builds, as people write them.
var states = []string{"queued", "running", "succeeded", "failed", "cancelled", "timed_out", "interrupted"}

func stateWord(s builderv1.BuildState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "BUILD_STATE_"))
}

func stateStyle(s builderv1.BuildState) table.Style {
	switch s {
	case builderv1.BuildState_BUILD_STATE_QUEUED:
		return table.Yellow
	case builderv1.BuildState_BUILD_STATE_RUNNING:
		return table.Cyan
	case builderv1.BuildState_BUILD_STATE_SUCCEEDED:
		return table.Green
	default:
		return table.Red
	}
}

func originWord(o builderv1.BuildOrigin) string {
	return strings.ToLower(strings.TrimPrefix(o.String(), "BUILD_ORIGIN_"))
}

func classWord(c errorsv1.FailureClass) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "FAILURE_CLASS_"))
}

// ended reports whether a build is in a final state.
func ended(b *builderv1.BuildRecord) bool {
	return b.GetState() >= builderv1.BuildState_BUILD_STATE_SUCCEEDED
}

// short is the part of an id that fits a table.
func short(id string) string { return id[:min(12, len(id))] }

// duration says how long a build took, or has been running.
func duration(b *builderv1.BuildRecord, now time.Time) string {
	switch {
	case b.GetOutcome() != nil:
		return show.Lasted(b.GetOutcome().GetTimes().GetTotal().AsDuration())
	case b.GetStartTime() != nil:
		return show.Lasted(now.Sub(b.GetStartTime().AsTime()))
	default:
		return "-"
	}
}

// why is the reason why a build is as it is: why it failed, or its place in the
// queue.
func why(b *builderv1.BuildRecord) string {
	if b.GetQueue() != nil {
		return fmt.Sprintf("place %d: %s", b.GetQueue().GetPosition(), b.GetQueue().GetReason())
	}
	if failed := client.ErrorOf(b.GetId(), b.GetOutcome()); failed != nil {
		return failed.Reason
	}
	return ""
}
