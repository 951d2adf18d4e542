package wire_test

import (
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/wire"
)

// Whatever bytes a daemon gives for text, the event is stored, and nothing of a
// failure is left out.
func TestTextThatIsNotUTF8(t *testing.T) {
	const odd = "caf\xe9"
	code := int32(3)
	failure := &build.Failure{
		Kind: fault.FailedPrecondition, Reason: "STEP_FAILED", Message: odd, Step: odd, ExitCode: &code, LogTail: []string{odd, "fine"},
		Location: &build.Location{File: odd, StartLine: 1, EndLine: 1, Snippet: odd}, Class: build.User,
	}
	for _, kind := range []any{
		build.StepEvent{Name: odd, Error: odd, ProgressItem: odd}, build.Warning{Message: odd, Details: []string{odd}, File: odd, URL: odd},
		build.LogEvent{Data: []byte(odd)}, build.Waiting{Position: 1, Reason: odd}, build.Retry{Attempt: 2, Failure: failure},
		build.Outcome{State: build.Failed, Failure: failure},
	} {
		data, err := wire.Encode(build.Event{Sequence: 7, Kind: kind})
		if err != nil {
			t.Errorf("%T: %v", kind, err)
			continue
		}
		var back builderv1.BuildResponse
		if err := proto.Unmarshal(data, &back); err != nil || back.GetEvent().GetSequence() != 7 {
			t.Errorf("%T: %v, %v", kind, &back, err)
		}
		if log := back.GetEvent().GetLog(); log != nil && string(log.GetData()) != odd {
			t.Errorf("what a step wrote became %q", log.GetData())
		}
		if o := back.GetEvent().GetOutcome(); o != nil {
			told(t, o)
		}
	}
}

func told(t *testing.T, o *builderv1.Outcome) {
	t.Helper()
	for _, detail := range o.GetError().GetDetails() {
		var failure errorsv1.BuildFailure
		if detail.UnmarshalTo(&failure) == nil {
			if failure.GetExitCode() != 3 || len(failure.GetLogTail()) != 2 || !utf8.ValidString(failure.GetLocation().GetSnippet()) {
				t.Errorf("failure %v", &failure)
			}
			return
		}
	}
	t.Errorf("no BuildFailure in %v", o)
}
