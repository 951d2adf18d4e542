package gateway

import (
	"context"
	"errors"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
)

// askAgain is how long after its answer that it does not know a build the daemon is
// asked again.
const askAgain = 100 * time.Millisecond

// comeWithin is how long a Status waits for the Solve of its build. It is longer than
// a daemon looks for a build: of many builds at once, a Solve may come late.
const comeWithin = 30 * time.Second

// status passes the Status of a build on: that of a build under way once its daemon
// has it, and until then its place in the queue; that of a past build from the
// daemon's history. It is the caller's own build, or an administrator asks.
func (g *Gateway) status(c *call) error {
	var sent controlapi.StatusRequest
	if _, err := c.receive(&sent); err != nil {
		return err
	}
	if err := build.CheckID(sent.GetRef()); err != nil {
		return err
	}
	// A Status waits as long as its build. It keeps nothing else that its client sent.
	req := &controlapi.StatusRequest{Ref: sent.GetRef()}
	r := g.routes.enter(req.GetRef())
	defer g.routes.leave(r)
	client := &oneHeader{ServerStream: c.ServerStream}
	s, _ := r.now()
	if s.phase == expected {
		past, err := g.past(c, r, client, req)
		if past || err != nil {
			return err
		}
		ctx, cancel := context.WithTimeoutCause(c.Context(), comeWithin, noBuild(r.ref))
		defer cancel()
		if s, err = r.await(ctx, waiting); err != nil {
			return err
		}
	}
	if s.owner.identity != c.owner.identity && !administers(c.Context()) {
		return noBuild(r.ref)
	}
	s, err := shown(c.Context(), r, client)
	if err != nil || s.daemon == nil {
		return err // a build that was refused has no status: its Solve says why
	}
	return current(c.Context(), r, s.daemon, client, req)
}

// past passes on the status of a build that has no route, from the daemon's history.
// It returns false when there is no such build, or its Solve has come meanwhile.
func (g *Gateway) past(c *call, r *route, client *oneHeader, req *controlapi.StatusRequest) (is bool, err error) {
	ctx := c.Context()
	own, recorded, err := g.mine(ctx, c, r.ref)
	if err != nil || !own {
		return false, err
	}
	if err := g.masked(ctx, r.ref); err != nil {
		return false, err
	}
	if !recorded && come(ctx, r, lateBy) {
		return false, nil
	}
	up, err := g.current(ctx)
	if err != nil {
		return false, err
	}
	// The daemon looks for a build that it does not know for seconds, in which the
	// Solve of this one may come.
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lifecycle.Go(asking, func(ctx context.Context) {
		if _, err := r.await(ctx, waiting); err == nil {
			cancel(errCome)
		}
	})
	err = statusOf(asking, up, client, req, nil)
	if errors.Is(context.Cause(asking), errCome) || status.Code(err) == codes.NotFound {
		return false, nil
	}
	return true, err
}

// lateBy is how much later than its Status the Solve of a build may come before a
// daemon is asked for a build that the builder does not know.
const lateBy = 500 * time.Millisecond

// come reports whether the Solve of a build comes within a time.
func come(ctx context.Context, r *route, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err := r.await(ctx, waiting)
	return err == nil
}

// errCome ends the search of a daemon for a build whose Solve has come.
var errCome = errors.New("the Solve of the build has come")

// shown waits until a build has a daemon or has ended. While it waits for a slot, the
// client sees that as a step of the build.
func shown(ctx context.Context, r *route, client *oneHeader) (state, error) {
	s, err := r.until(ctx, func(s state) bool { return s.queued() || s.phase >= placed })
	if err != nil || !s.queued() {
		return s, err
	}
	// Like the daemon, which sends its clock first.
	if err := client.SendHeader(metadata.Pairs(timestampKey, time.Now().Format(time.RFC3339Nano))); err != nil {
		return s, err
	}
	step := newQueueStep(r.ref)
	for {
		place := s.place
		if err := client.SendMsg(step.waiting(place)); err != nil {
			return s, err
		}
		s, err = r.until(ctx, func(s state) bool { return s.place != place || s.phase >= placed })
		if err != nil {
			return s, err
		}
		if s.phase >= placed {
			return s, client.SendMsg(step.done())
		}
	}
}

// current passes on the status of a build under way. The daemon may not have it yet,
// as long as its Solve has not ended.
func current(ctx context.Context, r *route, up *upstream, client *oneHeader, req *controlapi.StatusRequest) error {
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lifecycle.Go(asking, func(ctx context.Context) { // its Solve says why the daemon never had it
		if _, err := r.until(ctx, func(s state) bool { return s.lost }); err == nil {
			cancel(errLost)
		}
	})
	for {
		err := statusOf(asking, up, client, req, r.seen())
		s, _ := r.now()
		switch {
		case s.lost:
			return nil
		case status.Code(err) != codes.NotFound || s.phase == ended:
			return err
		}
		select {
		case <-time.After(askAgain):
		case <-asking.Done():
		}
	}
}

// errLost ends the search of a daemon for a build that it never had.
var errLost = errors.New("the daemon never had the build")

// statusOf asks the daemon for the status of a build. view is the build among the others
// at the daemon; nil when it is not under way.
func statusOf(
	ctx context.Context, up *upstream, down grpc.ServerStream, req *controlapi.StatusRequest, view *mask.View,
) error {
	request, err := encoded(req)
	if err != nil {
		return err
	}
	stream, err := up.ask(ctx, methodStatus, request)
	if err != nil {
		return err
	}
	return sendStatus(stream, down, view)
}

// timestampKey is the metadata in which BuildKit sends its clock; see
// control/control.go.
const timestampKey = "buildkit-current-timestamp"

// oneHeader is a stream whose header is sent once, though several calls to the
// daemon stand behind it.
type oneHeader struct {
	grpc.ServerStream
	sent bool
}

// SendHeader implements grpc.ServerStream.
func (s *oneHeader) SendHeader(md metadata.MD) error {
	if s.sent {
		return nil
	}
	s.sent = true
	return s.ServerStream.SendHeader(md)
}
