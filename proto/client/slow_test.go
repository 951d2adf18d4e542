package client_test

import (
	"context"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// A builder that lets a slow reader go, as this version says it or as the one before
// did, does not lose its build: Build comes back at the next event.
func TestBuild_ComesBackWhenItReadTooSlowly(t *testing.T) {
	const last = 100
	for name, answer := range map[string]struct {
		code   codes.Code
		reason string
	}{
		"this version":       {codes.Unavailable, "SLOW_READER"},
		"the version before": {codes.DeadlineExceeded, "TIMED_OUT"},
	} {
		t.Run(name, func(t *testing.T) {
			st, err := status.New(answer.code, "the caller has left a message unread for 1m0s").
				WithDetails(&errdetails.ErrorInfo{Domain: "kiln.build", Reason: answer.reason})
			if err != nil {
				t.Fatal(err)
			}
			streams, cancelled := 0, 0
			s := &script{
				startBuild: func(context.Context, *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error) {
					return &builderv1.StartBuildResponse{Build: &builderv1.BuildRecord{Id: "b1"}}, nil
				},
				watchBuild: func(req *builderv1.WatchBuildRequest, stream builderv1.BuilderService_WatchBuildServer) error {
					streams++
					from := max(req.GetFromSequence(), 1)
					if err := events(stream, from, min(last, from+30), last); err != nil || from+30 >= last {
						return err
					}
					return st.Err()
				},
				cancelBuild: func(context.Context, *builderv1.CancelBuildRequest) (*builderv1.CancelBuildResponse, error) {
					cancelled++
					return &builderv1.CancelBuildResponse{}, nil
				},
			}
			c, _ := dial(t, s)
			next := uint64(1)
			out, err := c.Build(t.Context(), &builderv1.BuildSpec{}, func(event *builderv1.BuildEvent) error {
				if event.GetSequence() != next {
					t.Errorf("event %d, want %d", event.GetSequence(), next)
				}
				next++
				return nil
			})
			if err != nil || out.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED || next != last+1 || cancelled != 0 || streams < 3 {
				t.Errorf("%v, %v: %d events in %d streams, cancelled %d times", out, err, next-1, streams, cancelled)
			}
		})
	}
}
