package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// carryOut plans, and removes what the plan names.
func (j *job) carryOut(ctx context.Context) {
	if j.order.Clean == Repair {
		j.repair(ctx)
		return
	}
	e := j.engine
	listings, missed, err := e.list(ctx, j.caches)
	j.missed = append(j.missed, missed...)
	for i := range j.missed {
		j.emit(Event{Missed: &j.missed[i]})
	}
	if err != nil {
		j.fail(ctx, err)
		return
	}
	if err := j.brake(ctx, listings); err != nil {
		j.fail(ctx, err)
		return
	}
	p, err := j.plan(ctx, listings)
	if err != nil {
		j.fail(ctx, err)
		return
	}
	j.emit(Event{Planned: &p})
	j.expect(listings, p)
	if j.run.Dry {
		j.say(ctx, p)
		return
	}
	if j.policy.Budget.Time > 0 {
		bounded, cancel := context.WithTimeoutCause(ctx, j.policy.Budget.Time, errSpent)
		defer cancel()
		ctx = bounded
	}
	j.removeAll(ctx, listings, p)
}

// errSpent is the cause of the end of a run whose time is spent.
var errSpent = errors.New("the time of the run's budget is spent")

// plan is what goes now: by the policy or, of a plan that was given, what is as it
// was then.
func (j *job) plan(ctx context.Context, listings []cache.Listing) (run.Plan, error) {
	if j.given == nil {
		p, err := j.engine.planOf(ctx, j.caches, listings, j.missed, j.policy, time.Time{})
		if err == nil && j.order.Clean == Empty {
			asCleaned(p.Plan)
		}
		j.run.PlanDigest = p.Digest
		return p, err
	}
	// Pins, leases and uses of now hold, so what keeps records is asked of a policy
	// without rules.
	now, err := j.engine.planOf(ctx, j.caches, listings, j.missed, j.policy, time.Time{})
	if err != nil {
		return run.Plan{}, err
	}
	given := *j.given
	given.Plan = recheck(given.Plan, now.Plan, listings)
	return given, nil
}

// expect notes what the plan predicts.
func (j *job) expect(listings []cache.Listing, p run.Plan) {
	j.run.Predicted, j.run.Rules = p.Removes, nil
	for _, rule := range p.Rules {
		j.run.Rules = append(j.run.Rules, plan.RuleAmount{Rule: rule.Rule})
	}
	for _, l := range listings {
		c := run.OfCache{Cache: l.Cache, State: run.Running, Before: bytesOf(l), After: bytesOf(l), Unreadable: l.Unreadable}
		if l.Unreadable > 0 {
			j.engine.Log.Warn("records cannot be read and stay", "run", j.run.ID, "cache", l.Cache.String(), "records", l.Unreadable, "error", l.Unread)
		}
		for _, v := range p.Verdicts {
			j.spent = j.spent || v.Reason == plan.OverBudget
			if v.Cache != l.Cache {
				continue
			}
			if v.Remove {
				c.Predicted.Records++
			}
			c.Predicted.Bytes += v.Frees
		}
		j.run.Caches = append(j.run.Caches, c)
	}
}

func bytesOf(l cache.Listing) (bytes int64) {
	for _, r := range l.Records {
		if !r.Shared {
			bytes += max(r.Bytes, 0)
		}
	}
	for _, c := range l.Common {
		bytes += c.Bytes
	}
	return bytes
}

// say tells what a dry run would remove.
func (j *job) say(ctx context.Context, p run.Plan) {
	var all []plan.Verdict
	for i, v := range p.Verdicts {
		if v.Remove || v.Shrink > 0 {
			all = append(all, v)
			j.emit(Event{Removed: &p.Verdicts[i]})
		}
	}
	j.keep(ctx, all)
}

// keep stores verdicts. A run goes on also when they cannot be stored: what it did is
// told to its caller.
func (j *job) keep(ctx context.Context, verdicts []plan.Verdict) {
	if len(verdicts) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := j.engine.State.AddVerdicts(ctx, j.run.ID, verdicts); err != nil {
		j.engine.Log.ErrorContext(ctx, "what a run did cannot be stored", "run", j.run.ID, "error", err)
	}
}

// removeAll removes from all caches at once.
func (j *job) removeAll(ctx context.Context, listings []cache.Listing, p run.Plan) {
	byRef := map[cache.Ref]*removal{}
	var mu sync.Mutex // of the job, for what the removals tell
	for i := range listings {
		byRef[listings[i].Cache] = &removal{job: j, mu: &mu, listing: &listings[i], report: &j.run.Caches[i]}
	}
	for _, v := range p.Verdicts {
		switch r := byRef[v.Cache]; {
		case r == nil:
		case v.Remove:
			r.victims = append(r.victims, v)
		case v.Shrink > 0:
			r.shrinks = append(r.shrinks, v)
		}
	}
	for _, room := range p.Rooms {
		if r := byRef[room.Cache]; r != nil {
			r.rooms = append(r.rooms, room)
		}
	}
	for _, v := range p.Verdicts { // of a plan that was given: what has changed since
		if !v.Remove && j.given != nil && v.Order > 0 {
			j.emit(Event{Kept: &v})
			j.keep(ctx, []plan.Verdict{v})
		}
	}
	caches := slices.DeleteFunc(slices.Clone(j.caches), func(c Cache) bool { return byRef[c.Ref()] == nil })
	each(caches, func(_ int, c Cache) { byRef[c.Ref()].run(ctx, c) })
}

// recheck is a plan that was given, as it stands against what is now: what has
// changed since stays, and so do the parents of what stays. What stays keeps its
// order.
func recheck(given, now *plan.Plan, listings []cache.Listing) *plan.Plan {
	type name struct {
		cache cache.Ref
		id    string
	}
	current := map[name]plan.Verdict{}
	for _, v := range now.Verdicts {
		current[name{v.Cache, v.Record.ID}] = v
	}
	children := map[name][]name{}
	for _, l := range listings {
		for _, r := range l.Records {
			for _, parent := range r.Parents {
				children[name{l.Cache, parent}] = append(children[name{l.Cache, parent}], name{l.Cache, r.ID})
			}
		}
	}
	goes := map[name]bool{}
	out := *given
	out.Verdicts, out.Removes, out.Rules = nil, plan.Amount{}, slices.Clone(given.Rules)
	out.Rooms = nil // its exceptions are those of then
	for i := range out.Rules {
		out.Rules[i].Amount = plan.Amount{}
	}
	for _, v := range given.Verdicts {
		if !v.Remove && v.Shrink == 0 {
			continue
		}
		id := name{v.Cache, v.Record.ID}
		is, there := current[id]
		reason, by, explain := since(v, is.Record, there, "", now.Time)
		if there && reason == plan.OverBudget { // as it was
			reason, by, explain = is.Reason, is.KeptBy, is.Explain
		}
		for _, child := range children[id] {
			if !goes[child] && reason == plan.WithinBounds {
				reason, by, explain = plan.Child, child.id, fmt.Sprintf("record %s is made upon it, and stays", child.id)
			}
		}
		if reason == plan.WithinBounds {
			goes[id] = v.Remove
			out.Removes.Bytes += v.Frees
			if v.Remove {
				out.Removes.Records++
			}
		} else {
			v.Remove, v.Shrink, v.Frees, v.Reason, v.KeptBy, v.Explain = false, 0, 0, reason, by, explain
		}
		out.Verdicts = append(out.Verdicts, v)
	}
	return &out
}

func asFault(err error) *fault.Error {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return known
	}
	return fault.Wrap(err, fault.Internal, "INTERNAL", "the run failed", "read the cache manager's log")
}
