package enforce

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// Order asks for a run.
type Order struct {
	Trigger    run.Trigger
	Caches     []cache.Ref    // empty: all, or those of the plan
	Policy     *policy.Policy // nil: the one in force
	PlanDigest string         // a plan to carry out, in place of a policy
	Force      bool           // really remove
	All        bool           // also when the policy removes everything
	Budget     *policy.Budget // nil: that of the policy
	Clean      Clean          // in place of a policy
	Caller     string
	RequestID  string
}

// Clean is a run that goes by no policy.
type Clean int

// What a run does to its caches.
const (
	NoClean Clean = iota // keeps them to a policy
	Repair               // puts right what is wrong in directories
	Empty                // removes all that nothing holds
)

// Event is what happens in a run. One field is set.
type Event struct {
	Started  *run.Run
	Planned  *run.Plan
	Removed  *plan.Verdict
	Kept     *plan.Verdict // a record of the plan that stayed, as its reason says
	Missed   *run.Missed
	Repaired *Repaired
	Finished *run.Run
}

// Repaired is something that was wrong in a cache, and was put right; in a dry run,
// would be.
type Repaired struct {
	Cache  cache.Ref
	Defect cache.Defect
}

// ErrKnown is why an order was not begun: its request id is that of a run.
type ErrKnown struct{ Run run.Run }

func (e *ErrKnown) Error() string { return "the request id is that of run " + e.Run.ID }

// Run carries an order out, and calls emit for all that happens, one call at a time.
// When ctx ends, the run ends after the chunk under way. How it went is in the run;
// an error is that it was not begun: NOT_FOUND for an unknown cache or plan, ABORTED
// (PLAN_STALE), FAILED_PRECONDITION for a policy that removes everything,
// ALREADY_EXISTS when a run is under way there, ErrKnown, UNAVAILABLE when no cache
// answers.
func (e *Engine) Run(ctx context.Context, o Order, emit func(Event)) (run.Run, error) {
	if err := e.trustsClock(ctx, o); err != nil {
		return run.Run{}, err
	}
	ctx, span := e.Tracer.Start(ctx, "cache run", trace.WithAttributes(attribute.String("kiln.trigger", string(o.Trigger))))
	defer span.End()
	j := &job{engine: e, order: o, emit: emit, locks: map[cache.Ref]context.Context{}}
	defer j.unlock()
	if err := j.begin(ctx); err != nil {
		fail(span, err)
		return run.Run{}, err
	}
	emit(Event{Started: j.snapshot()})
	j.carryOut(ctx)
	j.finish(ctx)
	span.SetAttributes(attribute.String("kiln.run", j.run.ID), attribute.Int64("kiln.freed.records", j.run.Removed.Records),
		attribute.Int64("kiln.freed.bytes", j.run.Removed.Bytes))
	if j.run.Err != nil {
		fail(span, j.run.Err)
	}
	emit(Event{Finished: j.snapshot()})
	return j.run, nil
}

// trustsClock refuses an order that removes while the clock is not trusted: all would
// look old.
func (e *Engine) trustsClock(ctx context.Context, o Order) error {
	if !o.Force || e.Clock == nil {
		return nil
	}
	return e.Clock(ctx)
}

func fail(span trace.Span, err error) {
	span.RecordError(err)
	span.SetStatus(codes.Error, err.Error())
}

// job is one run under way.
type job struct {
	engine  *Engine
	order   Order
	emit    func(Event)
	policy  policy.Policy
	given   *run.Plan // the plan to carry out; nil: by the policy
	held    *Hold     // of the policy in force, in whose place policy is applied
	caches  []Cache
	missed  []run.Missed
	run     run.Run
	locks   map[cache.Ref]context.Context // caches that are locked
	unlocks []func()
	spent   bool // the budget of records or bytes
}

func (j *job) snapshot() *run.Run {
	r := j.run
	return &r
}

// begin finds out what to do, and takes the caches.
func (j *job) begin(ctx context.Context) (err error) {
	if id := j.order.RequestID; id != "" { // before the plan, which its run has spent
		if known, found, err := j.engine.State.RunByRequest(ctx, id); err != nil || found {
			return cmp.Or(err, error(&ErrKnown{known}))
		}
	}
	if err := j.choose(ctx); err != nil {
		return err
	}
	if j.order.Force && !j.order.All && policy.RemovesAll(j.policy) {
		return fault.New(fault.FailedPrecondition, "WRONG_STATE", "the policy would remove everything that is not in use or pinned",
			"set force_all if that is meant, or let its rules keep something")
	}
	e := j.engine
	j.run = run.Run{
		ID: e.NewID(), State: run.Running, Trigger: j.order.Trigger, Started: time.Now(), Dry: !j.order.Force,
		PolicyVersion: j.policy.Version, PlanDigest: j.order.PlanDigest, Caller: j.order.Caller, RequestID: j.order.RequestID,
	}
	if sc := trace.SpanContextFromContext(ctx); sc.IsSampled() {
		j.run.TraceID = sc.TraceID().String()
	}
	if err := j.lock(ctx); err != nil {
		return err
	}
	if len(j.caches) == 0 && len(j.missed) > 0 {
		return j.missed[0].Err
	}
	return j.start(ctx)
}

// start stores the run, and spends the plan that it carries out.
func (j *job) start(ctx context.Context) error {
	state, spends := j.engine.State, j.given != nil && j.order.Force
	if spends {
		if err := state.TakePlan(ctx, j.order.PlanDigest, j.engine.Now()); err != nil {
			return err
		}
	}
	known, started, err := state.StartRun(ctx, j.run)
	if err == nil && !started {
		err = &ErrKnown{known}
	}
	if err != nil && spends {
		state.ReturnPlan(j.order.PlanDigest)
	}
	return err
}

// choose finds the caches and the policy or plan.
func (j *job) choose(ctx context.Context) (err error) {
	e, o := j.engine, j.order
	refs := o.Caches
	if o.Clean != NoClean {
		j.policy = emptied
		j.caches, err = e.toClean(refs, o.Clean)
		return err
	}
	if o.PlanDigest != "" {
		given, err := e.State.CheckPlan(ctx, o.PlanDigest, e.Now())
		if err != nil {
			return err
		}
		j.given, j.policy.Version = &given, given.PolicyVersion
		if len(refs) == 0 {
			for _, v := range given.Verdicts {
				if v.Remove || v.Shrink > 0 {
					refs = append(refs, v.Cache)
				}
			}
		}
	} else if j.policy, err = e.policy(ctx, o.Policy); err != nil {
		return err
	}
	if o.Budget != nil {
		j.policy.Budget = *o.Budget
	}
	j.caches, err = e.choose(refs)
	return err
}

// lock takes the caches for this run. A dry run takes none.
func (j *job) lock(ctx context.Context) error {
	if !j.order.Force {
		return nil
	}
	e := j.engine
	var taken []Cache
	for _, c := range j.caches {
		ref := c.Ref()
		if other := e.take(ref, j.run.ID); other != "" {
			if err := j.isBusy(ref, other, nil); err != nil {
				return err
			}
			continue
		}
		j.unlocks = append(j.unlocks, func() { e.leave(ref) })
		held, err := lock(ctx, c)
		switch {
		case err == nil:
			j.locks[ref] = held //nolint:fatcontext // one for each cache, none within another
			taken = append(taken, c)
		case fault.KindOf(err) == fault.AlreadyExists:
			if err := j.isBusy(ref, "", err); err != nil {
				return err
			}
		default:
			j.missed = append(j.missed, run.Missed{Cache: ref, Err: err})
		}
	}
	j.caches = taken
	return nil
}

// lock takes the lock of a cache within lockTimeout.
func lock(ctx context.Context, c Cache) (context.Context, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockTimeout, fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE",
		fmt.Sprintf("cache %q did not give its lock in time", c.Ref()), "look at the daemon's log: it may hang"))
	defer cancel()
	return c.Lock(ctx)
}

// isBusy is an error for who asked for just this run; the schedule goes on with the
// other caches.
func (j *job) isBusy(ref cache.Ref, other string, err error) error {
	busy := fault.New(fault.AlreadyExists, "ALREADY_EXISTS", fmt.Sprintf("a run on cache %q is under way", ref),
		"wait for its end, or watch it with GetRun")
	if other != "" {
		busy.Metadata = map[string]string{"run_id": other}
	}
	err = cmp.Or(err, error(busy))
	if j.order.Trigger == run.Demand {
		return err
	}
	j.missed = append(j.missed, run.Missed{Cache: ref, Err: err})
	return nil
}

func (j *job) unlock() {
	for i := len(j.unlocks) - 1; i >= 0; i-- {
		j.unlocks[i]()
	}
	j.unlocks = nil
}

// take notes that a run is under way on a cache; it returns the one that is.
func (e *Engine) take(ref cache.Ref, id string) (other string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if other := e.busy[ref]; other != "" {
		return other
	}
	e.busy[ref] = id
	return ""
}

func (e *Engine) leave(ref cache.Ref) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.busy, ref)
}
