package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
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
	// an entitlement that is not granted. It is quick, and takes no network. What
	// the spec names and the builder keeps stays until release is called.
	Accept(ctx context.Context, spec Spec) (release func(), err error)
	// Solve builds, for the attempt-th time (from 1), calls sink for each event in order, from one goroutine, and
	// returns when the daemon has ended the solve, or seconds after ctx ended.
	// Nothing that it gives to sink or returns holds a secret of the spec.
	Solve(ctx context.Context, id string, attempt int, spec Spec, sink func(kind any)) Result
}

// Result is what a solve came to.
type Result struct {
	Failure *Failure // nil: it succeeded
	Outputs []OutputResult
	Steps   StepCounts
	Graph   []StepEvent // how each step ended, in any order
	Times   PhaseTimes  // Context, Solve and Export
}

// Pool chooses daemons.
type Pool interface {
	// Pick returns a daemon that answers, or an UNAVAILABLE fault, within seconds.
	Pick(ctx context.Context) (Daemon, error)
	// Health returns nil when the daemon's last check went well, else since when
	// it has not answered and why.
	Health(name string) (since time.Time, err error)
}

// Queue says whose build runs when.
type Queue interface {
	// Enter takes a place, or gives a RESOURCE_EXHAUSTED fault when too many wait.
	Enter(e Entry) (Turn, error)
	// Readmit takes a place whatever the limits: after a restart.
	Readmit(e Entry) Turn
	// Close gives out no slot any more.
	Close()
}

// Entry is a build that wants to run.
type Entry struct {
	Tenant   string
	Priority int   // among the builds of the tenant
	Bytes    int64 // that it holds in memory while it waits
}

// Turn is the place of one build in the queue, and then its slot.
type Turn interface {
	// Wait returns nil when the build may run. It calls notify when it must wait
	// and when its place changes, and ends with the cause of ctx.
	Wait(ctx context.Context, notify func(Waiting)) error
	// Release gives the place or the slot back. It may be called again.
	Release()
}

// Metrics counts builds.
type Metrics interface {
	BuildStarted(ctx context.Context, origin Origin)
	BuildWaited(ctx context.Context, waited time.Duration)
	BuildEnded(ctx context.Context, rec Record)
}

// Options is what a service is made of.
type Options struct {
	Pool    Pool
	Store   Store
	Queue   Queue
	Metrics Metrics
	Log     *slog.Logger
	// MaxBuildTime is the upper bound of Spec.Timeout, and its default.
	MaxBuildTime time.Duration
	// NewID gives ids that callers cannot guess.
	NewID func() string
	// Encode gives the form in which an event is stored and sent.
	Encode func(Event) ([]byte, error)
	// Decode reads the request of a build without secrets, as Submission.Request
	// had it.
	Decode func(request []byte) (Spec, error)
	// AfterBuild is called when a build has ended, with how each step of its last attempt
	// ended. It must not wait. nil: nothing.
	AfterBuild func(rec Record, graph []StepEvent)
	// Hold keeps what Daemon.Accept keeps, without judging the spec again: for a
	// build that was accepted before a restart. What is gone already is not held.
	// nil: nothing.
	Hold func(spec Spec) (release func())
	// Behalf returns ctx with the rights that the caller of a build has now: for a
	// build that was accepted before a restart. nil: ctx as it is.
	Behalf func(ctx context.Context, rec Record) context.Context
}

// Caller says who asks for a build.
type Caller struct {
	Identity string
	TraceID  string
}

// Service takes builds from their coming to their one end.
type Service struct {
	Options

	mu       sync.Mutex
	live     map[string]*live // builds that have not ended, by id
	births   map[string]*birth
	lost     endedInMemory
	runs     sync.WaitGroup // the goroutines of builds
	waiting  atomic.Int64   // builds that wait for a slot
	stopping bool           // no build begins any more

	// open ends when running builds are interrupted, with the cause that they get.
	open      context.Context //nolint:containedctx // it is the service's own, and no call's
	interrupt context.CancelCauseFunc
	// draining ends when no build begins any more.
	draining context.Context //nolint:containedctx // like open
	drain    context.CancelFunc
}

// NewService returns a service that builds on the daemons of the pool. Recover
// must be called before the first build comes.
func NewService(opts Options) *Service {
	s := &Service{Options: opts, live: make(map[string]*live), births: make(map[string]*birth)}
	s.open, s.interrupt = context.WithCancelCause(context.Background())
	s.draining, s.drain = context.WithCancel(context.Background())
	return s
}

// errInterrupted is the cause that builds get when the builder stops.
var errInterrupted = fault.New(fault.Aborted, "INTERRUPTED", "the builder stopped while the build was running",
	"build again when the builder is back, or on another one")

// Drain begins no build any more, and waits until those that are running have
// ended, at most for the grace time. Builds that wait are not begun: they go on when
// the builder is back or, when nobody could come back for them, end in state
// INTERRUPTED.
func (s *Service) Drain(grace time.Duration) {
	s.stop()
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	_ = s.wait(ctx) // Interrupt is for those that are left
}

// stop ends the builds that have not begun.
func (s *Service) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	s.drain()
	s.Queue.Close()
	for _, l := range s.live {
		if l.record().State == Queued {
			l.cancel(errInterrupted)
		}
	}
}

func (s *Service) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// Interrupt ends the builds that are running, and those that are still to come:
// the builder stops. Those whose retry policy says so go on when it is back; the
// others end in state INTERRUPTED.
func (s *Service) Interrupt() {
	s.stop()
	s.interrupt(errInterrupted)
}

// begin counts in a call that may make a build, and refuses it when the builder
// stops.
func (s *Service) begin() (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, fault.New(fault.Unavailable, "SHUTTING_DOWN", "the builder is stopping", "call again, or call another builder")
	}
	s.runs.Add(1)
	return s.runs.Done, nil
}

// Close interrupts what is still running and waits until all of it is stored, or
// until ctx ends.
func (s *Service) Close(ctx context.Context) error {
	s.Interrupt()
	if err := s.wait(ctx); err != nil {
		return fmt.Errorf("builds have not ended though the builder stops: %w", err)
	}
	return nil
}

// wait waits until no build runs, or until ctx ends.
func (s *Service) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.runs.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Get returns the record of a build as it is stored, so that no kill -9 takes back
// what it has told, or a NOT_FOUND fault. The end of a build that could not be stored
// is told from memory.
func (s *Service) Get(ctx context.Context, id string) (Record, error) {
	if l := s.lostBuild(id); l != nil {
		return l.record(), nil
	}
	rec, err := s.Store.Get(ctx, id)
	return rec, s.named(id, err)
}

// Request returns the record and the request of a build that has ended.
func (s *Service) Request(ctx context.Context, id string) (Record, []byte, error) {
	rec, err := s.Get(ctx, id)
	if err != nil {
		return Record{}, nil, err
	}
	if !rec.State.Final() {
		return Record{}, nil, fault.New(fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("build %q has not ended; it is %s", id, rec.State), "wait for its end with WatchBuild, or end it with CancelBuild")
	}
	if rec.Origin != OriginAPI {
		return Record{}, nil, fault.New(fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("build %q was started by kiln build, buildctl or docker buildx, which keep the request", id),
			"run that command again; builds of `kiln build --detach` and of the Build API can be retried")
	}
	request, err := s.Store.Request(ctx, id)
	return rec, request, s.named(id, err)
}

// List returns at most size records that fit the query, and the token of the
// next page, empty on the last one.
func (s *Service) List(ctx context.Context, query Query, size int, token string) ([]Record, string, error) {
	return s.Store.List(ctx, query, size, token)
}

// Running counts the builds that a daemon is running.
func (s *Service) Running(daemon string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, l := range s.live {
		if rec := l.record(); rec.State == Running && rec.Daemon == daemon {
			n++
		}
	}
	return n
}

// Cancel ends a build, waits until its solve has stopped, and returns its
// record. One that has ended stays as it is.
func (s *Service) Cancel(ctx context.Context, id string) (Record, error) {
	l, rec, err := s.lookUp(ctx, id)
	if l == nil {
		return rec, err
	}
	l.cancel(errCancelled)
	select {
	case <-l.done:
		return s.Get(ctx, id)
	case <-ctx.Done():
		return Record{}, context.Cause(ctx)
	}
}

// errGoesOn is what those get who ask, while the builder stops, for a build that
// goes on when it is back.
var errGoesOn = fault.New(fault.Unavailable, "SHUTTING_DOWN", "the builder is stopping; the build goes on when it is back",
	"watch it again, from the number after the last event that you have, when the builder is back")

func (s *Service) named(id string, err error) error {
	if errors.Is(err, ErrUnknown) {
		return NotFound(id)
	}
	return err
}

// NotFound returns the NOT_FOUND fault for a build that is not there, or that the
// caller may not see: the two must not differ.
func NotFound(id string) error {
	return fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("build %q is not known", id),
		"check the id with ListBuilds; records of old builds go as retention says")
}
