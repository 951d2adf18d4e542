package client

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// domain is the domain of Kiln's ErrorInfo.
const domain = "kiln.build"

// BuildError says how a build ended that did not succeed.
type BuildError struct {
	// ID of the build.
	ID string
	// State is FAILED, CANCELLED, TIMED_OUT or INTERRUPTED.
	State builderv1.BuildState
	// Class says whose business it is. Of FAILURE_CLASS_INFRASTRUCTURE, and only of
	// that, building again may succeed.
	Class errorsv1.FailureClass
	// Reason is the name of a kiln.errors.v1.Reason without its prefix, for example
	// "STEP_FAILED".
	Reason string
	// Message is one line.
	Message string
	// Remedy says what to do about it. May be empty.
	Remedy string
	// Step is the name of the step that failed. Empty: none had begun.
	Step string
	// Location is the place in the Dockerfile. Nil: none is known.
	Location *errorsv1.SourceLocation
	// ExitCode is that of a RUN step's process. Nil: it is another failure.
	ExitCode *int32
	// LogTail is the last lines that the step wrote, oldest first; of a step whose
	// output was clipped, those of standard output and then those of standard error.
	LogTail []string
	// LogClipped reports that the daemon dropped a part of what the step wrote.
	LogClipped bool
	// Reference is the image or the URL that could not be read. May be empty.
	Reference string
}

// Error is the state, the place and the message, on one line.
func (e *BuildError) Error() string {
	where := ""
	if at := e.Location; at != nil {
		where = fmt.Sprintf("%s:%d: ", at.GetFile(), at.GetStartLine())
	}
	return fmt.Sprintf("build %s %s: %s%s", e.ID, stateWords[e.State], where, e.Message)
}

var stateWords = map[builderv1.BuildState]string{
	builderv1.BuildState_BUILD_STATE_FAILED:      "failed",
	builderv1.BuildState_BUILD_STATE_CANCELLED:   "was cancelled",
	builderv1.BuildState_BUILD_STATE_TIMED_OUT:   "timed out",
	builderv1.BuildState_BUILD_STATE_INTERRUPTED: "was interrupted",
}

// ErrorOf reads an outcome. It is nil for a build that succeeded or has none.
func ErrorOf(id string, outcome *builderv1.Outcome) *BuildError {
	if outcome == nil || outcome.GetState() == builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		return nil
	}
	e := &BuildError{ID: id, State: outcome.GetState(), Message: outcome.GetError().GetMessage()}
	for _, detail := range status.FromProto(outcome.GetError()).Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			e.Reason, e.Remedy = d.GetReason(), d.GetMetadata()["remedy"]
		case *errorsv1.BuildFailure:
			e.Class, e.Step, e.Location = d.GetClass(), d.GetStep(), d.GetLocation()
			e.ExitCode, e.LogTail, e.LogClipped, e.Reference = d.ExitCode, d.GetLogTail(), d.GetLogClipped(), d.GetReference()
		}
	}
	return e
}

// outcomeError is ErrorOf as an error that is nil when there is none.
func outcomeError(id string, outcome *builderv1.Outcome) error {
	if e := ErrorOf(id, outcome); e != nil {
		return e
	}
	return nil
}

// Reason is the reason that Kiln gave with the error of a call: the name of a
// kiln.errors.v1.Reason without its prefix, for example "NOT_FOUND". Empty: the
// error is not of Kiln, for example a connection that broke.
func Reason(err error) string { return errorInfo(status.Convert(err)).GetReason() }

// Remedy is what Kiln says to do about the error of a call. May be empty.
func Remedy(err error) string { return errorInfo(status.Convert(err)).GetMetadata()["remedy"] }

// RetryAfter is how long Kiln asks to wait before the call is made again.
// 0: it does not say.
func RetryAfter(err error) time.Duration {
	wait, _ := retryDelay(status.Convert(err))
	return wait
}

// errorInfo is Kiln's own detail of a status. Nil: it has none.
func errorInfo(st *status.Status) *errdetails.ErrorInfo {
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return info
		}
	}
	return nil
}

func retryDelay(st *status.Status) (time.Duration, bool) {
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}
