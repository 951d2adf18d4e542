// Package wire translates the domain's records, events and failures into the
// contract's messages, in which they are sent and events are stored.
package wire

import (
	"fmt"
	"strings"
	"time"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/rpc"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Encode gives an event as it is stored and sent: a BuildResponse, which is a
// WatchBuildResponse too.
func Encode(e build.Event) ([]byte, error) {
	message := &builderv1.BuildResponse{Event: event(e)}
	data, err := proto.Marshal(message)
	if err != nil {
		// A daemon passes on what frontends and files are called, in whatever encoding.
		makeValid(message.ProtoReflect())
		data, err = proto.Marshal(message)
	}
	if err != nil {
		return nil, fmt.Errorf("%w", err)
	}
	return data, nil
}

func event(e build.Event) *builderv1.BuildEvent {
	out := &builderv1.BuildEvent{Sequence: e.Sequence, Time: timestamppb.New(e.Time)}
	switch kind := e.Kind.(type) {
	case build.Started:
		out.Kind = &builderv1.BuildEvent_Started{Started: &builderv1.BuildStarted{
			BuildId: kind.BuildID, Daemon: kind.Daemon, TraceId: kind.TraceID,
		}}
	case build.Waiting:
		out.Kind = &builderv1.BuildEvent_Queued{Queued: waiting(&kind)}
	case build.Retry:
		out.Kind = &builderv1.BuildEvent_Retry{Retry: &builderv1.RetryEvent{
			Attempt: int32(kind.Attempt), Error: failure(kind.Failure), //nolint:gosec // at most 10
		}}
	case build.StepEvent:
		out.Kind = &builderv1.BuildEvent_Step{Step: &builderv1.StepEvent{
			Digest: kind.Digest, Name: kind.Name, State: stepStates[kind.State],
			StartTime: timestamp(kind.Start), EndTime: timestamp(kind.End), Error: kind.Error,
			CurrentBytes: kind.Current, TotalBytes: kind.Total, Item: kind.ProgressItem,
		}}
	case build.LogEvent:
		stream := builderv1.LogStream_LOG_STREAM_STDOUT
		if kind.Stderr {
			stream = builderv1.LogStream_LOG_STREAM_STDERR
		}
		out.Kind = &builderv1.BuildEvent_Log{Log: &builderv1.LogEvent{StepDigest: kind.StepDigest, Stream: stream, Data: kind.Data, Clipped: kind.Clipped}}
	case build.Warning:
		out.Kind = &builderv1.BuildEvent_Warning{Warning: &builderv1.WarningEvent{
			Message: kind.Message, Details: kind.Details, Url: kind.URL, File: kind.File,
			StartLine: int32(kind.StartLine), EndLine: int32(kind.EndLine), StepDigest: kind.StepDigest, //nolint:gosec // lines of a file
		}}
	case build.Outcome:
		out.Kind = &builderv1.BuildEvent_Outcome{Outcome: outcome(kind)}
	}
	return out
}

var stepStates = map[build.StepState]builderv1.StepState{
	build.StepStarted:  builderv1.StepState_STEP_STATE_STARTED,
	build.StepProgress: builderv1.StepState_STEP_STATE_PROGRESS,
	build.StepCached:   builderv1.StepState_STEP_STATE_CACHED,
	build.StepDone:     builderv1.StepState_STEP_STATE_DONE,
	build.StepFailed:   builderv1.StepState_STEP_STATE_FAILED,
}

var buildStates = map[build.State]builderv1.BuildState{
	build.Queued:      builderv1.BuildState_BUILD_STATE_QUEUED,
	build.Running:     builderv1.BuildState_BUILD_STATE_RUNNING,
	build.Succeeded:   builderv1.BuildState_BUILD_STATE_SUCCEEDED,
	build.Failed:      builderv1.BuildState_BUILD_STATE_FAILED,
	build.Cancelled:   builderv1.BuildState_BUILD_STATE_CANCELLED,
	build.TimedOut:    builderv1.BuildState_BUILD_STATE_TIMED_OUT,
	build.Interrupted: builderv1.BuildState_BUILD_STATE_INTERRUPTED,
}

var origins = map[build.Origin]builderv1.BuildOrigin{
	build.OriginAPI:     builderv1.BuildOrigin_BUILD_ORIGIN_API,
	build.OriginGateway: builderv1.BuildOrigin_BUILD_ORIGIN_GATEWAY,
}

// Record is the contract's form of a record.
func Record(rec build.Record) *builderv1.BuildRecord {
	out := &builderv1.BuildRecord{
		Id: rec.ID, Project: rec.Project, State: buildStates[rec.State], Origin: origins[rec.Origin],
		CreateTime: timestamp(rec.Created), StartTime: timestamp(rec.Started), EndTime: timestamp(rec.Ended),
		Daemon: rec.Daemon, Tags: rec.Tags, TraceId: rec.TraceID, Caller: rec.Caller,
		LastSequence: rec.LastSeq, Steps: steps(rec.Steps), RequestId: rec.RequestID, RetryOf: rec.RetryOf,
		Attempt: int32(rec.Attempt), Queue: waiting(rec.Waiting), //nolint:gosec // at most 10
	}
	if rec.Outcome != nil {
		out.Outcome = outcome(*rec.Outcome)
	}
	return out
}

func outcome(o build.Outcome) *builderv1.Outcome {
	out := &builderv1.Outcome{
		State: buildStates[o.State], Steps: steps(o.Steps), Error: failure(o.Failure),
		Times: &builderv1.PhaseTimes{
			Total: durationpb.New(o.Times.Total), Queue: durationpb.New(o.Times.Queue), Context: durationpb.New(o.Times.Context),
			Solve: durationpb.New(o.Times.Solve), Export: durationpb.New(o.Times.Export),
		},
	}
	for _, result := range o.Outputs {
		out.Outputs = append(out.Outputs, &builderv1.OutputResult{
			Digest: result.Digest, MediaType: result.MediaType, Tags: result.Tags,
			Artifact: result.Artifact, SizeBytes: result.Size,
		})
	}
	return out
}

func steps(c build.StepCounts) *builderv1.StepCounts {
	return &builderv1.StepCounts{
		Total: int32(c.Total), Cached: int32(c.Cached), Completed: int32(c.Completed), Failed: int32(c.Failed), //nolint:gosec // steps of a build
	}
}

// failure makes the status that an outcome carries: the same code,
// ErrorInfo and remedy that an RPC error would have, and the build's own detail.
func failure(f *build.Failure) *rpcstatus.Status {
	if f == nil {
		return nil
	}
	out := rpc.Status(fault.New(f.Kind, f.Reason, strings.ToValidUTF8(f.Message, "\uFFFD"), f.Remedy)).Proto()
	detail := &errorsv1.BuildFailure{
		Reason: errorsv1.Reason(errorsv1.Reason_value["REASON_"+f.Reason]), Step: f.Step, StepDigest: f.StepDigest,
		ExitCode: f.ExitCode, LogTail: f.LogTail, LogClipped: f.LogClipped, Reference: f.Reference, Class: classes[f.Class],
	}
	for _, d := range f.Details {
		detail.DaemonDetails = append(detail.DaemonDetails, &errorsv1.DaemonDetail{TypeUrl: d.TypeURL, Value: d.Value})
	}
	if at := f.Location; at != nil {
		detail.Location = &errorsv1.SourceLocation{
			File: at.File, StartLine: int32(at.StartLine), EndLine: int32(at.EndLine), Snippet: at.Snippet, //nolint:gosec // lines of a file
		}
	}
	makeValid(detail.ProtoReflect())
	if packed, err := anypb.New(detail); err == nil {
		out.Details = append(out.Details, packed)
	}
	return out
}

var classes = map[build.Class]errorsv1.FailureClass{
	build.User:           errorsv1.FailureClass_FAILURE_CLASS_USER,
	build.Infrastructure: errorsv1.FailureClass_FAILURE_CLASS_INFRASTRUCTURE,
	build.Policy:         errorsv1.FailureClass_FAILURE_CLASS_POLICY,
	build.ByCancel:       errorsv1.FailureClass_FAILURE_CLASS_CANCELLED,
	build.ByTimeout:      errorsv1.FailureClass_FAILURE_CLASS_TIMED_OUT,
}

func waiting(w *build.Waiting) *builderv1.QueuedEvent {
	if w == nil {
		return nil
	}
	return &builderv1.QueuedEvent{Position: int32(w.Position), Reason: w.Reason} //nolint:gosec // builds that wait
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
