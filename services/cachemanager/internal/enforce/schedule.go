package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Metrics takes what runs did.
type Metrics interface {
	RunEnded(ctx context.Context, run Run)
}

// awayRetry is how often a daemon that is away is asked again, if the interval
// is not shorter.
const awayRetry = 10 * time.Second

// Schedule applies the policy to each daemon soon after the start and then at
// each interval, on each daemon once at a time.
type Schedule struct {
	daemons  []Daemon
	enforcer *Enforcer
	interval time.Duration
	metrics  Metrics
	log      *slog.Logger
}

// NewSchedule returns a schedule. The interval is from start to start.
func NewSchedule[D Daemon](daemons []D, enforcer *Enforcer, interval time.Duration, metrics Metrics, log *slog.Logger) *Schedule {
	s := &Schedule{enforcer: enforcer, interval: interval, metrics: metrics, log: log}
	for _, d := range daemons {
		s.daemons = append(s.daemons, d)
	}
	return s
}

// Run goes on until ctx ends.
func (s *Schedule) Run(ctx context.Context) error {
	var tasks []lifecycle.Task
	for _, d := range s.daemons {
		tasks = append(tasks, lifecycle.Task{Name: "schedule of daemon " + d.Name(), Run: func(ctx context.Context) error {
			return s.keep(ctx, d)
		}})
	}
	return lifecycle.Run(ctx, tasks...)
}

// keep is the schedule of one daemon.
func (s *Schedule) keep(ctx context.Context, d Daemon) error {
	var was status
	for ctx.Err() == nil {
		run := s.enforcer.Apply(ctx, d)
		if errors.Is(run.Err, context.Canceled) {
			break // Told to stop: not a fault of the daemon.
		}
		s.metrics.RunEnded(ctx, run)
		now := statusOf(run.Err)
		s.report(ctx, run, was, now)
		was = now
		select {
		case <-ctx.Done():
		case <-time.After(pause(run, now, s.interval)):
		}
	}
	return nil
}

// status is how a run left a daemon.
type status int

const (
	unseen status = iota // no run yet
	kept                 // the policy holds
	failed               // it answered with an error
	away                 // it did not answer
)

func statusOf(err error) status {
	switch {
	case err == nil:
		return kept
	case fault.KindOf(err) == fault.Unavailable:
		return away
	default:
		return failed
	}
}

// pause is how long to wait from the end of a run to the start of the next.
func pause(run Run, now status, interval time.Duration) time.Duration {
	if now == away {
		return min(awayRetry, interval)
	}
	return max(interval-run.Ended.Sub(run.Started), 0)
}

// report logs what a run did. A daemon that stays away is logged once.
func (s *Schedule) report(ctx context.Context, run Run, was, now status) {
	log := s.log.With("daemon", run.Daemon)
	switch {
	case now == away && was == away:
		log.DebugContext(ctx, "daemon is still away", "error", run.Err)
		return
	case now == away:
		log.WarnContext(ctx, "daemon is away; its cache is not kept to the policy until it is back",
			"error", fault.Line(run.Err))
		return
	case now == failed:
		log.ErrorContext(ctx, "run failed; the next one tries again", append(facts(run), "error", run.Err)...)
		return
	case was == away:
		log.InfoContext(ctx, "daemon is back")
	}
	level := slog.LevelDebug
	if records, _ := run.Total(); records > 0 || was != kept {
		level = slog.LevelInfo
	}
	log.Log(ctx, level, "cache is kept to the policy", facts(run)...)
	if bound := s.enforcer.policy.KeepBytes; run.After.Total.CountedBytes() > bound {
		log.WarnContext(ctx, "cache is larger than the policy allows; what builds use cannot go",
			"bytes", run.After.Total.CountedBytes(), "keep_bytes", bound, "in_use_bytes", run.After.Total.InUseBytes)
	}
}

// facts are the figures of a run for the log.
func facts(run Run) []any {
	records, bytes := run.Total()
	out := []any{"freed_records", records, "freed_bytes", bytes}
	types := map[cache.Type]int64{}
	for _, f := range run.Freed {
		if f.Records == 0 {
			continue
		}
		out = append(out, slog.Group("by_"+string(f.Reason), "records", f.Records, "bytes", f.Bytes))
		for kind, n := range f.Types {
			types[kind] += n
		}
	}
	if len(types) > 0 {
		out = append(out, "freed_types", typeCounts(types))
	}
	return append(out, "bytes_before", run.Before.Total.Bytes, "bytes_after", run.After.Total.Bytes,
		"took", run.Ended.Sub(run.Started).Round(time.Millisecond))
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
