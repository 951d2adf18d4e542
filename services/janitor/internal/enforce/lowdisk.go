package enforce

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// How often the schedule looks at the disk, and how long it waits after a run for a full disk that
// freed nothing: the first time, twice as long each time after, and at most.
const (
	diskEvery    = 30 * time.Second
	firstBackoff = 5 * time.Minute
	maxBackoff   = 6 * time.Hour
)

// LowDisk says when the disk of the registry's storage is nearly full.
type LowDisk struct {
	Percent int32 // that has to be free; 0: the disk is not looked at
	Disk    func() (total, free int64, err error)
}

// low reports whether less is free than has to be. A storage without a bound is never full.
func (l LowDisk) low() bool {
	if l.Percent <= 0 || l.Disk == nil {
		return false
	}
	total, free, err := l.Disk()
	return err == nil && total > 0 && free*100 < total*int64(l.Percent)
}

// watchDisk starts a run whenever the disk is nearly full, until ctx ends. As long as that frees
// nothing, it waits ever longer.
func (s *Schedule) watchDisk(ctx context.Context) {
	backoff, next := firstBackoff, time.Time{}
	for sleep(ctx, diskEvery) == nil {
		switch {
		case !s.LowDisk.low():
			backoff, next = firstBackoff, time.Time{}
			continue
		case time.Now().Before(next):
			continue
		}
		r := s.start(ctx, run.LowDisk)
		if r.Removed.Bytes > 0 || !s.LowDisk.low() {
			backoff = firstBackoff
			continue
		}
		s.engine.Log.WarnContext(ctx, "the disk of the registry's storage is nearly full, and a run freed nothing",
			"next", backoff.String(), "remedy",
			"see `kiln janitor quarantine`, free it with `kiln janitor purge --force`, keep less by the policy, or enlarge the disk")
		next = time.Now().Add(backoff)
		backoff = min(2*backoff, maxBackoff)
	}
}

// start carries a run out that nobody has asked for, and waits for its end.
func (s *Schedule) start(ctx context.Context, why run.Trigger) run.Run {
	r, err := s.engine.RunOnce(ctx, Order{Trigger: why, Force: true, All: true}, nil)
	log := s.engine.Log
	switch {
	case ctx.Err() != nil:
	case fault.KindOf(err) == fault.AlreadyExists:
		s.set(func() { s.message = "the last start was left out: " + err.Error() })
		log.InfoContext(ctx, "a run is already under way; this one is skipped", "error", fault.Line(err))
	case err != nil:
		s.set(func() { s.message = "the last start failed: " + fault.Line(err) })
		log.ErrorContext(ctx, "run failed; the next one tries again", "error", fault.Line(err))
	default:
		message := ""
		if r.State == run.Failed {
			message = "the last run failed: " + fault.Line(r.Err)
		}
		s.set(func() { s.last, s.message = r.ID, message })
		s.log(ctx, r)
	}
	return r
}
