package grpcapi

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// reader is the stream of a caller that reads a message in its time.
type reader struct {
	grpc.ServerStream
	ctx  context.Context //nolint:containedctx // the call's own
	time time.Duration
}

func (r reader) Context() context.Context { return r.ctx }

func (r reader) SendMsg(any) error {
	select {
	case <-time.After(r.time):
		return nil
	case <-r.ctx.Done(): // as gRPC ends a send when the call has ended
		return r.ctx.Err()
	}
}

// A caller that reads slowly gets everything; one that leaves a message unread is
// let go, and nothing of its call is left.
func TestDeliver(t *testing.T) {
	for name, c := range map[string]struct {
		reads time.Duration
		stuck bool
	}{
		"slow":  {slowReader / 2, false},
		"stuck": {time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				sent := 0
				given := make(chan struct{})
				start := time.Now()
				var cause error // with which the call's work ends: it decides whether the build is cancelled
				err := deliver(reader{ctx: ctx, time: c.reads}, "read on", func(ctx context.Context, send func(any) error) error {
					defer close(given)
					defer func() { cause = context.Cause(ctx) }()
					for range 10 {
						if err := send(nil); err != nil {
							return err
						}
						sent++
					}
					return nil
				})
				cancel() // as gRPC does when the handler has returned
				<-given
				if !c.stuck {
					if err != nil || sent != 10 {
						t.Errorf("%d sent, %v", sent, err)
					}
					return
				}
				if took := time.Since(start); fault.KindOf(err) != fault.Unavailable || sent != 0 || took > 2*slowReader {
					t.Errorf("%d sent in %s, %v", sent, took, err)
				}
				if !errors.Is(cause, build.ErrSlowReader) {
					t.Errorf("the call's work ends because of %v", cause)
				}
			})
		})
	}
}
