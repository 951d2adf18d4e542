package enforce

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// How long caches wait that a run missed or could not help, if the interval is not shorter.
const (
	// awayRetry is after how long caches that are away, or another's, are tried again first.
	awayRetry = 10 * time.Second
	// awayMost is the longest pause between two tries of caches that are away.
	awayMost = 2 * time.Minute
	// diskRetry is after how long a cache is run on again first whose disk is still nearly full.
	diskRetry = 10 * time.Second
	// diskEvery is how often free disk is looked at.
	diskEvery = 2 * time.Second
)

// Disk is a cache whose free disk is known.
type Disk interface {
	// Disk looks at the file system that the cache is on; nil when it is not known.
	Disk() (*cache.Disk, error)
}

// Schedule keeps the caches to the policy soon after the start and then at each
// interval, and whenever less disk is free than the policy wants.
type Schedule struct {
	engine   *Engine
	interval time.Duration // from start to start
	was      map[cache.Ref]status
	full     map[cache.Ref]*fullDisk // caches whose disk a run left nearly full
}

// fullDisk is when a cache is run on again whose disk is nearly full: what fills it may be something else.
type fullDisk struct {
	pause backoff
	again time.Time
}

// backoff is a pause that doubles.
type backoff struct{ next, most time.Duration }

func (b *backoff) pause() time.Duration {
	now := min(b.next, b.most)
	b.next = 2 * now
	return now
}

// NewSchedule returns a schedule of all caches of an engine.
func NewSchedule(engine *Engine, interval time.Duration) *Schedule {
	return &Schedule{engine: engine, interval: interval, was: map[cache.Ref]status{}, full: map[cache.Ref]*fullDisk{}}
}

// Run goes on until ctx ends.
func (s *Schedule) Run(ctx context.Context) error {
	if len(s.engine.Caches) == 0 {
		<-ctx.Done()
		return nil
	}
	disk := time.NewTicker(diskEvery)
	defer disk.Stop()
	next, retry := time.NewTimer(0), time.NewTimer(s.interval)
	defer next.Stop()
	defer retry.Stop()
	away := s.awayBackoff()
	var missed []cache.Ref
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
			started := time.Now()
			missed = s.missedBy(s.keep(ctx, run.Schedule, nil))
			next.Reset(max(s.interval-time.Since(started), 0))
		case <-retry.C:
			if len(missed) > 0 {
				missed = s.missedBy(s.keep(ctx, run.Schedule, missed))
			}
		case <-disk.C:
			if low := s.due(s.low(ctx)); len(low) > 0 {
				s.rest(s.keep(ctx, run.FreeDisk, low))
			}
			continue
		}
		if !slices.ContainsFunc(missed, func(ref cache.Ref) bool { return s.was[ref] == absent }) {
			away = s.awayBackoff() // another cache manager's are tried as often as before: it may end
		}
		retry.Reset(away.pause())
	}
}

func (s *Schedule) awayBackoff() backoff {
	return backoff{next: min(awayRetry, s.interval), most: min(awayMost, s.interval)}
}

// due returns those of the caches with a nearly full disk that a run may help now.
func (s *Schedule) due(low []cache.Ref) (due []cache.Ref) {
	for ref := range s.full {
		if !slices.Contains(low, ref) {
			delete(s.full, ref)
		}
	}
	for _, ref := range low {
		if was := s.full[ref]; was == nil || !time.Now().Before(was.again) {
			due = append(due, ref)
		}
	}
	return due
}

// rest puts off the next run on caches whose disk is nearly full, for longer each time that a run has
// removed nothing.
func (s *Schedule) rest(caches []run.OfCache) {
	for _, c := range caches {
		f := s.full[c.Cache]
		if f == nil || c.Removed.Records > 0 || c.Removed.Bytes > 0 {
			f = &fullDisk{pause: backoff{next: min(diskRetry, s.interval), most: s.interval}}
			s.full[c.Cache] = f
		}
		f.again = time.Now().Add(f.pause.pause())
	}
}

// missedBy returns the caches that were away, or another's.
func (s *Schedule) missedBy(caches []run.OfCache) (missed []cache.Ref) {
	for _, c := range caches {
		if now := statusOf(c); now == absent || now == busy {
			missed = append(missed, c.Cache)
		}
	}
	return missed
}

// low are the caches with less free disk than the policy wants.
func (s *Schedule) low(ctx context.Context) (low []cache.Ref) {
	p, err := s.engine.policy(ctx, nil)
	if err != nil {
		return nil // the next run says so
	}
	for _, c := range s.engine.Caches {
		on, ok := c.(Disk)
		if !ok {
			continue
		}
		disk, err := on.Disk()
		if err != nil || disk == nil {
			continue
		}
		for _, rule := range p.Rules {
			if k := rule.Keep; k != nil && k.FreeDisk != nil && disk.FreeBytes < k.FreeDisk.LowBytes {
				low = append(low, c.Ref())
				break
			}
		}
	}
	return low
}

// keep is one run. It returns how it went on each cache.
func (s *Schedule) keep(ctx context.Context, trigger run.Trigger, refs []cache.Ref) []run.OfCache {
	types := map[cache.Type]int64{}
	r, err := s.engine.Run(ctx, Order{Trigger: trigger, Caches: refs, Force: true, All: true}, func(e Event) {
		if e.Removed != nil {
			types[e.Removed.Record.Type]++
		}
	})
	if ctx.Err() != nil {
		return nil // Told to stop: not a fault of the caches.
	}
	if err != nil {
		return s.failed(ctx, err, refs)
	}
	for _, c := range r.Caches {
		s.report(ctx, c)
	}
	s.log(ctx, r, types)
	return r.Caches
}

// failed is a run that was not begun.
func (s *Schedule) failed(ctx context.Context, err error, refs []cache.Ref) (all []run.OfCache) {
	caches, unknown := s.engine.choose(refs)
	if unknown != nil {
		return nil
	}
	kind := fault.KindOf(err)
	if kind != fault.Unavailable && kind != fault.AlreadyExists {
		s.engine.Log.ErrorContext(ctx, "run failed; the next one tries again", "error", err)
	}
	for _, c := range caches {
		of := run.OfCache{Cache: c.Ref(), State: run.Failed, Err: asFault(err)}
		if kind == fault.Unavailable || kind == fault.AlreadyExists {
			s.report(ctx, of)
		}
		all = append(all, of)
	}
	return all
}

// status is how a run left a cache.
type status int

const (
	unseen status = iota // no run yet
	kept                 // the policy holds
	failed               // it answered with an error
	absent               // it did not answer
	busy                 // another cache manager has it
)

func statusOf(c run.OfCache) status {
	switch {
	case c.Err == nil:
		return kept
	case fault.KindOf(c.Err) == fault.Unavailable:
		return absent
	case fault.KindOf(c.Err) == fault.AlreadyExists:
		return busy
	default:
		return failed
	}
}

// report logs how a run left a cache. One that stays away is logged once.
func (s *Schedule) report(ctx context.Context, c run.OfCache) {
	was, now := s.was[c.Cache], statusOf(c)
	s.was[c.Cache] = now
	log := s.engine.Log.With(label(c.Cache))
	switch {
	case now == was && now != failed:
	case now == absent:
		log.WarnContext(ctx, "cache is away; it is not kept to the policy until it is back", "error", fault.Line(c.Err))
	case now == busy:
		log.InfoContext(ctx, "cache is kept to a policy by another cache manager", "error", fault.Line(c.Err))
	case now == failed:
		log.ErrorContext(ctx, "run failed; the next one tries again", "error", fault.Line(c.Err))
	case was == absent:
		log.InfoContext(ctx, "cache is back")
	}
}

// label names a cache in the log.
func label(ref cache.Ref) slog.Attr {
	if ref.Daemon != "" {
		return slog.String("daemon", ref.Daemon)
	}
	return slog.String("directory", ref.Directory)
}

// log logs what a run did.
func (s *Schedule) log(ctx context.Context, r run.Run, types map[cache.Type]int64) {
	level := slog.LevelDebug
	if r.Removed.Records > 0 {
		level = slog.LevelInfo
	}
	attrs := []any{
		"run", r.ID, "trigger", string(r.Trigger), "state", string(r.State), "freed_records", r.Removed.Records, "freed_bytes", r.Removed.Bytes,
	}
	for _, rule := range r.Rules {
		if rule.Amount != (plan.Amount{}) {
			attrs = append(attrs, slog.Group("by_"+rule.Rule, "records", rule.Records, "bytes", rule.Bytes))
		}
	}
	if len(types) > 0 {
		attrs = append(attrs, "freed_types", typeCounts(types))
	}
	s.engine.Log.Log(ctx, level, "caches are kept to the policy", append(attrs, "took", r.Ended.Sub(r.Started).Round(time.Millisecond))...)
}

// typeCounts is "regular=2,source.local=1", in the order of cache.Types.
func typeCounts(types map[cache.Type]int64) string {
	text := ""
	for _, kind := range cache.Types() {
		if n := types[kind]; n > 0 {
			if text != "" {
				text += ","
			}
			text += fmt.Sprintf("%s=%d", kind, n)
		}
	}
	return text
}
