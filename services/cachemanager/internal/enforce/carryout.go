package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// carryOut plans, and removes what the plan names.
func (j *job) carryOut(ctx context.Context) {
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
		c := run.OfCache{Cache: l.Cache, State: run.Running, Before: bytesOf(l), After: bytesOf(l)}
		for _, v := range p.Verdicts {
			j.spent = j.spent || v.Reason == plan.OverBudget
			if v.Remove && v.Cache == l.Cache {
				c.Predicted.Records++
				c.Predicted.Bytes += v.Frees
			}
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
		if v.Remove {
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
		if r := byRef[v.Cache]; r != nil && v.Remove {
			r.victims = append(r.victims, v)
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

// removal is what a run removes from one cache.
type removal struct {
	job     *job
	mu      *sync.Mutex
	listing *cache.Listing
	victims []plan.Verdict
	report  *run.OfCache
}

// chunk is how many records are removed by one call: BuildKit is fastest so.
const chunk = 100

func (r *removal) run(ctx context.Context, c Cache) {
	if len(r.victims) == 0 {
		r.report.State = run.Succeeded
		return
	}
	ctx, span := r.job.engine.Tracer.Start(ctx, "cache prune", trace.WithAttributes(attribute.String("kiln.cache", c.Ref().String())))
	defer span.End()
	held := r.job.held[c.Ref()]
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(held, func() { stop(context.Cause(held)) })()
	gone := map[string]bool{}
	var err error
	for part := range slices.Chunk(r.victims, chunk) {
		if err = context.Cause(ctx); err != nil {
			break
		}
		if err = r.remove(ctx, c, part, gone); err != nil {
			break
		}
	}
	if len(gone) < len(r.victims) || err == nil {
		err = errors.Join(err, r.reconcile(context.WithoutCancel(ctx), c, gone))
	}
	r.end(err)
	if err != nil {
		fail(span, err)
	}
}

// remove removes one chunk. It is not cut in its middle by the end of ctx.
func (r *removal) remove(ctx context.Context, c Cache, part []plan.Verdict, gone map[string]bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chunkTimeout)
	defer cancel()
	byID := make(map[string]*plan.Verdict, len(part))
	ids := make([]string, len(part))
	for i := range part {
		ids[i] = part[i].Record.ID
		byID[ids[i]] = &part[i]
	}
	var done []plan.Verdict
	err := c.Remove(ctx, ids, time.Since(r.listing.Time)+margin(r.listing.Time, part), func(id string, bytes int64) {
		if v := byID[id]; v != nil && !gone[id] {
			gone[id] = true
			if bytes > 0 && !v.Record.Shared {
				v.Frees = bytes
			}
			done = append(done, *v)
			r.took(*v)
		}
	})
	r.job.keep(ctx, done)
	return err
}

// margin is by how much longer than since the listing a record must have been unused
// to go. The daemon counts at the moment in which it comes to the record, which may
// be later than this call by seconds; a record that was used since the listing must
// still be too young then. Half of the time that the youngest had been unused
// leaves all of them old enough.
func margin(listed time.Time, part []plan.Verdict) time.Duration {
	youngest := 2 * maxMargin
	for _, v := range part {
		if !v.Record.LastUsed.IsZero() {
			youngest = min(youngest, listed.Sub(v.Record.LastUsed))
		}
	}
	return max(0, youngest/2)
}

const maxMargin = 10 * time.Minute

// took counts a record that is gone.
func (r *removal) took(v plan.Verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	add := func(a *plan.Amount) {
		a.Records++
		a.Bytes += v.Frees
	}
	add(&r.report.Removed)
	if r.report.Reasons == nil {
		r.report.Reasons = map[plan.Reason]plan.Amount{}
	}
	byReason := r.report.Reasons[v.Reason]
	add(&byReason)
	r.report.Reasons[v.Reason] = byReason
	add(&r.job.run.Removed)
	for i := range r.job.run.Rules {
		if r.job.run.Rules[i].Rule == v.Rule {
			add(&r.job.run.Rules[i].Amount)
		}
	}
	r.job.emit(Event{Removed: &v})
}

// reconcile lists the cache again, and says of each record of the plan that was not
// removed why.
func (r *removal) reconcile(ctx context.Context, c Cache, gone map[string]bool) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	after, err := c.List(ctx)
	if err != nil {
		return err
	}
	r.job.engine.Metrics.CacheSeen(ctx, after)
	r.report.After = bytesOf(after)
	now := map[string]cache.Record{}
	child := map[string]string{}
	for _, record := range after.Records {
		now[record.ID] = record
		for _, parent := range record.Parents {
			child[parent] = record.ID
		}
	}
	var kept []plan.Verdict
	for _, v := range r.victims {
		if gone[v.Record.ID] {
			continue
		}
		record, there := now[v.Record.ID]
		v.Remove, v.Frees = false, 0
		v.Reason, v.KeptBy, v.Explain = since(v, record, there, child[v.Record.ID])
		kept = append(kept, v)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range kept {
		r.job.emit(Event{Kept: &kept[i]})
	}
	r.job.keep(ctx, kept)
	return nil
}

// since says why a record of a plan is not removed: what has happened since.
func since(v plan.Verdict, now cache.Record, there bool, child string) (_ plan.Reason, keptBy, explain string) {
	switch {
	case !there:
		return plan.Gone, "", "was gone before the run came to it"
	case now.InUse:
		return plan.InUse, "", "a build uses it now"
	case !now.LastUsed.Equal(v.Record.LastUsed), now.UsageCount != v.Record.UsageCount:
		return plan.UsedSince, "", "a build has used it since the plan was made"
	case child != "":
		return plan.Child, child, fmt.Sprintf("record %s is made upon it, and stays", child)
	default:
		return plan.OverBudget, "", "the run ended before it came to it"
	}
}

// end says how it went on this cache.
func (r *removal) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.report.State = run.Succeeded
	case errors.Is(err, errSpent):
		r.report.State = run.Partial
	case errors.Is(err, context.Canceled):
		r.report.State = run.Cancelled
	default:
		r.report.State, r.report.Err = run.Failed, asFault(err)
		if r.report.Removed.Records > 0 {
			r.report.State = run.Partial
		}
	}
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
	for i := range out.Rules {
		out.Rules[i].Amount = plan.Amount{}
	}
	for _, v := range given.Verdicts {
		if !v.Remove {
			continue
		}
		id := name{v.Cache, v.Record.ID}
		is, there := current[id]
		reason, by, explain := since(v, is.Record, there, "")
		if there && reason == plan.OverBudget { // as it was
			reason, by, explain = is.Reason, is.KeptBy, is.Explain
		}
		for _, child := range children[id] {
			if !goes[child] && reason == plan.WithinBounds {
				reason, by, explain = plan.Child, child.id, fmt.Sprintf("record %s is made upon it, and stays", child.id)
			}
		}
		if reason == plan.WithinBounds {
			goes[id] = true
			out.Removes.Records++
			out.Removes.Bytes += v.Frees
		} else {
			v.Remove, v.Frees, v.Reason, v.KeptBy, v.Explain = false, 0, reason, by, explain
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
