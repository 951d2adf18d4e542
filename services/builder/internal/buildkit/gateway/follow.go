package gateway

import (
	"context"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/outcome"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
)

// settle is how long the daemon may take to send the rest of the status of a build
// whose Solve has ended. It has sent all of it before, as a rule.
const settle = 3 * time.Second

// history is what the daemon says of a build. The builder asks for it by a Status of
// its own, so that a build has its history whatever its client asks for.
type history struct {
	route    *route
	up       *upstream
	progress *outcome.Progress
	hide     *buildkit.Hider
	sink     func(any)
	started  time.Time
	cancel   context.CancelFunc
	done     chan struct{}
}

// follow begins to read what the daemon says of a build that it is about to get, and
// gives the events to sink without the secrets, until end is called. view is the build
// among the others at the daemon.
func follow(ctx context.Context, up *upstream, r *route, view *mask.View, sink func(any)) *history {
	// The end of a build that is cancelled is told too.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h := &history{
		route: r, up: up, progress: outcome.NewProgress(), hide: buildkit.NewHider(view), sink: sink,
		started: time.Now(), cancel: cancel, done: make(chan struct{}),
	}
	lifecycle.Go(ctx, func(ctx context.Context) {
		defer close(h.done)
		h.read(ctx)
	})
	return h
}

func (h *history) read(ctx context.Context) {
	control := controlapi.NewControlClient(h.up.Conn())
	stream, err := control.Status(ctx, &controlapi.StatusRequest{Ref: h.route.ref}, grpc.MaxCallRecvMsgSize(maxMessage))
	for err == nil {
		var res *controlapi.StatusResponse
		if res, err = stream.Recv(); err == nil {
			h.route.answered()
			h.progress.Update(h.hide.Status(client.NewSolveStatus(res)), h.sink)
		}
	}
	// Its error is that of the Solve, or the daemon has no more to send.
}

// end waits until all is told, within bounds, and returns what it came to. failed is
// the error of the Solve. The progress may be read from then on.
func (h *history) end(failed error) build.Result {
	if failed == nil || h.route.has() || h.remembers() {
		select {
		case <-h.done:
		case <-time.After(settle):
		}
	}
	h.cancel()
	<-h.done
	h.progress.Update(h.hide.Rest(), h.sink)
	return build.Result{Steps: h.progress.Counts(), Graph: h.progress.Graph(), Times: h.progress.Times(h.started)}
}

// failure returns why the build failed, without the secrets.
func (h *history) failure(ctx context.Context, err error) *build.Failure {
	return h.hide.Failure(outcome.FailureOf(ctx, err, h.progress))
}

// remembers reports whether the daemon has a record of the build. It has none of a
// build that it refused before it began, and its Status would look for that one for
// seconds.
func (h *history) remembers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	stream, err := controlapi.NewControlClient(h.up.Conn()).ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{Ref: h.route.ref, EarlyExit: true})
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil {
		h.route.answered()
	}
	return err == nil
}
