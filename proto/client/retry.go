package client

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	firstPause = 100 * time.Millisecond
	maxPause   = 3 * time.Second
)

// errCut is the end of a stream that has not come to its end.
var errCut = io.ErrUnexpectedEOF

// final is an error that is not to be tried again, whatever it is: one of the
// caller's own function or files.
type final struct{ error }

// again makes attempts until one succeeds, or fails in a way that does not pass,
// or nothing has got better for as long as the client's patience. An attempt
// says whether it got further than the one before. When ctx ends, the error is
// why it ended.
func (c *Client) again(ctx context.Context, attempt func() (progress bool, _ error)) error {
	pause, worse := firstPause, time.Now()
	for {
		progress, err := attempt()
		if err == nil {
			return nil
		}
		if f, ok := errors.AsType[final](err); ok {
			return f.error
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		wait, passes := passing(err)
		if progress {
			pause, worse = firstPause, time.Now()
			passes = passes || letGo(err)
		}
		wait = max(wait, pause/2+rand.N(pause/2))
		if !passes || time.Since(worse)+wait > c.patience {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		pause = min(2*pause, maxPause)
	}
}

// letGo reports whether a builder of an earlier version ended a stream because its
// caller left a message unread; later ones answer UNAVAILABLE (SLOW_READER).
func letGo(err error) bool {
	st, ok := status.FromError(err)
	return ok && st.Code() == codes.DeadlineExceeded && errorInfo(st).GetReason() == "TIMED_OUT"
}

// passing reports whether an error may be gone when the call is made again, and
// how long the builder asks to wait until then.
func passing(err error) (wait time.Duration, _ bool) {
	if errors.Is(err, errCut) {
		return 0, true
	}
	st, ok := status.FromError(err)
	if !ok {
		return 0, false
	}
	if wait, told := retryDelay(st); told {
		return wait, true
	}
	switch st.Code() {
	case codes.Unavailable:
		return 0, true
	case codes.Internal, codes.Canceled:
		// Without Kiln's own words it is the way there that broke: a reset stream.
		return 0, errorInfo(st) == nil
	default:
		return 0, false
	}
}
