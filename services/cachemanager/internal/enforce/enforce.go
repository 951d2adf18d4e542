// Package enforce keeps caches to a policy: it lists them, plans, removes by id what
// the plan names and nothing has used since, lists again, and keeps what it did and
// why.
package enforce

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// Cache is what is asked of a cache here.
type Cache interface {
	Ref() cache.Ref
	// List lists the cache as it is now.
	List(ctx context.Context) (cache.Listing, error)
	// Lock makes this cache manager the only one that runs on the cache, as long as
	// it lives. The context that it returns ends when the lock is lost. A cache that
	// another one has is an ALREADY_EXISTS fault.
	Lock(ctx context.Context) (held context.Context, err error)
	// Remove removes records that nothing has used for a time and that still have their
	// revision, children before parents, and calls freed for each that is gone, one call at a
	// time, with the bytes that this freed, or -1. What cannot go stays, and is no error.
	Remove(ctx context.Context, targets []cache.Target, unusedFor time.Duration, freed func(id string, bytes int64)) error
}

// Leased is a cache whose records may be leased.
type Leased interface {
	// Leases are the ids of leases by the id of the record that each holds.
	Leases(ctx context.Context) (map[string]string, error)
}

// Shrinker is a cache whose records can be made smaller.
type Shrinker interface {
	// Shrink makes a record smaller by the first of its Shrinks, under the conditions of
	// Remove, and returns the bytes that this freed; false when it was left.
	Shrink(ctx context.Context, target cache.Target, steps int, unusedFor time.Duration) (freed int64, done bool, err error)
}

// Roomy is a daemon that sees to its free disk by itself.
type Roomy interface {
	// MakeRoom removes records, the least recently used first, until so many bytes of the
	// daemon's disk are free by its own figures; none of those that are excepted, nor one
	// that was used for less than a time. It calls freed as Remove does.
	MakeRoom(ctx context.Context, free int64, except []string, unusedFor time.Duration, freed func(id string, bytes int64)) error
}

// Sweeper is a cache in which things pile up that are in no record.
type Sweeper interface {
	// Sweep takes away what is of no record any more. When it is urgent, it waits for
	// nothing that it can do without.
	Sweep(ctx context.Context, urgent bool) error
}

// State is what outlives the process.
type State interface {
	// PolicyInForce returns the policy in force.
	PolicyInForce(ctx context.Context) (policy.Policy, error)
	// Pins returns the pins that have not expired.
	Pins(ctx context.Context, now time.Time) ([]policy.Pin, error)
	// AddSample keeps what a cache held at a time, for forecasts.
	AddSample(ctx context.Context, ref cache.Ref, at time.Time, bytes, records int64) error
	// SavePlan keeps a plan until it expires.
	SavePlan(ctx context.Context, p run.Plan) error
	// CheckPlan returns a plan by its digest. One that was taken, or has expired, is an
	// ABORTED (PLAN_STALE) fault; NOT_FOUND when there was none.
	CheckPlan(ctx context.Context, digest string, now time.Time) (run.Plan, error)
	// TakePlan takes a plan for a run, once, or is the fault of CheckPlan.
	TakePlan(ctx context.Context, digest string, now time.Time) error
	// ReturnPlan undoes TakePlan: the run was not begun.
	ReturnPlan(digest string)
	// RunByRequest returns the run that was started with a request id, if there is one.
	RunByRequest(ctx context.Context, requestID string) (r run.Run, found bool, err error)
	// PolicyVersion returns a version of the policy, or a NOT_FOUND fault.
	PolicyVersion(ctx context.Context, version int64) (policy.Policy, error)
	// ApprovedVersion returns the version of the policy that the schedule applies; 0: none.
	ApprovedVersion(ctx context.Context) (int64, error)
	// Approve lets the schedule apply a version of the policy.
	Approve(ctx context.Context, version int64) error
	// StartRun keeps a run that begins. With a request id that a run has already, it
	// keeps nothing and returns that run and false.
	StartRun(ctx context.Context, r run.Run) (_ run.Run, started bool, _ error)
	// AddVerdicts keeps what became of records.
	AddVerdicts(ctx context.Context, id string, verdicts []plan.Verdict) error
	// FinishRun keeps how a run ended. Runs of the schedule that did nothing are folded.
	FinishRun(ctx context.Context, r run.Run) error
}

// Metrics counts runs.
type Metrics interface {
	RunEnded(ctx context.Context, r run.Run)
	// CacheSeen takes what a cache holds.
	CacheSeen(ctx context.Context, listing cache.Listing)
	// PolicyHeld takes whether a policy waits for approval.
	PolicyHeld(ctx context.Context, held bool)
}

// Attribution knows whose builds use which records.
type Attribution interface {
	// Annotate sets the projects and images of a listing's records, as far as they are
	// known.
	Annotate(ctx context.Context, l *cache.Listing) error
}

// Options is what an engine is made of.
type Options struct {
	Caches  []Cache
	State   State
	Uses    Attribution // nil: nobody knows
	Metrics Metrics
	Log     *slog.Logger
	Tracer  trace.Tracer
	NewID   func() string
	Now     func() time.Time // that ages are counted to
	// Clock says why ages cannot be counted now, and no run removes anything; nil: they can.
	Clock func(ctx context.Context) error
	// MaxRemovalPercent is how much of a cache a new version of the policy may remove beyond
	// the one before it, without approval. 0 or 100: any share.
	MaxRemovalPercent int
}

// Engine plans, and carries plans out.
type Engine struct {
	Options

	mu   sync.Mutex
	busy map[cache.Ref]string // id of the run that is under way there
	hold *Hold                // nil: the schedule applies the policy in force
}

// New returns an engine of caches whose references differ.
func New(opts Options) *Engine {
	opts.Caches = slices.SortedFunc(slices.Values(opts.Caches), func(a, b Cache) int { return a.Ref().Compare(b.Ref()) })
	return &Engine{Options: opts, busy: map[cache.Ref]string{}}
}

// choose returns the caches of these references, or all when there is none.
func (e *Engine) choose(refs []cache.Ref) ([]Cache, error) {
	if len(refs) == 0 {
		return e.Caches, nil
	}
	for _, ref := range refs {
		if !slices.ContainsFunc(e.Caches, func(c Cache) bool { return c.Ref() == ref }) {
			var names []string
			for _, c := range e.Caches {
				names = append(names, c.Ref().String())
			}
			return nil, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no cache %q", ref),
				"name one of "+strings.Join(names, ", ")+", or none for all")
		}
	}
	return slices.DeleteFunc(slices.Clone(e.Caches), func(c Cache) bool { return !slices.Contains(refs, c.Ref()) }), nil
}

// How long the parts of a run may take.
const (
	listTimeout  = 45 * time.Second
	lockTimeout  = 20 * time.Second
	chunkTimeout = 5 * time.Minute
	storeTimeout = 30 * time.Second
)

// List lists caches at once. Those that do not answer are missed; when none answers,
// that is an error.
func (e *Engine) List(ctx context.Context, refs []cache.Ref) ([]cache.Listing, []run.Missed, error) {
	caches, err := e.choose(refs)
	if err != nil {
		return nil, nil, err
	}
	return e.list(ctx, caches)
}

// atOnce is how many caches are worked on at the same time.
const atOnce = 16

// each does something for each cache, many at once, and waits.
func each(caches []Cache, do func(i int, c Cache)) {
	slots := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	for i, c := range caches {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			do(i, c)
		})
	}
	wait.Wait()
}

func (e *Engine) list(ctx context.Context, caches []Cache) (listings []cache.Listing, missed []run.Missed, err error) {
	all, errs := make([]cache.Listing, len(caches)), make([]error, len(caches))
	each(caches, func(i int, c Cache) {
		ctx, cancel := context.WithTimeout(ctx, listTimeout)
		defer cancel()
		if all[i], errs[i] = c.List(ctx); errs[i] == nil && e.Uses != nil {
			errs[i] = e.Uses.Annotate(ctx, &all[i]) // by the daemon's clock, as the times of steps
		}
		all[i].ByThisClock()
	})
	for i, err := range errs {
		if err != nil {
			missed = append(missed, run.Missed{Cache: caches[i].Ref(), Err: err})
			continue
		}
		listings = append(listings, all[i])
		e.Metrics.CacheSeen(ctx, all[i])
		if err := e.State.AddSample(ctx, all[i].Cache, all[i].Time, bytesOf(all[i])+all[i].Uncounted, int64(len(all[i].Records))); err != nil {
			e.Log.WarnContext(ctx, "what a cache holds cannot be stored", "cache", all[i].Cache.String(), "error", err)
		}
	}
	if ctx.Err() != nil {
		return nil, missed, context.Cause(ctx)
	}
	if len(listings) == 0 && len(missed) > 0 {
		return nil, missed, missed[0].Err
	}
	return listings, missed, nil
}

// leases are those of the caches that have any.
func leases(ctx context.Context, caches []Cache) (map[cache.Ref]map[string]string, error) {
	all := map[cache.Ref]map[string]string{}
	for _, c := range caches {
		leased, ok := c.(Leased)
		if !ok {
			continue
		}
		held, err := leased.Leases(ctx)
		if err != nil {
			return nil, err
		}
		all[c.Ref()] = held
	}
	return all, nil
}
