package build

import (
	"context"
	"time"
)

// Observed is a build that a client runs by itself through the gateway, and
// that is only looked at.
type Observed struct {
	service *Service
	id      string
	created time.Time
}

// Observe remembers a build that begins through the gateway. It returns nil when
// its id is known already: BuildKit itself refuses a ref that is in use.
func (s *Service) Observe(ctx context.Context, id, daemon, project string, tags []string, caller Caller) *Observed {
	now := time.Now()
	added := s.records.Add(Record{
		ID: id, Project: project, State: Running, Origin: OriginGateway, Created: now, Started: now,
		Daemon: daemon, Tags: tags, TraceID: caller.TraceID, Caller: caller.Identity,
	})
	if !added {
		return nil
	}
	s.metrics.BuildStarted(ctx, OriginGateway)
	return &Observed{service: s, id: id, created: now}
}

// End remembers how the build ended. Steps seen so far are kept.
func (o *Observed) End(ctx context.Context, state State, failure *Failure, outputs []OutputResult) {
	outcome := Outcome{State: state, Failure: failure, Outputs: outputs}
	outcome.Times.Total = time.Since(o.created)
	if rec, err := o.service.records.Get(o.id); err == nil {
		outcome.Steps, outcome.Times = rec.Steps, rec.times.within(outcome.Times.Total)
	}
	o.service.end(ctx, o.id, outcome, 0)
}

// ObserveProgress remembers how far a build through the gateway has come. It may
// do so after the build's end: a client reads the status until it has it all.
func (s *Service) ObserveProgress(id string, steps StepCounts, times PhaseTimes) {
	s.records.Update(id, func(rec *Record) {
		if rec.Origin != OriginGateway {
			return
		}
		rec.Steps, rec.times = steps, times
		if rec.Outcome != nil {
			outcome := *rec.Outcome // others may read the old one
			outcome.Steps, outcome.Times = steps, times.within(outcome.Times.Total)
			rec.Outcome = &outcome
		}
	})
}

// within gives the times a total. The solve cannot have taken longer than all.
func (t PhaseTimes) within(total time.Duration) PhaseTimes {
	t.Total = total
	t.Solve = max(0, min(t.Solve, total-t.Export))
	return t
}
