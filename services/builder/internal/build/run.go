package build

import (
	"context"
	"errors"
	"time"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// run takes a build from the queue to its end.
func (s *Service) run(l *live, spec Spec, turn Turn) {
	defer turn.Release()
	outcome, goesOn := s.unlessPanics(l, spec, turn)
	if goesOn {
		l.abandon()
		<-l.done
		return
	}
	failpoint.Hit(failSolved)
	turn.Release() // before the outcome is told: who has it may start the next one
	s.finish(l, outcome)
}

// unlessPanics makes the attempts of a build; a panic fails this build alone.
func (s *Service) unlessPanics(l *live, spec Spec, turn Turn) (outcome Outcome, goesOn bool) {
	defer func() {
		if value := recover(); value != nil {
			outcome, goesOn = panicked(l.ctx, value), false
		}
	}()
	return s.attempts(l, spec, turn)
}

// panicked reports a panic in a build and returns how the build ends. Call it in the
// deferred function, so that the stack is that of the panic.
func panicked(ctx context.Context, value any) Outcome {
	_ = lifecycle.Recovered(ctx, value) // reported; its text is not for callers
	return Outcome{State: Failed, Failure: failureOf(fault.New(fault.Internal, "INTERNAL",
		"the builder failed while building", "report it with the trace id of the build"))}
}

// finish writes the outcome, the last event, and waits until it is stored.
func (s *Service) finish(l *live, outcome Outcome) {
	s.conclude(l, outcome)
	s.settle(l, outcome)
}

// conclude writes the outcome.
func (s *Service) conclude(l *live, outcome Outcome) {
	now := time.Now()
	if outcome.Failure != nil && l.record().Origin == OriginGateway {
		outcome.Failure.Remedy = clientRemedy(outcome.Failure.Reason, outcome.Failure.Remedy)
	}
	outcome.Times.Total = max(0, now.Sub(l.record().Created))
	failpoint.Hit(failOutcome)
	l.push(outcome, func(rec *Record) {
		rec.State, rec.Ended, rec.Outcome, rec.Steps, rec.Waiting = outcome.State, now, &outcome, outcome.Steps, nil
	})
}

// settle waits until the outcome is stored, and counts it.
func (s *Service) settle(l *live, outcome Outcome) {
	<-l.done
	failpoint.Hit(failTold)
	ctx, rec := context.WithoutCancel(l.ctx), l.record()
	_ = lifecycle.Protect(ctx, func(context.Context) error { // who is told must not end the process
		s.Metrics.BuildEnded(ctx, rec)
		if s.AfterBuild != nil {
			s.AfterBuild(rec, l.graph)
		}
		return nil
	})
	attrs := []any{
		"build", rec.ID, "project", rec.Project, "origin", rec.Origin.String(), "daemon", rec.Daemon, "attempt", rec.Attempt,
		"state", rec.State.String(), "duration", rec.Ended.Sub(rec.Created).Round(time.Millisecond),
		"steps", outcome.Steps.Total, "cached", outcome.Steps.Cached,
	}
	if rec.Outcome != nil && rec.Outcome.Failure != nil { // It may have failed in the store.
		attrs = append(attrs, "reason", rec.Outcome.Failure.Reason)
	}
	s.Log.InfoContext(ctx, "build ended", attrs...)
}

// attempts waits for the build's turn and solves it, again when it is not the
// build that fails and its policy says so. It reports whether the build goes on
// when the builder is back.
func (s *Service) attempts(l *live, spec Spec, turn Turn) (_ Outcome, goesOn bool) {
	err := s.await(l.ctx, turn, l.waiting)
	if err != nil || l.ctx.Err() != nil {
		outcome := s.ended(l)
		return outcome, outcome.State == Interrupted && s.resumes(l) // not one that was cancelled just before
	}
	failpoint.Hit(failAdmitted)
	queued := time.Since(l.record().Created)
	s.Metrics.BuildWaited(l.ctx, queued)
	timeout := s.MaxBuildTime
	if wanted := spec.Timeout; wanted > 0 && (timeout <= 0 || wanted < timeout) {
		timeout = wanted
	}
	ctx := l.ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, timedOut(timeout))
		defer cancel()
	}
	for {
		outcome := s.attempt(ctx, l, spec)
		outcome.Times.Queue = queued
		if outcome.State == Interrupted && s.resumes(l) {
			return outcome, true
		}
		rec := l.record()
		if !outcome.mayRetry() || rec.Attempt >= rec.MaxAttempts || ctx.Err() != nil {
			return outcome, false
		}
		l.again(outcome.Failure, Running)
		select {
		case <-ctx.Done(): // the next attempt says how it ended
		case <-time.After(min(time.Second<<(rec.Attempt-1), time.Minute)):
		}
	}
}

// again notes that the build is tried once more, and where it stands until then.
func (l *live) again(failure *Failure, state State) {
	attempt := l.record().Attempt + 1
	l.push(Retry{Attempt: attempt, Failure: failure}, func(rec *Record) { rec.Attempt, rec.State = attempt, state })
}

// waiting notes where the build stands in the queue.
func (l *live) waiting(w Waiting) { l.push(w, func(rec *Record) { rec.Waiting = &w }) }

// mayRetry reports whether it was not the build that failed.
func (o Outcome) mayRetry() bool {
	return o.State == Failed && o.Failure != nil && o.Failure.Class == Infrastructure
}

// resumes reports whether a build that the builder's stop ends goes on when it
// is back, and notes it: one that waits does, and one that is running if its
// policy has another attempt; not without its secrets.
func (s *Service) resumes(l *live) bool {
	if !s.isStopping() {
		return false
	}
	rec := l.record()
	if !rec.resumable() {
		return false
	}
	if rec.State == Running {
		l.again(failureOf(errInterrupted), Queued)
	}
	return true
}

func (r Record) resumable() bool {
	asked := r.Detached || r.RequestID != "" // somebody can come back for it
	return r.Origin == OriginAPI && asked && !r.HasSecrets && (r.State == Queued || r.Attempt < r.MaxAttempts)
}

// attempt solves the build once.
func (s *Service) attempt(ctx context.Context, l *live, spec Spec) Outcome {
	daemon, err := s.pick(ctx, l)
	if err != nil {
		return s.failed(ctx, err)
	}
	l.update(func(rec *Record) {
		rec.State, rec.Daemon, rec.Waiting = Running, daemon.Name(), nil
		if rec.Started.IsZero() {
			rec.Started = time.Now()
		}
	})
	// Before the solve is sent: after a kill -9 the store must know that there may
	// be one.
	if err := l.settle(ctx); err != nil {
		return s.failed(ctx, err)
	}
	failpoint.Hit(failSolving)
	return s.solve(ctx, l, spec, daemon)
}

// awaitDaemon is how long a build that was begun already waits for a daemon.
const awaitDaemon = 2 * time.Minute

// pick chooses a daemon. The first attempt has one or fails; the next ones, and
// builds that the builder took up when it started, wait for one that comes back.
func (s *Service) pick(ctx context.Context, l *live) (Daemon, error) {
	deadline := time.Now().Add(awaitDaemon)
	for {
		daemon, err := s.Pool.Pick(ctx)
		if err == nil || (l.record().Attempt == 1 && !l.resumed) || time.Now().After(deadline) {
			return daemon, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(watchEvery):
		}
	}
}

// solve runs the build on the daemon, watched, and says how it ended. A panic of
// the adapter fails this build alone.
func (s *Service) solve(ctx context.Context, l *live, spec Spec, daemon Daemon) (outcome Outcome) {
	rec := l.record()
	spec.Caller = rec.Caller
	defer func() {
		if value := recover(); value != nil {
			outcome = panicked(ctx, value)
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answered, stop := s.watchDaemon(ctx, rec.Daemon, cancel)
	defer stop()
	result := daemon.Solve(ctx, rec.ID, rec.Attempt, spec, func(kind any) {
		answered()
		l.push(kind)
	})
	l.graph = result.Graph
	outcome = Outcome{
		State: Succeeded, Failure: result.Failure, Outputs: result.Outputs, Steps: result.Steps, Times: result.Times,
	}
	if outcome.Failure != nil {
		outcome.State, outcome.Failure = finalState(ctx, outcome.Failure)
	}
	return outcome
}

// ended is the outcome of a build whose life ended before a daemon had it.
func (s *Service) ended(l *live) Outcome { return s.failed(l.ctx, context.Cause(l.ctx)) }

// failed is the outcome of a build that no daemon had.
func (s *Service) failed(ctx context.Context, err error) Outcome {
	failure := &Failure{Kind: fault.Internal, Reason: "INTERNAL", Message: err.Error(), Class: Infrastructure}
	if known, ok := errors.AsType[*fault.Error](err); ok {
		failure = failureOf(known)
	}
	var o Outcome
	o.State, o.Failure = finalState(ctx, failure)
	return o
}
