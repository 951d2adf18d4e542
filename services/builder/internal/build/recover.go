package build

import (
	"context"
	"fmt"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/pkg/fault"
)

// Recover takes up what an earlier process left: builds that waited wait again,
// in their order; builds that were running go on if their retry policy has
// another attempt, and end in state INTERRUPTED if not, as soon as that can be
// stored.
func (s *Service) Recover(ctx context.Context) error {
	done, err := s.begin()
	if err != nil {
		return err
	}
	defer done()
	unended, err := s.Store.Unended(ctx)
	if err != nil {
		return fmt.Errorf("reading the builds that have not ended: %w", err)
	}
	for _, rec := range unended {
		failpoint.Hit(failRecover)
		s.Metrics.BuildStarted(ctx, rec.Origin)
		own := ctx
		if s.Behalf != nil {
			own = s.Behalf(ctx, rec)
		}
		l := s.enliven(own, rec)
		if rec.LastSeq == 0 { // killed before its first event was stored
			l.push(Started{BuildID: rec.ID, TraceID: rec.TraceID})
		}
		if spec, bytes, ok := s.resume(ctx, l); ok {
			l.resumed = true
			turn := s.Queue.Readmit(Entry{Tenant: rec.Tenant(), Priority: rec.Priority, Bytes: bytes})
			if !rec.Detached {
				l.expire(errCallerGone)
			}
			release := func() {}
			if s.Hold != nil {
				release = s.Hold(spec)
			}
			s.runs.Go(func() {
				defer release()
				s.run(l, spec, turn)
			})
			continue
		}
		outcome := Outcome{State: Interrupted, Failure: failureOf(errInterrupted), Steps: rec.Steps}
		if rec.HasSecrets && rec.resumableBut() {
			outcome.Failure.Message = "the builder stopped, and it does not keep the secrets that the build needs"
			outcome.Failure.Remedy = "start it again with RetryBuild and its secrets"
		}
		// Without waiting: a builder whose disk is full must come up to make room.
		s.conclude(l, outcome)
		s.runs.Go(func() { s.settle(l, outcome) })
	}
	return nil
}

// resumableBut reports whether only its secrets keep a build from going on.
func (r Record) resumableBut() bool {
	r.HasSecrets = false
	return r.resumable()
}

// resume makes a build ready to go on, if it can, and tells the bytes of its request.
func (s *Service) resume(ctx context.Context, l *live) (_ Spec, bytes int64, ok bool) {
	rec := l.record()
	if !rec.resumable() {
		return Spec{}, 0, false
	}
	request, err := s.Store.Request(ctx, rec.ID)
	var spec Spec
	if err == nil {
		spec, err = s.Decode(request)
	}
	if err != nil {
		s.Log.WarnContext(ctx, "the request of a build cannot be read; it does not go on", "build", rec.ID, "error", err)
		return Spec{}, 0, false
	}
	if rec.State == Running {
		l.again(failureOf(errInterrupted), Queued)
	}
	return spec, int64(len(request)), true
}

// failureOf turns an error of Kiln's own into a failure.
func failureOf(err *fault.Error) *Failure {
	return &Failure{Kind: err.Kind, Reason: err.Reason, Message: err.Error(), Remedy: err.Remedy, Class: classOf(err)}
}

func classOf(err *fault.Error) Class {
	switch {
	case err.Kind == fault.Canceled:
		return ByCancel
	case err.Kind == fault.DeadlineExceeded:
		return ByTimeout
	case err.Reason == "POLICY_DENIED", err.Reason == "DIRECTORY_NOT_ALLOWED", err.Reason == "DENIED":
		return Policy
	case err.Kind == fault.Unavailable, err.Kind == fault.ResourceExhausted, err.Kind == fault.Internal, err.Kind == fault.Aborted:
		return Infrastructure
	default:
		return User
	}
}
