package gateway

import (
	"context"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/outcome"
)

// settle is how long the daemon may take to tell the rest of a build whose Solve
// has ended. It has told all of it before, as a rule.
const settle = 3 * time.Second

// history is what the daemon says of a build. The builder asks for it by a Status
// of its own, so that a build has its history whatever its client asks for.
type history struct {
	progress *outcome.Progress
	started  time.Time
	cancel   context.CancelFunc
	done     chan struct{}
}

// follow begins to read what the daemon says of a build that it is about to get,
// and gives the events to sink, until end is called.
func follow(ctx context.Context, conn *grpc.ClientConn, ref string, sink func(any)) *history {
	// The end of a build that is cancelled is told too.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h := &history{progress: outcome.NewProgress(), started: time.Now(), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		_ = lifecycle.Protect(ctx, func(ctx context.Context) error { h.read(ctx, conn, ref, sink); return nil }) // reported
	}()
	return h
}

func (h *history) read(ctx context.Context, conn *grpc.ClientConn, ref string, sink func(any)) {
	stream, err := controlapi.NewControlClient(conn).Status(ctx, &controlapi.StatusRequest{Ref: ref}, grpc.MaxCallRecvMsgSize(maxMessage))
	for err == nil {
		var res *controlapi.StatusResponse
		if res, err = stream.Recv(); err == nil {
			h.progress.Update(client.NewSolveStatus(res), sink)
		}
	}
	// Its error is that of the Solve, or the daemon has no more to tell.
}

// end waits until all is told, within bounds, and returns what it came to. The
// progress may be read from then on.
func (h *history) end() build.Result {
	select {
	case <-h.done:
	case <-time.After(settle):
	}
	h.cancel()
	<-h.done
	return build.Result{Steps: h.progress.Counts(), Graph: h.progress.Graph(), Times: h.progress.Times(h.started)}
}
