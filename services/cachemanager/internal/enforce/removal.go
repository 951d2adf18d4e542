package enforce

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// removal is what a run removes from one cache.
type removal struct {
	job     *job
	mu      *sync.Mutex
	listing *cache.Listing
	victims []plan.Verdict
	shrinks []plan.Verdict
	rooms   []plan.Room
	report  *run.OfCache
}

// chunk is how many records are removed by one call: each call costs the daemon a collection
// of its metadata, and each id a comparison with each record that is old enough.
const chunk = 250

// chunkOfHistory is how many builds of a daemon's history are forgotten by one: each costs
// the daemon as much as dozens of records, and a run ends after a chunk.
const chunkOfHistory = 24

// chunks are victims in parts, each removed by one call.
func chunks(victims []plan.Verdict) (parts [][]plan.Verdict) {
	from, builds := 0, 0
	for i, v := range victims {
		if v.Record.Type == cache.History {
			builds++
		}
		if i+1-from == chunk || builds == chunkOfHistory {
			parts = append(parts, victims[from:i+1])
			from, builds = i+1, 0
		}
	}
	if from < len(victims) {
		parts = append(parts, victims[from:])
	}
	return parts
}

func (r *removal) run(ctx context.Context, c Cache) {
	ctx, span := r.job.engine.Tracer.Start(ctx, "cache prune", trace.WithAttributes(attribute.String("kiln.cache", c.Ref().String())))
	defer span.End()
	held := r.job.locks[c.Ref()]
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(held, func() { stop(context.Cause(held)) })()
	err := r.removeAll(ctx, c)
	if err == nil {
		err = r.shrink(ctx, c)
	}
	if err == nil {
		err = r.makeRooms(ctx, c)
	}
	if s, ok := c.(Sweeper); ok && err == nil {
		err = s.Sweep(ctx, r.job.order.Trigger == run.FreeDisk || r.job.order.Clean == Empty)
	}
	r.end(err)
	if err != nil {
		fail(span, err)
	}
}

// removeAll removes what is to go, and says what became of the rest.
func (r *removal) removeAll(ctx context.Context, c Cache) (err error) {
	if len(r.victims) == 0 {
		return nil
	}
	gone := map[string]bool{}
	for _, part := range chunks(r.victims) {
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
	return err
}

// shrink makes smaller what is to be.
func (r *removal) shrink(ctx context.Context, c Cache) error {
	for _, v := range r.shrinks {
		s, ok := c.(Shrinker)
		if err := context.Cause(ctx); err != nil || !ok {
			return err
		}
		freed, done, err := s.Shrink(ctx, v.Record.Target(), v.Shrink, r.unusedFor([]plan.Verdict{v}))
		if err != nil {
			return err
		}
		if !done {
			v.Shrink, v.Frees, v.Reason, v.Explain = 0, 0, plan.UsedSince, "a build has used it since the plan was made"
			r.mu.Lock()
			r.job.emit(Event{Kept: &v})
			r.mu.Unlock()
		} else {
			v.Frees = freed
			r.report.After -= freed
			r.took(v)
		}
		r.job.keep(ctx, []plan.Verdict{v})
	}
	return nil
}

// unusedFor is how long records must have been unused to go: since the listing, with a
// margin.
func (r *removal) unusedFor(part []plan.Verdict) time.Duration {
	return time.Since(r.listing.Time) + margin(r.listing.Time, part)
}

// remove removes one chunk. It is not cut in its middle by the end of ctx.
func (r *removal) remove(ctx context.Context, c Cache, part []plan.Verdict, gone map[string]bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chunkTimeout)
	defer cancel()
	byID := make(map[string]*plan.Verdict, len(part))
	for i := range part {
		byID[part[i].Record.ID] = &part[i]
	}
	var done []plan.Verdict
	freed := func(id string, bytes int64) {
		if v := byID[id]; v != nil && !gone[id] {
			gone[id] = true
			if bytes > 0 && !v.Record.Shared {
				v.Frees = bytes
			}
			done = append(done, *v)
			r.took(*v)
		}
	}
	safe := r.unusedFor(part)
	err := c.Remove(ctx, without(part, gone), max(safe, oldest(part)), freed)
	if left := without(part, gone); err == nil && len(left) > 0 && oldest(part) > safe {
		err = c.Remove(ctx, left, safe, freed) // the daemon's clock may be behind
	}
	r.job.keep(ctx, done)
	return err
}

// without returns the records that are not gone.
func without(part []plan.Verdict, gone map[string]bool) (left []cache.Target) {
	for _, v := range part {
		if !gone[v.Record.ID] {
			left = append(left, v.Record.Target())
		}
	}
	return left
}

// oldest is for how long all records of a chunk were unused, about. A daemon compares
// with the ids those records only that were unused for as long as it is told: so it has
// less to compare than with the time that is safe.
func oldest(part []plan.Verdict) time.Duration {
	var youngest time.Time
	for _, v := range part {
		if v.Record.LastUsed.After(youngest) {
			youngest = v.Record.LastUsed
		}
	}
	return time.Since(youngest) - blur
}

// blur is by how much the clocks of one host may differ, and what a call takes.
const blur = 2 * time.Second

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
		if v.Remove {
			a.Records++
		}
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
	after.ByThisClock()
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
		v.Reason, v.KeptBy, v.Explain = since(v, record, there, child[v.Record.ID], after.Time)
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
func since(v plan.Verdict, now cache.Record, there bool, child string, listed time.Time) (_ plan.Reason, keptBy, explain string) {
	switch {
	case !there:
		return plan.Gone, "", "was gone before the run came to it"
	case now.InUse:
		return plan.InUse, "", "now " + plan.HeldBy(now, listed)
	case now.Revision != v.Record.Revision:
		return plan.UsedSince, "", "a build has written it anew since the plan was made"
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
