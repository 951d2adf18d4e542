package gateway_test

import (
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/identity"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Calls that wait do not keep the next one of their connection from coming.
func TestWatchers_LeaveRoomForCancelOnTheirConnection(t *testing.T) {
	s := bakeStack(t, 1)
	conn := labtest.Must(lab.Dial(s.Builder.Addr))(t)
	defer func() { _ = conn.Close() }()
	ctx, ref := labtest.Context(t, 2*time.Minute), identity.NewID()
	ended := make(chan error, 1)
	go func() {
		_, err := controlapi.NewControlClient(conn).Solve(ctx, &controlapi.SolveRequest{Ref: ref})
		ended <- err
	}()
	api := builderv1.NewBuilderServiceClient(conn)
	labtest.Eventually(t, time.Minute, "the build runs", func() bool {
		rec, err := api.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: ref})
		return err == nil && rec.GetBuild().GetState() == builderv1.BuildState_BUILD_STATE_RUNNING
	})
	for range 1500 {
		stream := labtest.Must(api.WatchBuild(ctx, &builderv1.WatchBuildRequest{BuildId: ref}))(t)
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := api.CancelBuild(ctx, &builderv1.CancelBuildRequest{BuildId: ref}); err != nil {
		t.Error(err)
	}
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Error(err)
	}
}
