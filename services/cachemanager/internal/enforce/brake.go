package enforce

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// Hold is why the schedule does not apply the policy in force: it would remove more of a cache, beyond
// what the policy before it removes, than a change may without approval. What a policy removes day by
// day is never held: an idle weekend makes all of a cache old, and that is what the policy is for.
type Hold struct {
	Version int64  // that waits
	Applied int64  // that is applied until then
	Message string // what it would remove
}

func (h *Hold) fault() error {
	return fault.New(fault.FailedPrecondition, "WRONG_STATE",
		fmt.Sprintf("version %d of the policy waits for approval, and version %d is applied: %s", h.Version, h.Applied, h.Message),
		"look at `kiln cache plan`; approve it with `kiln cache policy approve`, or set another policy; "+
			"max_removal_percent in the cache manager's configuration says how much may go without approval")
}

// Hold returns why the policy in force is not applied; nil when it is, as far as runs have found out.
func (e *Engine) Hold() *Hold {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.hold
}

// Held records why the policy in force is not applied, before a run finds it out.
func (e *Engine) Held(ctx context.Context, h *Hold) { e.setHold(ctx, h) }

func (e *Engine) setHold(ctx context.Context, h *Hold) {
	e.mu.Lock()
	news := h != nil && (e.hold == nil || e.hold.Version != h.Version)
	e.hold = h
	e.mu.Unlock()
	e.Metrics.PolicyHeld(ctx, h != nil)
	if news {
		e.Log.ErrorContext(ctx, "the new policy would remove too much without approval; the one before it stays in force",
			"version", h.Version, "applied", h.Applied, "why", h.Message, "remedy", "kiln cache policy approve")
	}
}

// compareTimeout bounds the listing of the caches for Compare.
const compareTimeout = 10 * time.Second

// Compare returns why the schedule would not apply a policy without approval, by what the caches hold now;
// nil when it would, or when that cannot be found out in time.
func (e *Engine) Compare(ctx context.Context, p policy.Policy) *Hold {
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	before, err := e.before(ctx)
	if err != nil || before == nil {
		return nil
	}
	resolved, err := policy.Resolve(p)
	if err != nil {
		return nil
	}
	listings, missed, err := e.list(ctx, e.Caches)
	if err != nil {
		return nil
	}
	why, err := e.excess(ctx, e.Caches, listings, missed, resolved, *before)
	if err != nil || why == "" {
		return nil
	}
	return &Hold{Version: p.Version, Applied: before.Version, Message: why}
}

// excess says what a policy would remove beyond another one, if that is too much: in all, for budgets
// only spread it over runs.
func (e *Engine) excess(
	ctx context.Context, caches []Cache, listings []cache.Listing, missed []run.Missed, p, before policy.Policy,
) (string, error) {
	p.Budget, before.Budget = policy.Budget{}, policy.Budget{}
	after, err := e.planOf(ctx, caches, listings, missed, p, e.Now())
	if err != nil {
		return "", err
	}
	was, err := e.planOf(ctx, caches, listings, missed, before, e.Now())
	if err != nil {
		return "", err
	}
	return e.tooMuch(listings, after.Plan, was.Plan), nil
}

// brake puts the last approved policy in the place of the one in force, for a run that nobody asked for,
// if the one in force is new and would remove too much.
func (j *job) brake(ctx context.Context, listings []cache.Listing) error {
	e := j.engine
	if j.given != nil || j.order.Policy != nil || j.order.Clean != NoClean || j.order.Trigger == run.Demand || j.run.Dry {
		return nil
	}
	before, err := e.approved(ctx, j.policy.Version)
	if err != nil || before == nil {
		return err
	}
	why, err := e.excess(ctx, j.caches, listings, j.missed, j.policy, *before)
	if err != nil {
		return err
	}
	if why == "" {
		if len(listings) == len(e.Caches) { // else one of the others may lose too much
			return e.approve(ctx, j.policy.Version)
		}
		return nil
	}
	j.held = &Hold{Version: j.policy.Version, Applied: before.Version, Message: why}
	j.run.Held, j.run.PolicyVersion = j.policy.Version, before.Version
	j.policy = *before
	e.setHold(ctx, j.held)
	return nil
}

// approved returns the policy that a version is compared with; nil when it needs no approval.
func (e *Engine) approved(ctx context.Context, version int64) (*policy.Policy, error) {
	last, err := e.State.ApprovedVersion(ctx)
	if err != nil {
		return nil, err
	}
	if last == version {
		e.setHold(ctx, nil)
		return nil, nil
	}
	before, err := e.before(ctx)
	if err == nil && before == nil {
		err = e.approve(ctx, version)
	}
	return before, err
}

// before returns the last approved policy; nil when there is none, or when none needs approval.
func (e *Engine) before(ctx context.Context) (*policy.Policy, error) {
	last, err := e.State.ApprovedVersion(ctx)
	if err != nil || last == 0 || e.MaxRemovalPercent == 0 || e.MaxRemovalPercent >= 100 {
		return nil, err
	}
	before, err := e.State.PolicyVersion(ctx, last)
	if fault.KindOf(err) == fault.NotFound {
		return nil, nil // it is not kept any more
	}
	if err == nil {
		before, err = policy.Resolve(before)
	}
	return &before, err
}

func (e *Engine) approve(ctx context.Context, version int64) error {
	e.setHold(ctx, nil)
	return e.State.Approve(ctx, version)
}

// tooMuch says what of which cache a plan removes beyond another one, if that is more than the share
// that may go without approval. Builds of the history count by their bytes only.
func (e *Engine) tooMuch(listings []cache.Listing, after, before *plan.Plan) string {
	type name struct {
		cache cache.Ref
		id    string
	}
	frees := map[name]int64{}
	goes := map[name]bool{}
	for _, v := range before.Verdicts {
		frees[name{v.Cache, v.Record.ID}], goes[name{v.Cache, v.Record.ID}] = v.Frees, v.Remove
	}
	more := map[cache.Ref]plan.Amount{}
	for _, v := range after.Verdicts {
		id, m := name{v.Cache, v.Record.ID}, more[v.Cache]
		m.Bytes += max(0, v.Frees-frees[id])
		if v.Remove && !goes[id] && v.Record.Type != cache.History {
			m.Records++
		}
		more[v.Cache] = m
	}
	for _, l := range listings {
		all := plan.Amount{Bytes: bytesOf(l)}
		for _, r := range l.Records {
			if r.Type != cache.History {
				all.Records++
			}
		}
		m := more[l.Cache]
		if share(m.Bytes, all.Bytes) > int64(e.MaxRemovalPercent) || share(m.Records, all.Records) > int64(e.MaxRemovalPercent) {
			return fmt.Sprintf("it would remove %s of %s and %d of %d records from %s, beyond what the version before it removes",
				human.Size(m.Bytes), human.Size(all.Bytes), m.Records, all.Records, l.Cache)
		}
	}
	return newRoom(after.Rooms, before.Rooms)
}

// share is in percent.
func share(part, of int64) int64 {
	if of == 0 {
		return 0
	}
	return int64(float64(part) / float64(of) * 100)
}

// newRoom says which daemon is to make more room on its disk than before: how much goes for that, only
// the daemon knows.
func newRoom(after, before []plan.Room) string {
	most := map[cache.Ref]int64{}
	for _, r := range before {
		most[r.Cache] = max(most[r.Cache], r.HighBytes)
	}
	for _, r := range after {
		if r.HighBytes > most[r.Cache] {
			return fmt.Sprintf("daemon %s, whose disk only it knows, would remove records until %s are free, by rule %q", r.Cache, human.Size(r.HighBytes), r.Rule)
		}
	}
	return ""
}
