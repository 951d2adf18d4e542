package enforce

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// Timetable says when runs start by themselves.
type Timetable struct {
	Cron     string // empty: never
	TimeZone string
	Jitter   time.Duration
	parsed   cron.Schedule
	zone     *time.Location
}

// NewTimetable reads a cron expression; "off" is never. What cannot be read is an
// INVALID_ARGUMENT fault.
func NewTimetable(expression, zone string, jitter time.Duration) (t Timetable, err error) {
	t = Timetable{TimeZone: zone, Jitter: jitter}
	if t.zone, err = time.LoadLocation(zone); err != nil {
		return t, fault.Invalid("schedule.time_zone", zone, "is no time zone that this host knows", "write one like Europe/Vienna, or leave it out for UTC")
	}
	if expression == "off" {
		return t, nil
	}
	t.Cron = expression
	if t.parsed, err = cron.ParseStandard(expression); err != nil {
		return t, fault.Invalid("schedule.cron", expression, "is no cron expression: "+err.Error(), `write five fields like "23 3 * * *", "@hourly", "@every 30m", or "off"`)
	}
	return t, nil
}

func (t Timetable) next(after time.Time) time.Time { return t.parsed.Next(after.In(t.zone)) }

// Schedule starts runs by a timetable, and takes up those that did not end.
type Schedule struct {
	Timetable
	LowDisk LowDisk
	engine  *Engine

	mu      sync.Mutex
	next    time.Time
	last    string // id of the last run
	message string
}

// NewSchedule returns a schedule of an engine.
func NewSchedule(engine *Engine, t Timetable) *Schedule {
	return &Schedule{Timetable: t, engine: engine}
}

// Status is how a schedule stands.
type Status struct {
	Timetable
	Next    time.Time
	Last    string
	Message string // why runs do not start, or are put off
}

// Status is how it stands.
func (s *Schedule) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Timetable: s.Timetable, Next: s.next, Last: s.last, Message: s.message}
	if s.Cron == "" {
		out.Message = "runs are started by Run only: schedule.cron is off"
	}
	return out
}

// Run goes on until ctx ends.
func (s *Schedule) Run(ctx context.Context) error {
	s.TakeUp(ctx)
	if s.Cron != "" {
		var watching sync.WaitGroup
		watching.Go(func() { s.watchDisk(ctx) })
		defer watching.Wait()
	}
	for s.Cron != "" && ctx.Err() == nil {
		next := s.Timetable.next(time.Now())
		if s.Jitter > 0 {
			next = next.Add(rand.N(s.Jitter)) //nolint:gosec // no secret
		}
		s.set(func() { s.next = next })
		if sleep(ctx, time.Until(next)) == nil {
			s.start(ctx, run.Schedule)
		}
	}
	<-ctx.Done()
	s.engine.Wait()
	return nil
}

func (s *Schedule) set(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

func (s *Schedule) log(ctx context.Context, r run.Run) {
	attrs := []any{
		"run", r.ID, "state", string(r.State), "removed_manifests", r.Removed.Manifests, "removed_blobs", r.Removed.Blobs, "removed_bytes", r.Removed.Bytes,
		"waiting_bytes", r.Waiting.Bytes, "verified_manifests", r.Verified, "broken_manifests", r.Broken, "took", r.Ended.Sub(r.Started).Round(time.Millisecond),
	}
	if fault.ReasonOf(r.Err) == approvalNeeded {
		s.engine.Log.ErrorContext(ctx, "a run would remove too much and waits for an approval", append(attrs, "error", fault.Line(r.Err))...)
		return
	}
	if r.Err != nil {
		s.engine.Log.WarnContext(ctx, "the registry is kept to its policy, but for a part", append(attrs, "error", fault.Line(r.Err))...)
		return
	}
	s.engine.Log.InfoContext(ctx, "the registry is kept to its policy", attrs...)
}

// TakeUp goes on with the runs that did not end.
func (s *Schedule) TakeUp(ctx context.Context) {
	for ctx.Err() == nil {
		left, err := s.engine.Unfinished()
		if err != nil || len(left) == 0 {
			if err != nil {
				s.engine.Log.WarnContext(ctx, "whether runs were left unfinished cannot be seen; the next run looks again", "error", fault.Line(err))
			}
			return
		}
		a, err := s.engine.TakeUp(ctx, left[0])
		if err != nil {
			s.engine.Log.WarnContext(ctx, "a run that was left unfinished cannot be taken up; the next run puts it right", "run", left[0].Head.Run, "error", fault.Line(err))
			return
		}
		<-a.done
		s.log(ctx, a.Run())
		if a.Run().State == run.Interrupted || a.Run().State == run.Failed || a.Run().State == run.Partial {
			return // not again and again
		}
	}
}

// RunOnce carries an order out and waits for its end; emit, if not nil, is called for all
// that happens. When ctx ends, so does the run.
func (e *Engine) RunOnce(ctx context.Context, o Order, emit func(Event)) (run.Run, error) {
	a, err := e.Start(ctx, o, noSpan)
	if known, ok := errors.AsType[*ErrKnown](err); ok {
		return known.Run, nil
	}
	if err != nil {
		return run.Run{}, err
	}
	for from := 0; ; {
		events := a.Next(context.WithoutCancel(ctx), from)
		if len(events) == 0 {
			return a.Run(), nil
		}
		from += len(events)
		for _, event := range events {
			if emit != nil {
				emit(event)
			}
		}
	}
}
