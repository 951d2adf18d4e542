package build

import (
	"cmp"
	"context"
	"sync"
	"time"
)

// Observation is a build that a client runs by itself through the gateway.
type Observation struct {
	ID      string // BuildKit's ref
	Project string
	Tags    []string
	Bytes   int64 // about what its request holds in memory
	Caller  Caller
}

// Observed is such a build: it waits for its turn like all others, and what the
// daemon says of it is kept like that of all others. End must be called.
type Observed struct {
	service *Service
	live    *live
	queued  time.Duration
	once    sync.Once // of the end

	mu      sync.Mutex
	turn    Turn   // the one of Resume after Yield
	ended   bool   // no turn is taken any more
	running func() // tells the watch that the daemon has begun; nil before Begin
	release func() // ends what Begin started; nil before Begin
}

// Observe remembers a build that begins through the gateway. The context that it
// returns ends with ctx, and with a cause when somebody cancels the build, when it
// exceeds MaxBuildTime, when its daemon stops answering, or when the builder stops.
// Errors: INVALID_ARGUMENT for an id or names that cannot be kept; RESOURCE_EXHAUSTED
// when too many wait; ALREADY_EXISTS when its id is known already, which BuildKit too
// refuses.
func (s *Service) Observe(ctx context.Context, o Observation) (context.Context, *Observed, error) {
	if err := cmp.Or(CheckID(o.ID), checkTags(o.Tags)); err != nil {
		return nil, nil, err
	}
	done, err := s.begin()
	if err != nil {
		return nil, nil, err
	}
	defer done()
	rec := Record{
		ID: o.ID, Project: o.Project, State: Queued, Origin: OriginGateway, Created: time.Now(), Tags: o.Tags,
		TraceID: o.Caller.TraceID, Caller: o.Caller.Identity, Attempt: 1, MaxAttempts: 1,
	}
	turn, err := s.Queue.Enter(Entry{Tenant: rec.Tenant(), Priority: rec.Priority, Bytes: o.Bytes})
	if err != nil {
		return nil, nil, err
	}
	if _, _, err := s.create(ctx, rec, nil); err != nil {
		turn.Release()
		return nil, nil, err
	}
	s.Metrics.BuildStarted(ctx, rec.Origin)
	l := s.enliven(ctx, rec)
	l.push(Started{BuildID: rec.ID, TraceID: rec.TraceID})
	ctx, cancel := context.WithCancelCause(ctx)
	context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	s.runs.Add(1) // until End
	return ctx, &Observed{service: s, live: l, turn: turn}, nil
}

// Wait waits for the build's turn. notify is told where it stands while it waits;
// so are those who watch the build. It ends with the cause of ctx.
func (o *Observed) Wait(ctx context.Context, notify func(Waiting)) error {
	err := o.service.await(ctx, o.turn, func(w Waiting) {
		o.live.waiting(w)
		notify(w)
	})
	if err == nil {
		o.queued = time.Since(o.live.record().Created)
		o.service.Metrics.BuildWaited(ctx, o.queued)
	}
	return err
}

// Begin says that the build's solve goes to a daemon. From here on its time counts,
// and the daemon's health.
func (o *Observed) Begin(daemon string) {
	o.live.update(func(rec *Record) {
		rec.State, rec.Daemon, rec.Started, rec.Waiting = Running, daemon, time.Now(), nil
	})
	running, stop := o.service.watchDaemon(o.live.ctx, daemon, o.live.cancel)
	release := stop
	if limit := o.service.MaxBuildTime; limit > 0 {
		timer := time.AfterFunc(limit, func() { o.live.cancel(timedOut(limit)) })
		release = func() {
			timer.Stop()
			stop()
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.running, o.release = running, release
}

// Event keeps what the daemon says of the build: a StepEvent, LogEvent or Warning.
func (o *Observed) Event(kind any) {
	o.mu.Lock()
	running := o.running
	o.mu.Unlock()
	if running != nil {
		running()
	}
	o.live.push(kind)
}

// End keeps how the build ended. failure is nil if it succeeded; when ctx, which
// Observe returned, has ended, the cause of that counts for more. It returns when
// that is stored, so that a client is told nothing that a kill -9 takes back; if it
// cannot be stored soon, the client does not wait for it. The first End counts, so
// that one can be deferred for a panic.
func (o *Observed) End(ctx context.Context, failure *Failure, result Result) {
	o.once.Do(func() { o.end(ctx, failure, result) })
}

func (o *Observed) end(ctx context.Context, failure *Failure, result Result) {
	o.mu.Lock()
	o.ended = true
	o.turn.Release()
	release := o.release
	o.mu.Unlock()
	if release != nil {
		defer release()
	}
	o.live.graph = result.Graph
	outcome := Outcome{State: Succeeded, Failure: failure, Outputs: result.Outputs, Steps: result.Steps, Times: result.Times}
	if failure != nil {
		outcome.State, outcome.Failure = finalState(ctx, failure)
		if outcome.State == Failed && outcome.Failure.Class == ByCancel {
			outcome.State = Cancelled
		}
	}
	total := time.Since(o.live.record().Created)
	outcome.Times.Queue = o.queued
	outcome.Times.Solve = max(0, min(outcome.Times.Solve, total-outcome.Times.Export-o.queued))
	o.service.conclude(o.live, outcome)
	o.service.runs.Go(func() { o.service.settle(o.live, outcome) })
	o.service.runs.Done()
	select {
	case <-o.live.done:
	case <-time.After(storedSoon):
	}
}

// storedSoon is how long the client of a build waits for the store.
const storedSoon = 2 * time.Second
