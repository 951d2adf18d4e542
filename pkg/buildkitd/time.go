package buildkitd

import (
	"context"
	"errors"
	"fmt"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/clock"
)

// timeHeader is the header in which buildkitd says what time it is, on streams that its
// clients follow.
const timeHeader = "buildkit-current-timestamp"

// Time asks a daemon what time its clock says. It reads the header of a listing of builds
// that are running, of which it reads none. A daemon older than BuildKit 0.11 does not say.
func Time(ctx context.Context, daemon *client.Client) (time.Time, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := daemon.ControlClient().ListenBuildHistory(ctx, &control.BuildHistoryRequest{ActiveOnly: true, EarlyExit: true})
	if err != nil {
		return time.Time{}, err
	}
	header, err := stream.Header()
	if err != nil {
		return time.Time{}, err
	}
	at, err := TimeIn(header)
	if err != nil {
		_, refused := stream.Recv() // The status of a daemon that refuses comes without a header.
		return time.Time{}, errors.Join(refused, err)
	}
	return at, nil
}

// TimeIn reads the time of a daemon's clock from the header of a stream.
func TimeIn(header metadata.MD) (time.Time, error) {
	values := header.Get(timeHeader)
	if len(values) == 0 {
		return time.Time{}, fmt.Errorf("the daemon sends no %s", timeHeader)
	}
	return time.Parse(time.RFC3339Nano, values[0])
}

// Clock returns the clock of a daemon, for comparison with the host's.
func Clock(name string, daemon *client.Client) clock.Source {
	return clock.NewSource(fmt.Sprintf("buildkitd %q", name), func(ctx context.Context) (time.Time, error) {
		return Time(ctx, daemon)
	})
}
