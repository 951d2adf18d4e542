package progress

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

var start = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func at(seconds int) *timestamppb.Timestamp {
	return timestamppb.New(start.Add(time.Duration(seconds) * time.Second))
}

func event(second int, kind any) *builderv1.BuildEvent {
	e := &builderv1.BuildEvent{Time: at(second)}
	switch k := kind.(type) {
	case *builderv1.StepEvent:
		e.Kind = &builderv1.BuildEvent_Step{Step: k}
	case *builderv1.LogEvent:
		e.Kind = &builderv1.BuildEvent_Log{Log: k}
	case *builderv1.QueuedEvent:
		e.Kind = &builderv1.BuildEvent_Queued{Queued: k}
	case *builderv1.RetryEvent:
		e.Kind = &builderv1.BuildEvent_Retry{Retry: k}
	case *builderv1.WarningEvent:
		e.Kind = &builderv1.BuildEvent_Warning{Warning: k}
	case *builderv1.Outcome:
		e.Kind = &builderv1.BuildEvent_Outcome{Outcome: k}
	}
	return e
}

// shown is what the plain display shows of events.
func shown(t *testing.T, events ...*builderv1.BuildEvent) string {
	t.Helper()
	testkit.VerifyNoLeaks(t)
	var out strings.Builder
	d, err := Start(&out, "plain")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		d.Show(e)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func step(digest, name string, state builderv1.StepState, from, to int) *builderv1.StepEvent {
	s := &builderv1.StepEvent{Digest: digest, Name: name, State: state}
	if from >= 0 {
		s.StartTime = at(from)
	}
	if to >= 0 {
		s.EndTime = at(to)
	}
	return s
}

// All that can happen in a build, on the plain display.
func TestPlain(t *testing.T) {
	failed := step("sha256:cc", "[3/3] RUN false", builderv1.StepState_STEP_STATE_FAILED, 9, 10)
	failed.Error = "exit code: 1"
	moved := step("sha256:bb", "[1/3] FROM busybox", builderv1.StepState_STEP_STATE_PROGRESS, 4, 5)
	moved.Item, moved.CurrentBytes, moved.TotalBytes = "sha256:layer", 2_000_000, 2_000_000
	got := shown(t,
		event(0, &builderv1.QueuedEvent{Position: 2, Reason: "4 builds are running"}),
		event(1, &builderv1.QueuedEvent{Position: 1, Reason: "4 builds are running"}),
		event(3, step("sha256:aa", "[internal] load build definition", builderv1.StepState_STEP_STATE_STARTED, 3, -1)),
		event(4, step("sha256:aa", "[internal] load build definition", builderv1.StepState_STEP_STATE_DONE, 3, 4)),
		event(4, step("sha256:bb", "[1/3] FROM busybox", builderv1.StepState_STEP_STATE_STARTED, 4, -1)),
		event(5, moved),
		event(6, step("sha256:bb", "[1/3] FROM busybox", builderv1.StepState_STEP_STATE_DONE, 4, 6)),
		event(6, step("sha256:dd", "[2/3] COPY . .", builderv1.StepState_STEP_STATE_CACHED, -1, -1)),
		event(7, &builderv1.RetryEvent{Attempt: 2, Error: &status.Status{Message: "the daemon went away"}}),
		event(9, step("sha256:cc", "[3/3] RUN false", builderv1.StepState_STEP_STATE_STARTED, 9, -1)),
		event(9, &builderv1.LogEvent{StepDigest: "sha256:cc", Stream: builderv1.LogStream_LOG_STREAM_STDOUT, Data: []byte("last words\n")}),
		event(10, failed),
		event(10, &builderv1.WarningEvent{Message: "JSONArgsRecommended", File: "Dockerfile", StartLine: 3, EndLine: 3, StepDigest: "sha256:aa"}),
		event(10, &builderv1.Outcome{}),
	)
	testkit.Golden(t, "plain.txt", blocks(got))
}

// number is that of a step, at the beginning of its lines.
var number = regexp.MustCompile(`(?m)^#[0-9]+ `)

// blocks is what is shown of each step, without its number, in the order of the
// alphabet: BuildKit's display takes steps of one moment in any order.
func blocks(shown string) string {
	all := strings.Split(strings.TrimSpace(number.ReplaceAllString(shown, "")), "\n\n")
	slices.Sort(all)
	return strings.Join(all, "\n\n") + "\n"
}

// A watch that begins in the middle shows what steps write whose beginning it
// has not seen.
func TestFromTheMiddle(t *testing.T) {
	got := shown(t, event(9, &builderv1.LogEvent{StepDigest: "sha256:0123456789abcdef", Stream: builderv1.LogStream_LOG_STREAM_STDOUT, Data: []byte("in the middle\n")}))
	if !strings.Contains(got, "in the middle") || !strings.Contains(got, "step 0123456789ab") {
		t.Errorf("%s", got)
	}
}
