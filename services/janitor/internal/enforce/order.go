package enforce

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// Order asks for a run.
type Order struct {
	Trigger      run.Trigger
	Policy       *policy.Policy // nil: the one in force
	PlanDigest   string         // a plan to carry out, in place of a policy
	Repositories []policy.Glob  // none: all, or those of the plan
	Force        bool           // really remove
	All          bool           // also when the policy is empty or everything would go
	Budget       *policy.Budget // nil: that of the policy
	Caller       string
	RequestID    string
}

// Event is what happens in a run. One field is set.
type Event struct {
	Started  *run.Run
	Planned  *run.Plan
	Progress *run.Progress
	Removed  *plan.Verdict
	Kept     *plan.Verdict // of the plan, and stayed, as its reason says
	Defect   *run.Defect
	Finished *run.Run
}

// ErrKnown is why an order was not begun: its request id is that of a run.
type ErrKnown struct{ Run run.Run }

func (e *ErrKnown) Error() string { return "the request id is that of run " + e.Run.ID }

// errCancelled and errStopped are the causes of the end of runs before their time.
var (
	errCancelled = errors.New("the run was cancelled")
	errStopped   = errors.New("the janitor stops")
	errHalf      = errors.New("half of the time that the run's budget left is spent")
	errSpent     = errors.New("the time of the run's budget is spent")
)

// job is one run under way.
type job struct {
	engine *Engine
	order  Order
	active *Active
	policy policy.Policy
	given  []plan.Verdict // what a plan removes; nil: by the policy
	// approved says that somebody has asked for just this run.
	approved bool
	agree    bool      // of what is given only that goes which a new plan removes, too
	planned  time.Time // when that was decided, by the clock of ages
	run      run.Run
	resume   bool // it is taken up again
	unlock   func()

	q        Quarantine
	caches   bool // the registry remembers blobs that are gone: none may go
	entries  []quarantine.Entry
	noted    int             // entries in the journal
	gone     map[string]bool // manifests that it has removed
	left     map[string]bool // repositories that could not be read through the API
	in       plan.Input      // as it was looked at last
	allowed  map[string]bool // blobs that may go
	spent    bool            // the budget
	troubles []error         // that were in the way, and did not end the run
}

func newJob(e *Engine, o Order) *job {
	return &job{engine: e, order: o, allowed: map[string]bool{}, gone: map[string]bool{}, left: map[string]bool{}}
}

// Start begins a run in the background and returns once it has; follow it with Active.Next.
// It goes on until it has ended, Cancel, or ctx ends; ctx is that of the service. Errors
// are that it was not begun: NOT_FOUND for an unknown plan, ABORTED (PLAN_STALE),
// FAILED_PRECONDITION for a policy that is empty or removes everything, ALREADY_EXISTS
// when a run is under way, ErrKnown, UNAVAILABLE when the storage does not answer.
func (e *Engine) Start(ctx context.Context, o Order, sc trace.SpanContext) (*Active, error) {
	if err := e.known(ctx, o); err != nil { // before what has been spent by that run, such as its plan
		return nil, err
	}
	if o.Force {
		if err := e.clock(ctx); err != nil {
			return nil, err
		}
	}
	j := newJob(e, o)
	j.approved = o.wanted()
	if err := j.choose(ctx); err != nil {
		return nil, err
	}
	j.run = run.Run{
		ID: e.NewID(), State: run.Running, Trigger: o.Trigger, Started: time.Now(), Dry: !o.Force, PolicyVersion: j.policy.Version,
		PlanDigest: o.PlanDigest, Caller: o.Caller, RequestID: o.RequestID, Reach: e.reach(),
	}
	return j.start(ctx, sc)
}

// known is an ErrKnown when a run has the request id of an order.
func (e *Engine) known(ctx context.Context, o Order) error {
	if o.RequestID == "" {
		return nil
	}
	r, found, err := e.State.RunByRequest(ctx, o.RequestID)
	if err == nil && found {
		err = &ErrKnown{r}
	}
	return err
}

// clock is why ages cannot be counted now: then all would look old.
func (e *Engine) clock(ctx context.Context) error {
	if e.Clock == nil {
		return nil
	}
	return e.Clock(ctx)
}

// choose finds the policy or plan.
func (j *job) choose(ctx context.Context) (err error) {
	e, o := j.engine, j.order
	if err := policy.CheckRepositories("repositories", o.Repositories); err != nil {
		return err
	}
	if o.PlanDigest != "" {
		return j.chooseGiven(ctx)
	}
	if j.policy, err = e.policy(ctx, o.Policy); err != nil {
		return err
	}
	if o.Budget != nil {
		j.policy.Budget = *o.Budget
	}
	if o.Force && !o.All {
		return policy.Extreme(j.policy)
	}
	return nil
}

// chooseGiven takes the plan that was asked for. When another version of the policy is in force than
// the plan is by, both have to agree on what goes.
func (j *job) chooseGiven(ctx context.Context) error {
	e, o := j.engine, j.order
	inForce, err := e.policy(ctx, nil)
	if err != nil {
		return err
	}
	given, err := e.plans.take(o.PlanDigest, e.Now())
	if err != nil {
		return err
	}
	j.given, j.policy, j.planned = given.Removals(), given.Policy, given.Created
	if given.Policy.Version > 0 && given.Policy.Version != inForce.Version {
		j.policy, j.agree = inForce, true
	}
	if globs := o.Repositories; len(globs) > 0 {
		j.given = slices.DeleteFunc(slices.Clone(j.given), func(v plan.Verdict) bool {
			return !slices.ContainsFunc(globs, func(g policy.Glob) bool { return g.Fits(v.Repository) })
		})
	}
	if o.Budget != nil {
		j.policy.Budget = *o.Budget
	}
	if given.RemovesAll && o.Force && !o.All {
		e.plans.untake(o.PlanDigest)
		return removesAll("the plan would remove everything")
	}
	return nil
}

func removesAll(what string) error {
	return fault.New(fault.FailedPrecondition, "WRONG_STATE", what, "set force_all if that is meant, or let the rules keep something")
}

// start takes the lock and begins.
func (j *job) start(ctx context.Context, sc trace.SpanContext) (*Active, error) {
	e := j.engine
	running, cancel := context.WithCancelCause(ctx)
	held := running
	if !j.run.Dry {
		locked, err := j.lock(running)
		if err != nil {
			cancel(nil)
			e.plans.untake(j.order.PlanDigest)
			return nil, err
		}
		held = locked
	}
	err := j.keepStarted(ctx)
	if _, known := errors.AsType[*ErrKnown](err); err != nil && !known && j.unlock != nil && e.Storage != nil {
		if e.relieve(ctx) == nil { // the state may be on the same disk
			err = j.keepStarted(ctx)
		}
	}
	if err != nil {
		j.letGo()
		cancel(nil)
		e.plans.untake(j.order.PlanDigest)
		return nil, err
	}
	j.active = newActive(j.run, cancel)
	e.mu.Lock()
	e.active[j.run.ID] = j.active
	e.mu.Unlock()
	held = trace.ContextWithRemoteSpanContext(held, sc)
	go func() {
		defer cancel(nil)
		j.do(held)
		e.mu.Lock()
		delete(e.active, j.run.ID)
		e.mu.Unlock()
		j.active.end()
	}()
	return j.active, nil
}

// lock makes the run the only one on the storage, which has to be the registry's.
func (j *job) lock(ctx context.Context) (context.Context, error) {
	e := j.engine
	if e.Storage == nil {
		return ctx, j.lockByAPI()
	}
	if err := e.own(ctx); err != nil {
		return nil, err
	}
	held, unlock, err := e.Storage.Lock(ctx, j.run.ID)
	j.unlock = unlock
	return held, err
}

func (j *job) keepStarted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if j.resume {
		return j.engine.State.TakeUp(ctx, j.run)
	}
	known, started, err := j.engine.State.StartRun(ctx, j.run)
	if err == nil && !started {
		err = &ErrKnown{known}
	}
	return err
}

func (j *job) letGo() {
	if j.unlock != nil {
		j.unlock()
		j.unlock = nil
	}
}

// Cancel ends a run, and waits until it has. It reports whether it was under way here.
func (e *Engine) Cancel(ctx context.Context, id string) (bool, error) {
	e.mu.Lock()
	a := e.active[id]
	e.mu.Unlock()
	if a == nil {
		return false, nil
	}
	a.cancel(errCancelled)
	select {
	case <-a.done:
		return true, nil
	case <-ctx.Done():
		return true, context.Cause(ctx)
	}
}

// Wait waits until all runs have ended; those whose service stops end soon.
func (e *Engine) Wait() {
	for {
		e.mu.Lock()
		var one *Active
		for _, a := range e.active {
			one = a
		}
		e.mu.Unlock()
		if one == nil {
			return
		}
		<-one.done
	}
}

// Running is the id of the run that removes now. Empty: none.
func (e *Engine) Running() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, a := range e.active {
		if !a.Run().Dry {
			return id
		}
	}
	return ""
}

// Following is the run of an id that is under way here, or nil.
func (e *Engine) Following(id string) *Active {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.active[id]
}

// savedOrder is what a journal says of how to go on with a run.
type savedOrder struct {
	Trigger       run.Trigger `json:"trigger"`
	PolicyVersion int64       `json:"policy_version"`
	PlanDigest    string      `json:"plan_digest"`
	Caller        string      `json:"caller"`
	Approved      bool        `json:"approved"`
}
