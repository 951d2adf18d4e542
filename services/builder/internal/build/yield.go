package build

import (
	"context"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// resumed is the priority of a build that has begun and waits for a slot again: it
// goes before all builds of its tenant that have not begun.
const resumed = 2

// Yield gives the slot of a build back before its end. A build may yield while its
// client keeps it waiting, so that another one can use the slot.
func (o *Observed) Yield() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turn.Release()
}

// Resume waits for a slot again, after Yield. A builder that stops begins no further
// builds, so that this one goes on without a slot. It ends with the cause of ctx.
func (o *Observed) Resume(ctx context.Context) error {
	turn := o.readmit()
	if turn == nil {
		return nil
	}
	waits, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(o.service.draining, stop)()
	err := o.service.await(waits, turn, o.live.waiting)
	o.live.update(func(rec *Record) { rec.Waiting = nil })
	if ctx.Err() != nil {
		turn.Release()
		return context.Cause(ctx)
	}
	if err != nil && o.service.draining.Err() == nil {
		return err
	}
	return nil
}

// readmit takes a place in the queue, nil when the build has ended.
func (o *Observed) readmit() Turn {
	rec := o.live.record()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return nil
	}
	o.turn = o.service.Queue.Readmit(Entry{Tenant: rec.Tenant(), Priority: resumed})
	return o.turn
}

// await waits for a turn and counts the build among those that wait.
func (s *Service) await(ctx context.Context, turn Turn, notify func(Waiting)) error {
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	return turn.Wait(ctx, notify)
}

// Waiting returns how many builds wait for a slot.
func (s *Service) Waiting() int { return int(s.waiting.Load()) }

// AdviseClient returns a fault with a remedy that a client of the gateway can follow:
// it has no request that the builder could run again, and no retry policy.
func AdviseClient(err *fault.Error) *fault.Error {
	advised := *err
	advised.Remedy = clientRemedy(err.Reason, err.Remedy)
	return &advised
}

func clientRemedy(reason, otherwise string) string {
	switch reason {
	case "CANCELLED":
		return "build again with the same client"
	case "INTERRUPTED", "SHUTTING_DOWN":
		return "build again with the same client when the builder is back"
	case "TIMED_OUT":
		return "look at the slowest step of the build, or ask the operator to raise max_build_time of the builder"
	default:
		return otherwise
	}
}
