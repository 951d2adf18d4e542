package rpc

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

const (
	// leastTime is what a call must have left to be worth starting.
	leastTime = 100 * time.Millisecond
	// answerTime is kept back, so that the caller gets our answer and not its
	// own deadline.
	answerTime = 20 * time.Millisecond
)

// bound gives a call a deadline: the caller's, or the server's where that is
// sooner. A call with too little time left is refused, before it costs anything.
func bound(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc, error) {
	now := time.Now()
	end := now.Add(most)
	if deadline, ok := ctx.Deadline(); ok {
		if left := deadline.Sub(now); left < leastTime {
			return nil, nil, fault.New(fault.DeadlineExceeded, "TIMED_OUT",
				fmt.Sprintf("only %s of the deadline are left, and a call needs at least %s", max(left, 0).Round(time.Millisecond), leastTime),
				"call with a longer deadline")
		}
		if deadline = deadline.Add(-answerTime); deadline.Before(end) {
			end = deadline
		}
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	return ctx, cancel, nil
}
