package build_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is a build.Daemon that does as its function says. What a real one does
// is tested against a real one, in the e2e module; here it is about the order of
// events and the one end of each build.
type daemon func(ctx context.Context, sink func(any)) build.Result

func (daemon) Name() string                                    { return "d1" }
func (d daemon) Prepare(string, build.Spec) (build.Job, error) { return d, nil }
func (d daemon) Solve(ctx context.Context, sink func(any)) build.Result {
	return d(ctx, sink)
}

type refusing struct {
	daemon
	err error
}

func (r refusing) Prepare(string, build.Spec) (build.Job, error) { return nil, r.err }

type pool struct {
	daemon build.Daemon
	err    error

	mu     sync.Mutex
	since  time.Time
	health error
}

func (p *pool) Pick(context.Context) (build.Daemon, error) { return p.daemon, p.err }
func (p *pool) Health(string) (time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.since, p.health
}

func (p *pool) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since, p.health = time.Now(), err
}

type counted struct {
	mu             sync.Mutex
	started, ended int
}

func (c *counted) BuildStarted(context.Context, build.Origin) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started++
}

func (c *counted) BuildEnded(context.Context, build.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended++
}

func newService(t *testing.T, p build.Pool, limits build.Limits) (*build.Service, *counted) {
	t.Helper()
	var n int
	var mu sync.Mutex
	counters := &counted{}
	return build.NewService(p, build.NewRecords(10), limits, counters, slog.New(slog.DiscardHandler), func() string {
		mu.Lock()
		defer mu.Unlock()
		n++
		return fmt.Sprintf("b%d", n)
	}), counters
}

func collect(events *[]build.Event) func(build.Event) error {
	return func(e build.Event) error {
		*events = append(*events, e)
		return nil
	}
}

func outcomeOf(t *testing.T, events []build.Event) build.Outcome {
	t.Helper()
	if len(events) == 0 {
		t.Fatal("no events")
	}
	outcome, ok := events[len(events)-1].Kind.(build.Outcome)
	if !ok {
		t.Fatalf("last event is a %T, want an Outcome", events[len(events)-1].Kind)
	}
	for i, e := range events {
		if e.Sequence != uint64(i+1) {
			t.Errorf("event %d has sequence %d", i, e.Sequence)
		}
		if _, ok := e.Kind.(build.Outcome); ok && i != len(events)-1 {
			t.Errorf("event %d is an Outcome before the end", i)
		}
	}
	return outcome
}

func TestBuildEvents(t *testing.T) {
	p := &pool{daemon: daemon(func(_ context.Context, sink func(any)) build.Result {
		sink(build.StepEvent{Name: "one"})
		sink(build.LogEvent{Data: []byte("hello")})
		return build.Result{Steps: build.StepCounts{Total: 1, Completed: 1}, Outputs: []build.OutputResult{{Digest: "sha256:d"}}}
	})}
	s, counters := newService(t, p, build.Limits{})
	var events []build.Event
	spec := build.Spec{Project: "web", Push: &build.Push{Tags: []string{"r/web:1"}}}
	if err := s.Build(t.Context(), spec, build.Caller{Identity: "me", TraceID: "t"}, collect(&events)); err != nil {
		t.Fatal(err)
	}
	outcome := outcomeOf(t, events)
	if outcome.State != build.Succeeded || outcome.Failure != nil {
		t.Fatalf("outcome = %+v", outcome)
	}
	if got := events[0].Kind; got != any(build.Started{BuildID: "b1", Daemon: "d1", TraceID: "t"}) {
		t.Errorf("first event = %+v", got)
	}
	rec, err := s.Records().Get("b1")
	if err != nil {
		t.Fatal(err)
	}
	if rec.State != build.Succeeded || rec.LastSeq != uint64(len(events)) || rec.Caller != "me" || rec.Ended.IsZero() {
		t.Errorf("record = %+v", rec)
	}
	if diff := cmp.Diff([]build.OutputResult{{Digest: "sha256:d"}}, rec.Outcome.Outputs); diff != "" {
		t.Error(diff)
	}
	if counters.started != 1 || counters.ended != 1 {
		t.Errorf("counted %+v", counters)
	}
}

// untilDone solves until its context ends, as a real solve does.
func untilDone(ctx context.Context, sink func(any)) build.Result {
	sink(build.StepEvent{Name: "one"})
	<-ctx.Done()
	return build.Result{Failure: &build.Failure{Kind: fault.Internal, Message: "what the daemon says"}}
}

func TestBuildEnds(t *testing.T) {
	gone := fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "it is gone", "look for it")
	failing := build.Result{Failure: &build.Failure{Kind: fault.FailedPrecondition, Reason: "STEP_FAILED"}}
	for name, tc := range map[string]struct {
		daemon daemon
		limits build.Limits
		spec   build.Spec
		during func(p *pool, cancel context.CancelFunc)
		state  build.State
		reason string
		within time.Duration
	}{
		"the build fails": {
			daemon: func(context.Context, func(any)) build.Result { return failing },
			state:  build.Failed, reason: "STEP_FAILED",
		},
		"the caller cancels": {
			daemon: untilDone, during: func(_ *pool, cancel context.CancelFunc) { cancel() },
			state: build.Cancelled, reason: "CANCELLED",
		},
		"its own timeout passes": {
			daemon: untilDone, spec: build.Spec{Timeout: time.Minute}, limits: build.Limits{MaxBuildTime: time.Hour},
			state: build.TimedOut, reason: "TIMED_OUT", within: time.Minute,
		},
		"the builder's timeout passes first": {
			daemon: untilDone, spec: build.Spec{Timeout: 2 * time.Hour}, limits: build.Limits{MaxBuildTime: time.Hour},
			state: build.TimedOut, reason: "TIMED_OUT", within: time.Hour,
		},
		"the daemon goes before it answers": {
			daemon: func(ctx context.Context, _ func(any)) build.Result { return untilDone(ctx, func(any) {}) },
			during: func(p *pool, _ context.CancelFunc) { p.fail(gone) },
			state:  build.Failed, reason: "DAEMON_UNAVAILABLE", within: time.Second,
		},
		"the daemon goes while it builds": {
			daemon: untilDone, during: func(p *pool, _ context.CancelFunc) { p.fail(gone) },
			state: build.Failed, reason: "DAEMON_UNAVAILABLE", within: 62 * time.Second,
		},
		"the adapter panics": {
			daemon: func(context.Context, func(any)) build.Result { panic("boom") },
			state:  build.Failed, reason: "INTERNAL",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pool{daemon: tc.daemon}
				s, counters := newService(t, p, tc.limits)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tc.during != nil {
					time.AfterFunc(10*time.Millisecond, func() { tc.during(p, cancel) })
				}
				start := time.Now()
				var events []build.Event
				if err := s.Build(ctx, tc.spec, build.Caller{}, collect(&events)); err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				outcome := outcomeOf(t, events)
				if outcome.State != tc.state || outcome.Failure == nil || outcome.Failure.Reason != tc.reason {
					t.Errorf("state %v, failure %+v; want %v, %s", outcome.State, outcome.Failure, tc.state, tc.reason)
				}
				if tc.within > 0 && (took > tc.within+time.Second || took < tc.within-3*time.Second) {
					t.Errorf("ended after %v, want about %v", took, tc.within)
				}
				if rec, _ := s.Records().Get("b1"); rec.State != tc.state || counters.ended != 1 {
					t.Errorf("record in state %v, counted %d ends", rec.State, counters.ended)
				}
			})
		})
	}
}

// A caller that goes away must not leave the solve running.
func TestBuildWaitsForSolveWhenCallerGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopped := false
		p := &pool{daemon: daemon(func(ctx context.Context, sink func(any)) build.Result {
			res := untilDone(ctx, sink)
			time.Sleep(time.Second) // the daemon takes its time to end
			stopped = true
			return res
		})}
		s, _ := newService(t, p, build.Limits{})
		gone := errors.New("gone")
		if err := s.Build(t.Context(), build.Spec{}, build.Caller{}, func(build.Event) error { return gone }); !errors.Is(err, gone) {
			t.Errorf("err = %v", err)
		}
		if !stopped {
			t.Error("the call returned while the solve was running")
		}
		if rec, _ := s.Records().Get("b1"); rec.State != build.Cancelled {
			t.Errorf("state %v, want cancelled", rec.State)
		}
	})
}

func TestBuildNotAccepted(t *testing.T) {
	t.Run("no daemon", func(t *testing.T) {
		down := fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "none", "look")
		s, counters := newService(t, &pool{err: down}, build.Limits{})
		err := s.Build(t.Context(), build.Spec{}, build.Caller{}, func(build.Event) error { t.Error("an event"); return nil })
		if !errors.Is(err, down) || counters.started != 0 {
			t.Errorf("err = %v, %d started", err, counters.started)
		}
	})
	t.Run("its context is refused", func(t *testing.T) {
		denied := fault.New(fault.PermissionDenied, "DIRECTORY_NOT_ALLOWED", "no", "another")
		s, counters := newService(t, &pool{daemon: refusing{err: denied}}, build.Limits{MaxRunning: 1})
		for range 2 { // a refused build takes no place
			err := s.Build(t.Context(), build.Spec{}, build.Caller{}, func(build.Event) error { t.Error("an event"); return nil })
			if !errors.Is(err, denied) || counters.started != 0 {
				t.Errorf("err = %v, %d started", err, counters.started)
			}
		}
	})
	t.Run("full", func(t *testing.T) {
		s, _ := newService(t, &pool{daemon: daemon(untilDone)}, build.Limits{MaxRunning: 1})
		ctx, cancel := context.WithCancel(t.Context())
		running, done := make(chan struct{}), make(chan error)
		go func() {
			done <- s.Build(ctx, build.Spec{}, build.Caller{}, func(e build.Event) error {
				if e.Sequence == 1 {
					close(running)
				}
				return nil
			})
		}()
		<-running
		err := s.Build(t.Context(), build.Spec{}, build.Caller{}, func(build.Event) error { return nil })
		var full *fault.Error
		if !errors.As(err, &full) || full.Kind != fault.ResourceExhausted || full.RetryAfter <= 0 {
			t.Errorf("err = %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		// Its place is free again.
		ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := s.Build(ctx, build.Spec{}, build.Caller{}, func(build.Event) error { return nil }); err != nil {
			t.Errorf("after a build ended: %v", err)
		}
	})
}

// A caller that does not read holds no place, and is let go in the end.
func TestBuildSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quick := daemon(func(context.Context, func(any)) build.Result { return build.Result{} })
		s, _ := newService(t, &pool{daemon: quick}, build.Limits{MaxRunning: 1})
		blocked := make(chan struct{})
		slow := make(chan error, 1)
		go func() {
			slow <- s.Build(t.Context(), build.Spec{}, build.Caller{}, func(build.Event) error { <-blocked; return nil })
		}()
		time.Sleep(time.Second)
		var events []build.Event
		if err := s.Build(t.Context(), build.Spec{}, build.Caller{}, collect(&events)); err != nil {
			t.Errorf("beside a slow reader: %v", err)
		}
		start := time.Now()
		if err := <-slow; fault.KindOf(err) != fault.DeadlineExceeded || time.Since(start) > time.Minute {
			t.Errorf("the slow reader got %v after %v", err, time.Since(start))
		}
		close(blocked)
	})
}

// A builder that stops tells the callers of its builds so.
func TestInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newService(t, &pool{daemon: daemon(untilDone)}, build.Limits{})
		time.AfterFunc(time.Second, s.Interrupt)
		var events []build.Event
		if err := s.Build(t.Context(), build.Spec{}, build.Caller{}, collect(&events)); err != nil {
			t.Fatal(err)
		}
		if outcome := outcomeOf(t, events); outcome.State != build.Interrupted || outcome.Failure.Reason != "INTERRUPTED" {
			t.Errorf("outcome %+v, failure %+v", outcome, outcome.Failure)
		}
	})
}

func TestObserved(t *testing.T) {
	s, counters := newService(t, &pool{}, build.Limits{})
	o := s.Observe(t.Context(), "ref", "d1", "web", []string{"r/web:1"}, build.Caller{})
	if s.Observe(t.Context(), "ref", "d1", "web", nil, build.Caller{}) != nil {
		t.Error("a ref that is known was observed again")
	}
	s.ObserveProgress("ref", build.StepCounts{Total: 3}, build.PhaseTimes{})
	o.End(t.Context(), build.Succeeded, nil, nil)
	o.End(t.Context(), build.Failed, nil, nil) // there is one end
	s.ObserveProgress("ref", build.StepCounts{Total: 5, Cached: 5}, build.PhaseTimes{Solve: time.Hour})
	rec, err := s.Records().Get("ref")
	if err != nil {
		t.Fatal(err)
	}
	if rec.State != build.Succeeded || rec.Steps.Total != 5 || rec.Outcome.Steps.Cached != 5 || rec.Outcome.Times.Solve > rec.Outcome.Times.Total || counters.ended != 1 {
		t.Errorf("record %+v, counted %+v", rec, counters)
	}
}
