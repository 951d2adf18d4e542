package build

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

func timedOut(after time.Duration) error {
	return fault.New(fault.DeadlineExceeded, "TIMED_OUT",
		fmt.Sprintf("the build took longer than %s", after),
		"give the build a longer timeout, up to max_build_time of the builder, or look at its slowest step")
}

// finalState says how a build ended that did not succeed. When its context has
// ended, the cause of that outweighs what the daemon said.
func finalState(ctx context.Context, failure *Failure) (State, *Failure) {
	if ctx.Err() == nil {
		return Failed, failure
	}
	cause := context.Cause(ctx)
	known, ok := errors.AsType[*fault.Error](cause)
	switch {
	case ok && known.Kind == fault.DeadlineExceeded:
		return TimedOut, failureOf(known)
	case ok && known.Kind == fault.Aborted:
		return Interrupted, failureOf(known)
	case ok:
		return Failed, failureOf(known)
	case errors.Is(cause, context.DeadlineExceeded):
		return TimedOut, failureOf(fault.New(fault.DeadlineExceeded, "TIMED_OUT",
			"the deadline of the call passed", "call with a later deadline, or use StartBuild"))
	case errors.Is(cause, errCancelled):
		return Cancelled, failureOf(fault.New(fault.Canceled, "CANCELLED",
			"the build was cancelled with CancelBuild", "build again, or retry it with RetryBuild"))
	default:
		return Cancelled, failureOf(fault.New(fault.Canceled, "CANCELLED",
			"the build was cancelled by its caller", "build again"))
	}
}

// How long a daemon may be silent: a build that it has not begun ends at once
// when the daemon's checks fail, one that it is building after deadAfter, for a
// hung or overloaded daemon may come back.
const (
	watchEvery = 250 * time.Millisecond
	deadAfter  = time.Minute
)

// watchDaemon calls dead with an UNAVAILABLE fault when the daemon stops answering,
// until ctx ends or stop is called. begun tells it that the daemon has begun to build.
func (s *Service) watchDaemon(ctx context.Context, daemon string, dead func(error)) (begun, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var building atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			since, err := s.Pool.Health(daemon)
			if err != nil && (!building.Load() || time.Since(since) > deadAfter) {
				dead(err)
				return
			}
		}
	}()
	return func() { building.Store(true) }, func() {
		cancel()
		<-done
	}
}
