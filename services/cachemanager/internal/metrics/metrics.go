// Package metrics shows what the caches hold and what runs do. Labels are bounded
// by the configuration: caches, and fixed sets of types, reasons and outcomes.
package metrics

import (
	"context"
	"errors"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/usage"
)

// Runs implements enforce.Metrics with OpenTelemetry.
type Runs struct {
	runs         metric.Int64Counter
	duration     metric.Float64Histogram
	freedBytes   metric.Int64Counter
	freedRecords metric.Int64Counter
	lastSuccess  metric.Float64Gauge
	bytes        metric.Int64Gauge
	records      metric.Int64Gauge
	unreadable   metric.Int64Gauge
	held         metric.Int64Gauge
}

// New makes the instruments.
func New(provider metric.MeterProvider) (*Runs, error) {
	meter := provider.Meter("github.com/kilnbuild/kiln/services/cachemanager")
	var r Runs
	var errs [9]error
	r.runs, errs[0] = meter.Int64Counter("kiln.cache.runs",
		metric.WithDescription("Runs of the policy on a cache, by outcome and trigger"), metric.WithUnit("{run}"))
	r.duration, errs[1] = meter.Float64Histogram("kiln.cache.run.duration",
		metric.WithDescription("Time that a run took"), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600))
	r.freedBytes, errs[2] = meter.Int64Counter("kiln.cache.freed",
		metric.WithDescription("Bytes of records that runs have removed, by reason"), metric.WithUnit("By"))
	r.freedRecords, errs[3] = meter.Int64Counter("kiln.cache.freed.records",
		metric.WithDescription("Records that runs have removed, by reason"), metric.WithUnit("{record}"))
	r.lastSuccess, errs[4] = meter.Float64Gauge("kiln.cache.run.last_success",
		metric.WithDescription("When the last run ended well, in seconds since 1970"), metric.WithUnit("s"))
	r.bytes, errs[5] = meter.Int64Gauge("kiln.cache.usage",
		metric.WithDescription("Bytes of the records of a cache when it was listed last, by type"), metric.WithUnit("By"))
	r.records, errs[6] = meter.Int64Gauge("kiln.cache.records",
		metric.WithDescription("Records of a cache when it was listed last, by type"), metric.WithUnit("{record}"))
	r.unreadable, errs[7] = meter.Int64Gauge("kiln.cache.records.unreadable",
		metric.WithDescription("Records of a cache that could not be read when it was listed last; they stay"), metric.WithUnit("{record}"))
	r.held, errs[8] = meter.Int64Gauge("kiln.cache.policy.held",
		metric.WithDescription("1 while the policy in force would remove too much and waits for approval"), metric.WithUnit("{policy}"))
	return &r, errors.Join(errs[:]...)
}

// RunEnded implements enforce.Metrics.
func (r *Runs) RunEnded(ctx context.Context, ended run.Run) {
	if ended.Dry {
		return
	}
	for _, c := range ended.Caches {
		name := label(c.Cache)
		outcome := attribute.String("outcome", strings.ToLower(string(c.State)))
		r.runs.Add(ctx, 1, metric.WithAttributes(name, outcome, attribute.String("trigger", strings.ToLower(string(ended.Trigger)))))
		r.duration.Record(ctx, ended.Ended.Sub(ended.Started).Seconds(), metric.WithAttributes(name, outcome))
		for _, reason := range []plan.Reason{plan.Age, plan.Bytes, plan.Records, plan.FreeDisk, plan.Cleaned} { // Also those that removed nothing.
			attrs := metric.WithAttributes(name, attribute.String("reason", string(reason)))
			r.freedBytes.Add(ctx, c.Reasons[reason].Bytes, attrs)
			r.freedRecords.Add(ctx, c.Reasons[reason].Records, attrs)
		}
		if c.State == run.Succeeded {
			r.lastSuccess.Record(ctx, float64(ended.Ended.UnixMilli())/1000, metric.WithAttributes(name))
		}
	}
}

// CacheSeen implements enforce.Metrics.
func (r *Runs) CacheSeen(ctx context.Context, listing cache.Listing) {
	byType := map[cache.Type]usage.Totals{}
	for _, t := range usage.Summarize(listing).Types {
		byType[t.Type] = t.Totals
	}
	for _, t := range cache.Types() { // Also those that have no records any more.
		attrs := metric.WithAttributes(label(listing.Cache), attribute.String("type", string(t)))
		r.bytes.Record(ctx, byType[t].Bytes, attrs)
		r.records.Record(ctx, byType[t].Records, attrs)
	}
	r.unreadable.Record(ctx, listing.Unreadable, metric.WithAttributes(label(listing.Cache)))
}

// PolicyHeld implements enforce.Metrics.
func (r *Runs) PolicyHeld(ctx context.Context, held bool) {
	value := int64(0)
	if held {
		value = 1
	}
	r.held.Record(ctx, value)
}

// label names a cache.
func label(ref cache.Ref) attribute.KeyValue {
	if ref.Directory != "" {
		return attribute.String("directory", ref.Directory)
	}
	return attribute.String("daemon", ref.Daemon)
}
