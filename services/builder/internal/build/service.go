package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Daemon is a buildkitd daemon that can solve.
type Daemon interface {
	// Name is the daemon's name in records and metrics.
	Name() string
	// Accept says whether what a spec names is there and allowed. Its errors are
	// the caller's, before there is a build: a directory that may not be named,
	// an entitlement that is not granted. It is quick, and takes no network.
	Accept(ctx context.Context, spec Spec) error
	// Solve builds, calls sink for each event in order, from one goroutine, and
	// returns when the daemon has ended the solve, or seconds after ctx ended.
	// Nothing that it gives to sink or returns holds a secret of the spec.
	Solve(ctx context.Context, id string, spec Spec, sink func(kind any)) Result
}

// Result is what a solve came to.
type Result struct {
	Failure *Failure // nil: it succeeded
	Outputs []OutputResult
	Steps   StepCounts
	Times   PhaseTimes // Context, Solve and Export
}

// Pool chooses daemons.
type Pool interface {
	// Pick returns a daemon that answers, or an UNAVAILABLE fault, within seconds.
	Pick(ctx context.Context) (Daemon, error)
	// Health returns nil when the daemon's last check went well, else since when
	// it has not answered and why.
	Health(name string) (since time.Time, err error)
}

// Metrics counts builds.
type Metrics interface {
	BuildStarted(ctx context.Context, origin Origin)
	BuildEnded(ctx context.Context, rec Record)
}

// Limits bounds what the service does.
type Limits struct {
	MaxRunning   int           // builds at once
	MaxBuildTime time.Duration // upper bound of Spec.Timeout, and its default
}

// Caller says who asks for a build.
type Caller struct {
	Identity string
	TraceID  string
}

// Service takes builds from their coming to their one end.
type Service struct {
	pool    Pool
	records *Records
	limits  Limits
	metrics Metrics
	log     *slog.Logger
	newID   func() string
	running atomic.Int64

	// open ends when the builder stops, with the cause that running builds get.
	open      context.Context //nolint:containedctx // it is the service's own, and no call's
	interrupt context.CancelCauseFunc
}

// NewService returns a service that builds on the daemons of pool.
func NewService(pool Pool, records *Records, limits Limits, metrics Metrics, log *slog.Logger, newID func() string) *Service {
	s := &Service{pool: pool, records: records, limits: limits, metrics: metrics, log: log, newID: newID}
	s.open, s.interrupt = context.WithCancelCause(context.Background())
	return s
}

// Interrupt ends the builds that are running, and that are still to come, in state
// Interrupted: the builder stops.
func (s *Service) Interrupt() {
	s.interrupt(fault.New(fault.Aborted, "INTERRUPTED", "the builder was stopped while the build was running",
		"build again, when the builder is back or on another one"))
}

// Records returns what is remembered of builds.
func (s *Service) Records() *Records { return s.records }

// errCallerGone is the cause of a cancelled build whose events cannot be delivered.
var errCallerGone = errors.New("the caller ended the call")

// Build builds spec and calls emit for each event, in order, from one goroutine;
// the last one is an Outcome. Ending ctx, or an error from emit, cancels the solve.
// It returns an error when the build was not accepted (UNAVAILABLE,
// RESOURCE_EXHAUSTED), when emit did, and when emit still has events to take
// slowReader after the build's end; how the build itself ended stands in the
// Outcome.
func (s *Service) Build(ctx context.Context, spec Spec, caller Caller, emit func(Event) error) error {
	created := time.Now()
	release, err := s.admit()
	if err != nil {
		return err
	}
	daemon, err := s.pool.Pick(ctx)
	if err != nil {
		release()
		return err
	}
	id := s.newID()
	if err := daemon.Accept(ctx, spec); err != nil {
		release()
		return err
	}
	rec := Record{
		ID: id, Project: spec.Project, State: Running, Origin: OriginAPI, Created: created,
		Started: time.Now(), Daemon: daemon.Name(), TraceID: caller.TraceID, Caller: caller.Identity,
	}
	rec.Tags = spec.Tags()
	s.records.Add(rec)
	s.metrics.BuildStarted(ctx, rec.Origin)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.open, func() { cancel(context.Cause(s.open)) })()
	events := newQueue()
	solved := make(chan struct{})
	events.push(Started{BuildID: rec.ID, Daemon: rec.Daemon, TraceID: rec.TraceID})
	go func() {
		defer close(solved)
		defer release() // not when the last event is taken: a slow reader holds no place
		defer events.close()
		outcome := s.solve(ctx, rec, spec, daemon, events.push)
		s.end(context.WithoutCancel(ctx), rec.ID, outcome, events.pushed()+1)
		events.push(outcome)
	}()
	delivered := make(chan error, 1)
	go func() { delivered <- s.deliver(events, emit, cancel) }()
	select {
	case err := <-delivered:
		return err
	case <-solved:
	}
	select {
	case err := <-delivered:
		return err
	case <-time.After(slowReader):
		return fault.New(fault.DeadlineExceeded, "TIMED_OUT",
			fmt.Sprintf("the caller has not read the build's events %s after its end", slowReader),
			"read the stream as it comes; GetBuild tells the outcome")
	}
}

// slowReader is how long a caller may take, after a build has ended, to read what
// it has not read. The call ends then, and with it what emit waits for.
const slowReader = 30 * time.Second

// deliver hands events to the caller until the last one. After an error of emit
// it goes on, without emit, until the solve has stopped: a call that has
// returned leaves nothing running.
func (s *Service) deliver(events *queue, emit func(Event) error, cancel context.CancelCauseFunc) error {
	var failed error
	for {
		event, ok := events.next()
		if !ok {
			return failed
		}
		if failed != nil {
			continue
		}
		if err := emit(event); err != nil {
			failed = fault.Wrap(err, fault.Canceled, "CANCELLED", "the caller ended the call", "read the stream to its end")
			cancel(errCallerGone)
		}
	}
}

// admit counts a build in, or refuses it.
func (s *Service) admit() (release func(), err error) {
	if n := s.running.Add(1); s.limits.MaxRunning > 0 && n > int64(s.limits.MaxRunning) {
		s.running.Add(-1)
		full := fault.New(fault.ResourceExhausted, "LIMIT_REACHED",
			fmt.Sprintf("%d builds are running, which is the limit", s.limits.MaxRunning),
			"try again later, or raise max_running_builds of the builder")
		full.RetryAfter = 5 * time.Second
		return nil, full
	}
	return func() { s.running.Add(-1) }, nil
}

// solve runs the build on the daemon, bounded in time and watched, and says how
// it ended. A panic of the adapter fails this build alone.
func (s *Service) solve(ctx context.Context, rec Record, spec Spec, daemon Daemon, sink func(any)) (outcome Outcome) {
	defer func() {
		if p := recover(); p != nil {
			s.log.ErrorContext(ctx, "panic in a build", "build", rec.ID, "panic", fmt.Sprint(p))
			outcome = Outcome{State: Failed, Failure: failureOf(fault.New(fault.Internal, "INTERNAL",
				"the builder failed while building", "report it with the trace id of the build"))}
		}
	}()
	timeout, wanted := s.limits.MaxBuildTime, spec.Timeout
	if wanted > 0 && (timeout <= 0 || wanted < timeout) {
		timeout = wanted
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, timedOut(timeout))
		defer cancel()
	}
	ctx, answered, stop := s.watch(ctx, rec.Daemon)
	defer stop()

	result := daemon.Solve(ctx, rec.ID, spec, func(kind any) {
		answered()
		sink(kind)
	})
	outcome = Outcome{
		State: Succeeded, Failure: result.Failure, Outputs: result.Outputs, Steps: result.Steps, Times: result.Times,
	}
	if outcome.Failure != nil {
		outcome.State, outcome.Failure = finalState(ctx, outcome.Failure)
	}
	outcome.Times.Queue = rec.Started.Sub(rec.Created)
	outcome.Times.Total = time.Since(rec.Created)
	return outcome
}

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
	var known *fault.Error
	switch {
	case errors.As(cause, &known) && known.Kind == fault.DeadlineExceeded:
		return TimedOut, failureOf(known)
	case errors.As(cause, &known) && known.Kind == fault.Aborted:
		return Interrupted, failureOf(known)
	case errors.As(cause, &known):
		return Failed, failureOf(known)
	case errors.Is(cause, context.DeadlineExceeded):
		return TimedOut, failureOf(fault.New(fault.DeadlineExceeded, "TIMED_OUT",
			"the deadline of the call passed", "call with a later deadline, or use StartBuild"))
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

// watch ends the returned context with an UNAVAILABLE fault when the daemon
// stops answering. answered tells it that the daemon has begun to build.
func (s *Service) watch(ctx context.Context, daemon string) (_ context.Context, answered, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var begun atomic.Bool
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
			since, err := s.pool.Health(daemon)
			if err != nil && (!begun.Load() || time.Since(since) > deadAfter) {
				cancel(err)
				return
			}
		}
	}()
	return ctx, func() { begun.Store(true) }, func() {
		cancel(context.Canceled)
		<-done
	}
}

// end writes the outcome into the record.
func (s *Service) end(ctx context.Context, id string, outcome Outcome, lastSeq uint64) {
	var ended Record
	s.records.Update(id, func(rec *Record) {
		if rec.State.Final() {
			return
		}
		rec.State, rec.Ended, rec.Outcome = outcome.State, time.Now(), &outcome
		rec.Steps, rec.LastSeq = outcome.Steps, lastSeq
		ended = *rec
	})
	if ended.ID == "" {
		return
	}
	s.metrics.BuildEnded(ctx, ended)
	attrs := []any{
		"build", ended.ID, "project", ended.Project, "origin", ended.Origin.String(), "daemon", ended.Daemon,
		"state", ended.State.String(), "duration", ended.Ended.Sub(ended.Created).Round(time.Millisecond),
		"steps", outcome.Steps.Total, "cached", outcome.Steps.Cached,
	}
	if outcome.Failure != nil {
		attrs = append(attrs, "reason", outcome.Failure.Reason)
	}
	s.log.InfoContext(ctx, "build ended", attrs...)
}
