package builds

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// now is the time of all tests.
var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }

func times(total time.Duration) *builderv1.PhaseTimes {
	return &builderv1.PhaseTimes{
		Total: durationpb.New(total), Queue: durationpb.New(40 * time.Millisecond), Context: durationpb.New(250 * time.Millisecond),
		Solve: durationpb.New(total * 3 / 4), Export: durationpb.New(total / 4),
	}
}

const digest = "sha256:3af2d8a755a836ce1a8660077e554f9309702751a3a4da8971c8cbf7698f3ef6"

// aQueued is a build that waits, aRunning one that runs, and so on.
func aQueued() *builderv1.BuildRecord {
	return &builderv1.BuildRecord{
		Id: "0e5d0a6c-7a56-4a07-9a51-0d2c8c1f7a10", Project: "web", State: builderv1.BuildState_BUILD_STATE_QUEUED,
		Origin: builderv1.BuildOrigin_BUILD_ORIGIN_API, CreateTime: before(20 * time.Second), RequestId: "deploy-4711", LastSequence: 2, Attempt: 1,
		Tags: []string{"localhost:5000/web:1.2"}, Caller: "spiffe://example.org/ci",
		Queue: &builderv1.QueuedEvent{Position: 3, Reason: "4 builds are running, which is the limit (max_running_builds)"},
	}
}

func aRunning() *builderv1.BuildRecord {
	return &builderv1.BuildRecord{
		Id: "n3kfwvb7zq8x9c5d1m2p4r6t8", Project: "default", State: builderv1.BuildState_BUILD_STATE_RUNNING,
		Origin: builderv1.BuildOrigin_BUILD_ORIGIN_GATEWAY, CreateTime: before(3 * time.Minute), StartTime: before(2*time.Minute + 59*time.Second),
		Daemon: "build-1", LastSequence: 118, Attempt: 1, Steps: &builderv1.StepCounts{Total: 9, Cached: 4, Completed: 2},
	}
}

func aSucceeded() *builderv1.BuildRecord {
	steps := &builderv1.StepCounts{Total: 12, Cached: 11, Completed: 1}
	return &builderv1.BuildRecord{
		Id: "4f3c1a2e-5a3b-4a53-8f6e-2b8f6c0d9e11", Project: "web", State: builderv1.BuildState_BUILD_STATE_SUCCEEDED,
		Origin: builderv1.BuildOrigin_BUILD_ORIGIN_API, CreateTime: before(2 * time.Hour), StartTime: before(2*time.Hour - time.Second),
		EndTime: before(2*time.Hour - 14*time.Second), Daemon: "build-1", LastSequence: 240, Attempt: 2, Steps: steps,
		RetryOf: "0e5d0a6c-7a56-4a07-9a51-0d2c8c1f7a10", TraceId: "4bf92f3577b34da6a3ce929d0e0e4736",
		Tags: []string{"localhost:5000/web:1.2", "localhost:5000/web:latest"},
		Outcome: &builderv1.Outcome{
			State: builderv1.BuildState_BUILD_STATE_SUCCEEDED, Steps: steps, Times: times(13400 * time.Millisecond),
			Outputs: []*builderv1.OutputResult{
				{Digest: digest, Tags: []string{"localhost:5000/web:1.2", "localhost:5000/web:latest"}, MediaType: "application/vnd.oci.image.manifest.v1+json"},
				{Digest: digest, Artifact: "image.tar", SizeBytes: 12345678, MediaType: "application/vnd.docker.image.tar"},
				{Artifact: "files.tar", SizeBytes: 512, MediaType: "application/x-tar"},
			},
		},
	}
}

func aFailed(t *testing.T) *builderv1.BuildRecord {
	t.Helper()
	st, err := status.New(codes.FailedPrecondition, `process "/bin/sh -c make" did not complete successfully: exit code: 2`).WithDetails(
		&errdetails.ErrorInfo{Domain: "kiln.build", Reason: "STEP_FAILED", Metadata: map[string]string{"remedy": "mend the step; its last lines are in log_tail"}},
		&errorsv1.BuildFailure{
			Reason: errorsv1.Reason_REASON_STEP_FAILED, Class: errorsv1.FailureClass_FAILURE_CLASS_USER, Step: "[build 3/4] RUN make", ExitCode: proto.Int32(2),
			Location: &errorsv1.SourceLocation{File: "Dockerfile", StartLine: 3, EndLine: 3, Snippet: "   2 |     COPY . .\n   3 | >>> RUN make\n   4 |     USER 1000\n"},
			LogTail:  []string{"cc -c main.c", "  main.c:7: error: \x1b[31mexpected\x1b[0m ';'", "make: *** [Makefile:2: main.o] Error 1"},
		})
	if err != nil {
		t.Fatal(err)
	}
	steps := &builderv1.StepCounts{Total: 4, Cached: 2, Failed: 1}
	return &builderv1.BuildRecord{
		Id: "4f3b9d10-1111-4a53-8f6e-2b8f6c0d9e12", Project: "api", State: builderv1.BuildState_BUILD_STATE_FAILED,
		Origin: builderv1.BuildOrigin_BUILD_ORIGIN_API, CreateTime: before(73 * time.Hour), StartTime: before(73 * time.Hour), EndTime: before(73*time.Hour - 95*time.Second),
		Daemon: "build-1", LastSequence: 31, Attempt: 1, Steps: steps,
		Outcome: &builderv1.Outcome{State: builderv1.BuildState_BUILD_STATE_FAILED, Error: st.Proto(), Steps: steps, Times: times(95 * time.Second)},
	}
}

// text collects what is written, and fails the test on an error.
func text(t *testing.T, write func(w *strings.Builder) error) string {
	t.Helper()
	var b strings.Builder
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
