package grpcapi

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// slowReader is how long a caller may leave one message unread. Then the call
// ends, so that it holds nothing; the caller can come back for the rest.
const slowReader = time.Minute

// follow sends the frames that watch gives, as the bytes that they are.
func follow(stream grpc.ServerStream, watch func(ctx context.Context, emit func(build.Frame) error) error) error {
	return deliver(stream, "call WatchBuild from the number after the last event that came; the build goes on",
		func(ctx context.Context, send func(any) error) error {
			return watch(ctx, func(frame build.Frame) error { return send(rawcodec.FrameOf(frame.Data)) })
		})
}

// deliver runs give, whose messages go to the stream, until it returns or the
// caller does not read. Then the context of give ends with build.ErrSlowReader, and the
// call with UNAVAILABLE, for a client that calls again to get the rest; remedy is what
// its caller is told to do. Give runs in a goroutine of its own, which ends with its
// next send when the call has ended.
func deliver(stream grpc.ServerStream, remedy string, give func(ctx context.Context, send func(any) error) error) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	begun := time.Now()      // what follows is counted from it, by the monotonic clock
	var sending atomic.Int64 // since when, in nanoseconds; 0: not
	ended := make(chan error, 1)
	go func() {
		// A panic ends this call only, as it would in the goroutine of the call.
		ended <- lifecycle.Protect(ctx, func(ctx context.Context) error {
			return give(ctx, func(message any) error {
				sending.Store(int64(time.Since(begun)) + 1)
				defer sending.Store(0)
				if err := stream.SendMsg(message); err != nil {
					return fault.Wrap(err, fault.Canceled, "CANCELLED", "the caller ended the call", "read the stream to its end")
				}
				return nil
			})
		})
	}()
	tick := time.NewTicker(slowReader / 4)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-tick.C:
			since := sending.Load()
			if since == 0 || time.Since(begun)-time.Duration(since) < slowReader {
				continue
			}
			// Returning ends the stream, which ends the send that hangs and with it
			// the goroutine.
			cancel(build.ErrSlowReader)
			return fault.New(fault.Unavailable, "SLOW_READER",
				fmt.Sprintf("the caller has left a message unread for %s", slowReader), remedy)
		}
	}
}
