package builds

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
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

// ago says how long ago a time was: "3m ago".
func ago(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "-"
	}
	d := now.Sub(t.AsTime())
	switch {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", d/time.Hour)
	default:
		return fmt.Sprintf("%dd ago", d/(24*time.Hour))
	}
}

// lasted says how long a duration is, to three digits or so.
func lasted(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	default:
		return strings.TrimSuffix(d.Round(time.Second).String(), "0s")
	}
}

// duration says how long a build took, or has been running.
func duration(b *builderv1.BuildRecord, now time.Time) string {
	switch {
	case b.GetOutcome() != nil:
		return lasted(b.GetOutcome().GetTimes().GetTotal().AsDuration())
	case b.GetStartTime() != nil:
		return lasted(now.Sub(b.GetStartTime().AsTime()))
	default:
		return "-"
	}
}

// size says a number of bytes as people do, in powers of ten.
func size(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), -1
	for ; value >= 999.5 && unit < 4; unit++ {
		value /= 1000
	}
	return fmt.Sprintf("%.3g %cB", value, "kMGTP"[unit])
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
