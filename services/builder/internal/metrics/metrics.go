// Package metrics counts what the builder does. No label is without a bound: a
// project or a tag is never one.
package metrics

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Builds implements build.Metrics with OpenTelemetry.
type Builds struct {
	running  metric.Int64UpDownCounter
	ended    metric.Int64Counter
	duration metric.Float64Histogram
	steps    metric.Int64Counter
	waited   metric.Float64Histogram
}

// New makes the instruments.
func New(provider metric.MeterProvider) (*Builds, error) {
	meter := provider.Meter("github.com/kilnbuild/kiln/services/builder")
	var b Builds
	var errs [5]error
	b.running, errs[0] = meter.Int64UpDownCounter("kiln.builds.running",
		metric.WithDescription("Builds that are running"), metric.WithUnit("{build}"))
	b.ended, errs[1] = meter.Int64Counter("kiln.builds",
		metric.WithDescription("Builds that have ended, by origin, outcome and reason"), metric.WithUnit("{build}"))
	b.duration, errs[2] = meter.Float64Histogram("kiln.build.duration",
		metric.WithDescription("Time from a build's coming to its end"), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600))
	b.steps, errs[3] = meter.Int64Counter("kiln.build.steps",
		metric.WithDescription("Steps of builds that have ended, cached or not"), metric.WithUnit("{step}"))
	b.waited, errs[4] = meter.Float64Histogram("kiln.build.queue.duration",
		metric.WithDescription("Time from a build's coming to its turn"), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600))
	return &b, errors.Join(errs[:]...)
}

// BuildStarted implements build.Metrics.
func (b *Builds) BuildStarted(ctx context.Context, origin build.Origin) {
	b.running.Add(ctx, 1, metric.WithAttributes(attribute.String("origin", origin.String())))
}

// BuildWaited implements build.Metrics.
func (b *Builds) BuildWaited(ctx context.Context, waited time.Duration) {
	b.waited.Record(ctx, waited.Seconds())
}

// BuildEnded implements build.Metrics.
func (b *Builds) BuildEnded(ctx context.Context, rec build.Record) {
	origin := attribute.String("origin", rec.Origin.String())
	outcome := attribute.String("outcome", rec.State.String())
	reason := attribute.String("reason", "")
	if rec.Outcome != nil && rec.Outcome.Failure != nil {
		reason = attribute.String("reason", rec.Outcome.Failure.Reason)
	}
	b.running.Add(ctx, -1, metric.WithAttributes(origin))
	b.ended.Add(ctx, 1, metric.WithAttributes(origin, outcome, reason))
	b.duration.Record(ctx, rec.Ended.Sub(rec.Created).Seconds(), metric.WithAttributes(origin, outcome))
	b.steps.Add(ctx, int64(rec.Steps.Cached), metric.WithAttributes(attribute.String("kind", "cached")))
	b.steps.Add(ctx, int64(rec.Steps.Total-rec.Steps.Cached), metric.WithAttributes(attribute.String("kind", "run")))
}
