package enforce

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// do carries a run out, from its lock to its end.
func (j *job) do(ctx context.Context) {
	defer j.letGo()
	ctx, span := j.engine.Tracer.Start(ctx, "registry run", trace.WithAttributes(
		attribute.String("kiln.run", j.run.ID), attribute.String("kiln.trigger", string(j.run.Trigger)), attribute.Bool("kiln.dry_run", j.run.Dry)))
	defer span.End()
	if sc := span.SpanContext(); sc.IsSampled() {
		j.run.TraceID = sc.TraceID().String()
	}
	started := j.run
	j.emit(Event{Started: &started})
	err := j.carryOut(ctx)
	j.finish(ctx, err)
	span.SetAttributes(attribute.Int64("kiln.removed.manifests", j.run.Removed.Manifests), attribute.Int64("kiln.removed.bytes", j.run.Removed.Bytes))
	if j.run.Err != nil {
		fail(span, j.run.Err)
	}
	finished := j.run
	j.emit(Event{Finished: &finished})
}

// carryOut does the phases of the run. Its error is why it ended before its end.
func (j *job) carryOut(ctx context.Context) error {
	type step struct {
		phase run.Phase
		do    func(context.Context) error
	}
	steps := []step{
		{run.Prepare, j.prepare}, {run.Planning, j.plan}, {run.Manifests, j.manifests}, {run.List, j.sweep}, {run.Verify, j.verify}, {run.Purge, j.purge},
	}
	switch {
	case j.run.Dry:
		steps = []step{{run.Planning, j.plan}}
	case j.engine.Storage == nil:
		steps = []step{{run.Prepare, j.prepareByAPI}, {run.Planning, j.plan}, {run.Manifests, j.manifests}, {run.Verify, j.verifyByAPI}}
	}
	for _, step := range steps {
		err := j.phase(ctx, step.phase, step.do)
		if fault.ReasonOf(err) == approvalNeeded && j.q != nil && j.order.Trigger == run.LowDisk { // else the disk fills
			return errors.Join(err, j.phase(ctx, run.Purge, j.purge))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// phase does one phase, in a span of its own.
func (j *job) phase(ctx context.Context, p run.Phase, do func(context.Context) error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	ctx, span := j.engine.Tracer.Start(ctx, "registry run "+string(p))
	defer span.End()
	j.at(p, 0)
	err := do(ctx)
	if err != nil {
		fail(span, err)
	}
	return err
}

// at notes that a phase begins.
func (j *job) at(p run.Phase, total int64) {
	j.run.Progress = run.Progress{Phase: p, Total: total, Began: time.Now()}
	j.progress()
}

// progressEvery is how often progress is told.
const progressEvery = time.Second

func (j *job) progress() {
	j.active.set(j.run)
	p := j.run.Progress
	j.emit(Event{Progress: &p})
}

// done notes that so much of a phase is done, and tells it now and then.
func (j *job) done(n int, told *time.Time) {
	j.run.Progress.Done += int64(n)
	if time.Since(*told) > progressEvery {
		*told = time.Now()
		j.progress()
	}
}

func (j *job) emit(e Event) { j.active.emit(e) }

// tell says what became of things, and stores it. A run goes on also when that cannot be
// stored: what it did is in its journal.
func (j *job) tell(ctx context.Context, verdicts []plan.Verdict) {
	if len(verdicts) == 0 {
		return
	}
	for i := range verdicts {
		if verdicts[i].Remove {
			j.emit(Event{Removed: &verdicts[i]})
		} else {
			j.emit(Event{Kept: &verdicts[i]})
		}
	}
	if j.q == nil && !j.run.Dry { // what went was stored before it did
		verdicts = slices.DeleteFunc(slices.Clone(verdicts), func(v plan.Verdict) bool { return v.Remove })
		j.keepSoFar(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := j.engine.State.AddVerdicts(ctx, j.run.ID, verdicts); err != nil {
		j.engine.Log.ErrorContext(ctx, "what a run did cannot be stored", "run", j.run.ID, "error", err)
	}
}

// trouble notes what was in the way and does not end the run.
func (j *job) trouble(err error) { j.troubles = append(j.troubles, err) }

// finish says how the run went, lets go of what it holds, and stores it.
func (j *job) finish(ctx context.Context, err error) {
	if j.q != nil {
		err = errors.Join(err, j.conclude(err))
	}
	j.run.Ended = time.Now()
	j.judge(err)
	stored, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := j.engine.State.FinishRun(stored, j.run); err != nil {
		j.engine.Log.ErrorContext(ctx, "how a run ended cannot be stored", "run", j.run.ID, "error", err)
	}
	j.engine.Metrics.RunEnded(ctx, j.run)
	if !j.run.Dry {
		j.engine.Metrics.Braked(ctx, fault.ReasonOf(j.run.Err) == approvalNeeded)
	}
	j.active.set(j.run)
}

// conclude closes the journal. A run that was stopped stays open, to be taken up again.
func (j *job) conclude(err error) error {
	var undone error
	if err != nil {
		undone = j.showAll()
	}
	if !errors.Is(err, errStopped) && !errors.Is(err, context.Canceled) && undone == nil {
		undone = j.q.Note(quarantine.Line{End: true})
	}
	return errors.Join(undone, j.q.Close())
}

// judge makes the state of the run from what happened.
func (j *job) judge(err error) {
	did := j.run.Removed != (plan.Amount{})
	switch {
	case errors.Is(err, errCancelled):
		j.run.State = run.Cancelled
	case errors.Is(err, errStopped), errors.Is(err, context.Canceled):
		j.run.State = run.Interrupted
		j.run.Err = fault.New(fault.Aborted, "INTERRUPTED", "the janitor stopped while the run was under way", "the run is taken up again when the janitor is back")
	case err != nil && did:
		j.run.State, j.run.Err = run.Partial, asFault(err)
	case err != nil:
		j.run.State, j.run.Err = run.Failed, asFault(err)
	case len(j.troubles) > 0:
		j.run.State, j.run.Err = run.Partial, asFault(j.troubles[0])
	case j.spent && !j.run.Dry:
		j.run.State = run.Partial
	default:
		j.run.State = run.Succeeded
	}
	slices.SortStableFunc(j.run.Repositories, func(a, b run.RepositoryAmount) int { return int(min(1, max(-1, b.Bytes-a.Bytes))) })
	j.run.Repositories = j.run.Repositories[:min(len(j.run.Repositories), maxRepositories)]
}

// maxRepositories bounds what is told of a run by repository.
const maxRepositories = 1000

func asFault(err error) *fault.Error {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return known
	}
	return fault.Wrap(err, fault.Internal, "INTERNAL", "the run failed", "read the janitor's log")
}
