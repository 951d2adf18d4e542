package enforce

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// awayRetry is how often caches that are away, or another's, are tried again, if the interval is
// not shorter.
const awayRetry = 10 * time.Second

// diskEvery is how often free disk is looked at.
const diskEvery = 2 * time.Second

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
}

// NewSchedule returns a schedule of all caches of an engine.
func NewSchedule(engine *Engine, interval time.Duration) *Schedule {
	return &Schedule{engine: engine, interval: interval, was: map[cache.Ref]status{}}
}

// Run goes on until ctx ends.
func (s *Schedule) Run(ctx context.Context) error {
	if len(s.engine.Caches) == 0 {
		<-ctx.Done()
		return nil
	}
	disk := time.NewTicker(diskEvery)
	defer disk.Stop()
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
			started := time.Now()
			missed := s.keep(ctx, run.Schedule, nil)
			pause := max(s.interval-time.Since(started), 0)
			if missed {
				pause = min(pause, awayRetry)
			}
			next.Reset(pause)
		case <-disk.C:
			if low := s.low(ctx); len(low) > 0 {
				s.keep(ctx, run.FreeDisk, low)
			}
		}
	}
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

// keep is one run. It reports whether a cache was away, or another's.
func (s *Schedule) keep(ctx context.Context, trigger run.Trigger, refs []cache.Ref) (missed bool) {
	types := map[cache.Type]int64{}
	r, err := s.engine.Run(ctx, Order{Trigger: trigger, Caches: refs, Force: true, All: true}, func(e Event) {
		if e.Removed != nil {
			types[e.Removed.Record.Type]++
		}
	})
	if ctx.Err() != nil {
		return false // Told to stop: not a fault of the caches.
	}
	if err != nil {
		return s.failed(ctx, err, refs)
	}
	for _, c := range r.Caches {
		missed = s.report(ctx, c) || missed
	}
	s.log(ctx, r, types)
	return missed
}

// failed is a run that was not begun.
func (s *Schedule) failed(ctx context.Context, err error, refs []cache.Ref) (missed bool) {
	if kind := fault.KindOf(err); kind != fault.Unavailable && kind != fault.AlreadyExists {
		s.engine.Log.ErrorContext(ctx, "run failed; the next one tries again", "error", err)
		return false
	}
	caches, err2 := s.engine.choose(refs)
	if err2 != nil {
		return false
	}
	for _, c := range caches {
		s.report(ctx, run.OfCache{Cache: c.Ref(), State: run.Failed, Err: asFault(err)})
	}
	return true
}

// status is how a run left a cache.
type status int

const (
	unseen status = iota // no run yet
	kept                 // the policy holds
	failed               // it answered with an error
	away                 // it did not answer
	busy                 // another cache manager has it
)

func statusOf(c run.OfCache) status {
	switch {
	case c.Err == nil:
		return kept
	case fault.KindOf(c.Err) == fault.Unavailable:
		return away
	case fault.KindOf(c.Err) == fault.AlreadyExists:
		return busy
	default:
		return failed
	}
}

// report logs how a run left a cache. One that stays away is logged once.
func (s *Schedule) report(ctx context.Context, c run.OfCache) (missed bool) {
	was, now := s.was[c.Cache], statusOf(c)
	s.was[c.Cache] = now
	log := s.engine.Log.With(label(c.Cache))
	switch {
	case now == was && now != failed:
	case now == away:
		log.WarnContext(ctx, "cache is away; it is not kept to the policy until it is back", "error", fault.Line(c.Err))
	case now == busy:
		log.InfoContext(ctx, "cache is kept to a policy by another cache manager", "error", fault.Line(c.Err))
	case now == failed:
		log.ErrorContext(ctx, "run failed; the next one tries again", "error", fault.Line(c.Err))
	case was == away:
		log.InfoContext(ctx, "cache is back")
	}
	return now == away || now == busy
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
