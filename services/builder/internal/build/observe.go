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
		outcome.Steps = rec.Steps
	}
	o.service.end(ctx, o.id, outcome, 0)
}

// ObserveSteps remembers the steps of a build through the gateway. They may come
// after its end: a client reads the status until it has it all.
func (s *Service) ObserveSteps(id string, steps StepCounts) {
	s.records.Update(id, func(rec *Record) {
		if rec.Origin != OriginGateway {
			return
		}
		rec.Steps = steps
		if rec.Outcome != nil {
			outcome := *rec.Outcome
			outcome.Steps = steps
			rec.Outcome = &outcome
		}
	})
}
