package janitor

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/growth"
	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/metrics"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
)

// watch checks the registry and looks at the whole of it now and then, for the
// metrics and the log.
type watch struct {
	checker  *check.Checker
	surveyor *usage.Surveyor
	gauges   *metrics.Registry
	tracer   trace.Tracer
	log      *slog.Logger
	samples  sampler
	every    time.Duration
}

// sampler keeps what the registry held, for forecasts.
type sampler interface {
	AddSample(ctx context.Context, s growth.Sample) error
}

// Check checks the registry; the metrics show what it found.
func (w *watch) Check(ctx context.Context, names []string) (check.Report, error) {
	report, err := w.checker.Check(ctx, names)
	if err == nil {
		w.gauges.Checked(ctx, report)
	}
	return report, err
}

// run goes on until ctx ends. A look that takes long makes the next one later:
// looking must not be what keeps a large registry busy.
func (w *watch) run(ctx context.Context) error {
	var was []check.State
	for {
		started := time.Now()
		was = w.once(ctx, was)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(w.every, surveyShare*time.Since(started))):
		}
	}
}

// surveyShare bounds the part of the time that is spent on looking at the
// registry: one in so much.
const surveyShare = 20

// once checks and looks once, and returns the states that the checks found.
func (w *watch) once(ctx context.Context, was []check.State) []check.State {
	ctx, span := w.tracer.Start(ctx, "registry watch")
	defer span.End()
	report, err := w.Check(ctx, check.Passive())
	if err != nil {
		return was // The end.
	}
	states := make([]check.State, len(report.Results))
	away := false
	for i, r := range report.Results {
		states[i] = r.State
		away = away || (r.Name == check.Reachable && r.State == check.Fail)
		w.report(ctx, r, was, i)
	}
	if away {
		return states
	}
	if s, err := w.surveyor.Survey(ctx); err != nil && ctx.Err() == nil {
		w.log.WarnContext(ctx, "the registry could not be looked at as a whole", "error", fault.Line(err))
	} else if err == nil {
		w.sample(ctx, s)
		w.log.DebugContext(ctx, "registry", "repositories", s.Total.Repositories, "tags", s.Total.Tags,
			"deduplicated_bytes", s.Total.DeduplicatedBytes)
	}
	return states
}

// sample keeps what the registry holds now: on its disk, where that is known.
func (w *watch) sample(ctx context.Context, s usage.Snapshot) {
	bytes := s.Total.DeduplicatedBytes
	if s.Storage != nil && s.Storage.Err == nil {
		bytes = s.Storage.BlobBytes
	}
	if err := w.samples.AddSample(ctx, growth.Sample{Time: s.Time, Bytes: bytes}); err != nil && ctx.Err() == nil {
		w.log.WarnContext(ctx, "what the registry holds cannot be kept for forecasts", "error", fault.Line(err))
	}
}

// report logs what a check found when that is bad and news, or good again.
func (w *watch) report(ctx context.Context, r check.Result, was []check.State, i int) {
	before := check.OK
	if i < len(was) {
		before = was[i]
	}
	switch {
	case r.State >= check.Warn && r.State != before:
		w.log.WarnContext(ctx, "check of the registry", "check", r.Name, "state", r.State.String(), "message", r.Message, "remedy", r.Remedy)
	case r.State < check.Warn && before >= check.Warn:
		w.log.InfoContext(ctx, "check of the registry", "check", r.Name, "state", r.State.String(), "message", r.Message)
	}
}
