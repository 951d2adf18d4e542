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
func follow(stream grpc.ServerStream, watch func(emit func(build.Frame) error) error) error {
	return deliver(stream, "read the stream as it comes; WatchBuild gives the events from any number on",
		func(send func(any) error) error {
			return watch(func(frame build.Frame) error { return send(rawcodec.FrameOf(frame.Data)) })
		})
}

// deliver runs give, whose messages go to the stream, until it returns or the
// caller does not read; remedy is what such a caller is told to do. Give runs in a
// goroutine of its own, which ends with its next send when the call has ended.
func deliver(stream grpc.ServerStream, remedy string, give func(send func(any) error) error) error {
	var sending atomic.Int64 // since when, in Unix nanoseconds; 0: not
	ended := make(chan error, 1)
	go func() {
		// A panic ends this call only, as it would in the goroutine of the call.
		ended <- lifecycle.Protect(stream.Context(), func(context.Context) error {
			return give(func(message any) error {
				sending.Store(time.Now().UnixNano())
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
		case now := <-tick.C:
			since := sending.Load()
			if since == 0 || now.Sub(time.Unix(0, since)) < slowReader {
				continue
			}
			// Returning ends the stream, which ends the send that hangs and with it
			// the goroutine.
			return fault.New(fault.DeadlineExceeded, "TIMED_OUT",
				fmt.Sprintf("the caller has left a message unread for %s", slowReader), remedy)
		}
	}
}
