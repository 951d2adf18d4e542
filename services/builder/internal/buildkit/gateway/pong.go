package gateway

import (
	"context"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/buildid"
	"github.com/moby/buildkit/identity"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// Ping is the first call of a client's frontend: its answer says what the daemon can
// do. The daemon answers only for builds that it has, and a build gets its daemon when
// it gets its slot; a client waits 15 seconds for the answer.
const (
	// pongFor is how long an answer holds: a daemon may be of another version then.
	pongFor = time.Minute
	// pongWithin is how long a daemon has to answer; clients wait 15 seconds.
	pongWithin = 10 * time.Second
)

// pongs has the answers of daemons to Ping, by their names.
type pongs struct {
	asking singleflight.Group

	mu    sync.Mutex
	known map[string]pong
}

type pong struct {
	answer []byte
	asked  time.Time
}

func newPongs() *pongs { return &pongs{known: make(map[string]pong)} }

// pong answers the Ping of a build that waits for a slot, with what a daemon has
// answered for another build.
func (g *Gateway) pong(c *call) error {
	if _, err := c.frame(); err != nil {
		return err
	}
	up, err := g.current(c.Context())
	if err != nil {
		return err
	}
	answer, err := g.pongs.of(c.Context(), up)
	if err != nil {
		return err
	}
	return c.SendMsg(rawcodec.FrameOf(answer))
}

func (p *pongs) of(ctx context.Context, upstream *upstream) ([]byte, error) {
	p.mu.Lock()
	known := p.known[upstream.Name()]
	p.mu.Unlock()
	if known.answer != nil && time.Since(known.asked) < pongFor {
		return known.answer, nil
	}
	asked := p.asking.DoChan(upstream.Name(), func() (any, error) {
		answer, err := ping(context.WithoutCancel(ctx), upstream.Conn())
		if err == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.known[upstream.Name()] = pong{answer: answer, asked: time.Now()}
		}
		return answer, err
	})
	select {
	case got := <-asked:
		answer, _ := got.Val.([]byte)
		return answer, got.Err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// ping has the daemon answer a Ping, in a build of its own that does nothing and
// leaves no record.
func ping(ctx context.Context, conn *grpc.ClientConn) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, pongWithin)
	defer cancel()
	ref := identity.NewID()
	ended := make(chan struct{})
	lifecycle.Go(ctx, func(ctx context.Context) {
		defer close(ended)
		// It lasts until it is cancelled; the daemon waits for it to answer the ping.
		_, _ = controlapi.NewControlClient(conn).Solve(ctx, &controlapi.SolveRequest{Ref: ref, Internal: true})
	})
	var answer rawcodec.Frame
	err := conn.Invoke(buildid.AppendToOutgoingContext(ctx, ref), methodPing, rawcodec.FrameOf(nil), &answer, callOptions()...)
	cancel()
	<-ended
	if err != nil {
		return nil, err
	}
	defer answer.Data.Free()
	return answer.Data.Materialize(), nil
}
