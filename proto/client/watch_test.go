package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// events streams events first to last, and the outcome as the last one.
func events(stream builderv1.BuilderService_WatchBuildServer, first, last, end uint64) error {
	for seq := first; seq <= last; seq++ {
		event := logEvent(seq, fmt.Sprint("line ", seq))
		if seq == end {
			event = endEvent(seq, succeeded)
		}
		if err := stream.Send(&builderv1.WatchBuildResponse{Event: event}); err != nil {
			return err
		}
	}
	return nil
}

// A watch whose stream breaks again and again, in every way in which one can,
// gives each event once and in order.
func TestWatchComesBack(t *testing.T) {
	const last = 2000
	var (
		l      *listener
		breaks atomic.Int32
	)
	s := &script{
		getBuild: func(context.Context, *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			return &builderv1.GetBuildResponse{Build: &builderv1.BuildRecord{LastSequence: last}}, nil
		},
		watchBuild: func(req *builderv1.WatchBuildRequest, stream builderv1.BuilderService_WatchBuildServer) error {
			kind := breaks.Add(1)
			from := max(req.GetFromSequence(), 1)
			if from > 20 {
				from -= rand.N(uint64(20)) // A server may send again what the caller has.
			}
			if err := events(stream, from, min(last, from+30+rand.N(uint64(100))), last); err != nil {
				return err
			}
			switch kind % 4 {
			case 0:
				l.cut()
				return nil
			case 1:
				return status.Error(codes.Unavailable, "shutting down")
			case 2:
				return status.Error(codes.Internal, "stream terminated by RST_STREAM")
			default:
				return nil
			}
		},
	}
	c, listener := dial(t, s)
	l = listener
	next := uint64(1)
	out, err := c.Watch(t.Context(), "b1", 0, func(event *builderv1.BuildEvent) error {
		if event.GetSequence() != next {
			t.Fatalf("event %d, want %d", event.GetSequence(), next)
		}
		next++
		return nil
	})
	if err != nil || out.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED || next != last+1 {
		t.Errorf("%v, %v; next is %d", out, err, next)
	}
	if breaks.Load() < 10 {
		t.Errorf("%d streams: nothing broke", breaks.Load())
	}
}

// An error of the caller's function ends the watch, whatever it looks like.
func TestWatchEndsByItsFunction(t *testing.T) {
	var streams atomic.Int32
	c, _ := dial(t, &script{watchBuild: func(_ *builderv1.WatchBuildRequest, stream builderv1.BuilderService_WatchBuildServer) error {
		streams.Add(1)
		return events(stream, 1, 3, 3)
	}})
	want := status.Error(codes.Unavailable, "my own stream")
	if _, err := c.Watch(t.Context(), "b1", 0, func(*builderv1.BuildEvent) error { return want }); !errors.Is(err, want) || streams.Load() != 1 {
		t.Errorf("%v after %d streams", err, streams.Load())
	}
}

// Events that are missing are not passed over.
func TestWatchRefusesAGap(t *testing.T) {
	c, _ := dial(t, &script{watchBuild: func(_ *builderv1.WatchBuildRequest, stream builderv1.BuilderService_WatchBuildServer) error {
		return errors.Join(events(stream, 1, 3, 9), events(stream, 5, 9, 9))
	}})
	seen := 0
	_, err := c.Watch(t.Context(), "b1", 0, func(*builderv1.BuildEvent) error { seen++; return nil })
	if err == nil || !strings.Contains(err.Error(), "event 5 came where 4") || seen != 3 {
		t.Errorf("%v after %d events", err, seen)
	}
}

// A caller who had the last event already gets the outcome from the record.
func TestWatchOfWhatHasEnded(t *testing.T) {
	c, _ := dial(t, &script{
		watchBuild: func(*builderv1.WatchBuildRequest, builderv1.BuilderService_WatchBuildServer) error { return nil },
		getBuild: func(context.Context, *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			return &builderv1.GetBuildResponse{Build: &builderv1.BuildRecord{LastSequence: 7, Outcome: succeeded}}, nil
		},
	})
	if out, err := c.Watch(t.Context(), "b1", 8, nil); err != nil || out.GetState() != succeeded.GetState() {
		t.Errorf("%v, %v", out, err)
	}
}

// A build that fails is an error with all that is known of it, and has its
// outcome beside it.
func TestBuildError(t *testing.T) {
	st, err := status.New(codes.FailedPrecondition, "process \"false\" did not complete").WithDetails(
		&errdetails.ErrorInfo{Domain: "kiln.build", Reason: "STEP_FAILED", Metadata: map[string]string{"remedy": "mend the step"}},
		&errorsv1.BuildFailure{
			Reason: errorsv1.Reason_REASON_STEP_FAILED, Class: errorsv1.FailureClass_FAILURE_CLASS_USER, Step: "[2/2] RUN false",
			Location: &errorsv1.SourceLocation{File: "Dockerfile", StartLine: 2, EndLine: 2},
			ExitCode: proto.Int32(1), LogTail: []string{"oh"}, Reference: "alpine",
		})
	if err != nil {
		t.Fatal(err)
	}
	outcome := &builderv1.Outcome{State: builderv1.BuildState_BUILD_STATE_FAILED, Error: st.Proto()}
	c, _ := dial(t, &script{startBuild: record("b1"), watchBuild: func(_ *builderv1.WatchBuildRequest, stream builderv1.BuilderService_WatchBuildServer) error {
		return stream.Send(&builderv1.WatchBuildResponse{Event: endEvent(1, outcome)})
	}})
	out, err := c.Build(t.Context(), &builderv1.BuildSpec{}, nil)
	if !proto.Equal(out, outcome) {
		t.Errorf("outcome %v", out)
	}
	failed, ok := errors.AsType[*client.BuildError](err)
	if !ok {
		t.Fatalf("%v is no BuildError", err)
	}
	if failed.Reason != "STEP_FAILED" || failed.Class != errorsv1.FailureClass_FAILURE_CLASS_USER || failed.Remedy != "mend the step" ||
		*failed.ExitCode != 1 || failed.LogTail[0] != "oh" || failed.Step != "[2/2] RUN false" || failed.Reference != "alpine" {
		t.Errorf("%+v", failed)
	}
	if got, want := err.Error(), `build b1 failed: Dockerfile:2: process "false" did not complete`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
