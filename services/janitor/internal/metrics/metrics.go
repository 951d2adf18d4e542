// Package metrics shows how the registry is and what it holds. Labels are fixed
// sets: a repository is never one.
package metrics

import (
	"context"
	"errors"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
)

// Registry implements usage.Metrics, and takes reports of checks.
type Registry struct {
	check        metric.Int64Gauge
	checked      metric.Float64Gauge
	latency      metric.Float64Gauge
	bytes        metric.Int64Gauge
	repositories metric.Int64Gauge
	tags         metric.Int64Gauge
	manifests    metric.Int64Gauge
	blobs        metric.Int64Gauge
	surveyed     metric.Float64Gauge
	diskFree     metric.Int64Gauge
	diskTotal    metric.Int64Gauge

	runs        metric.Int64Counter
	duration    metric.Float64Histogram
	freed       metric.Int64Counter
	removed     metric.Int64Counter
	lastSuccess metric.Float64Gauge
	verified    metric.Int64Gauge
	quarantine  metric.Int64Gauge
	braked      metric.Int64Gauge
	doubts      metric.Int64Gauge
	notified    metric.Int64Counter
}

// New makes the instruments.
func New(provider metric.MeterProvider) (*Registry, error) {
	meter := provider.Meter("github.com/kilnbuild/kiln/services/janitor")
	var r Registry
	var errs []error
	count := func(into *metric.Int64Gauge, name, unit, description string) {
		gauge, err := meter.Int64Gauge(name, metric.WithUnit(unit), metric.WithDescription(description))
		*into = gauge
		errs = append(errs, err)
	}
	seconds := func(into *metric.Float64Gauge, name, description string) {
		gauge, err := meter.Float64Gauge(name, metric.WithUnit("s"), metric.WithDescription(description))
		*into = gauge
		errs = append(errs, err)
	}
	count(&r.check, "kiln.registry.check", "{state}", "1 for the state that a check found last, 0 for its other states")
	seconds(&r.checked, "kiln.registry.check.time", "When the registry was last checked, in seconds since 1970")
	seconds(&r.latency, "kiln.registry.latency", "Median time to an answer of the registry's API in the last check")
	count(&r.bytes, "kiln.registry.usage", "By",
		"Bytes: deduplicated and own are of what tags reach; stored, untagged and uploads are of the storage")
	count(&r.repositories, "kiln.registry.repositories", "{repository}", "Repositories in the catalogue")
	count(&r.tags, "kiln.registry.tags", "{tag}", "Tags")
	count(&r.manifests, "kiln.registry.manifests", "{manifest}", "Manifests that tags reach")
	count(&r.blobs, "kiln.registry.blobs", "{blob}", "Blobs that tags reach")
	seconds(&r.surveyed, "kiln.registry.survey.time", "When the registry was last looked at as a whole, in seconds since 1970")
	count(&r.diskFree, "kiln.registry.disk.free", "By", "Free bytes on the file system of the storage")
	count(&r.diskTotal, "kiln.registry.disk.size", "By", "Size of the file system of the storage")
	seconds(&r.lastSuccess, "kiln.registry.run.last_success", "When the last run that removes ended well, in seconds since 1970")
	count(&r.verified, "kiln.registry.verified", "{manifest}", "Manifests that the last run resolved when it ended, by whether they are whole")
	count(&r.quarantine, "kiln.registry.quarantine", "By", "Bytes in quarantine when the last run ended")
	count(&r.braked, "kiln.registry.run.braked", "{run}", "1 while the last run would have removed more than schedule.max_removal_percent, and waits for an approval")
	count(&r.doubts, "kiln.registry.doubts", "{manifest}",
		"Manifests of which the last run did not know what they name: nothing without a tag goes of their repositories")
	counter := func(into *metric.Int64Counter, name, unit, description string) {
		c, err := meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(description))
		*into = c
		errs = append(errs, err)
	}
	counter(&r.runs, "kiln.registry.runs", "{run}", "Runs by outcome and trigger")
	counter(&r.freed, "kiln.registry.freed", "By", "Bytes that runs have taken out of the registry")
	counter(&r.removed, "kiln.registry.removed", "{item}", "What runs have taken out of the registry, by kind")
	counter(&r.notified, "kiln.registry.notifications", "{event}", "Notifications of the registry by what became of them")
	duration, err := meter.Float64Histogram("kiln.registry.run.duration", metric.WithUnit("s"), metric.WithDescription("Time that a run took"),
		metric.WithExplicitBucketBoundaries(0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400))
	r.duration = duration
	return &r, errors.Join(append(errs, err)...)
}

// RunEnded implements enforce.Metrics.
func (r *Registry) RunEnded(ctx context.Context, ended run.Run) {
	if ended.Dry {
		return
	}
	outcome := attribute.String("outcome", strings.ToLower(string(ended.State)))
	r.runs.Add(ctx, 1, metric.WithAttributes(outcome, attribute.String("trigger", strings.ToLower(string(ended.Trigger)))))
	r.duration.Record(ctx, ended.Ended.Sub(ended.Started).Seconds(), metric.WithAttributes(outcome))
	r.freed.Add(ctx, ended.Removed.Bytes)
	for kind, n := range map[string]int64{"manifest": ended.Removed.Manifests, "blob": ended.Removed.Blobs, "upload": ended.Removed.Uploads} {
		r.removed.Add(ctx, n, metric.WithAttributes(attribute.String("kind", kind)))
	}
	if ended.State == run.Succeeded || ended.State == run.Partial && ended.Err == nil {
		r.lastSuccess.Record(ctx, float64(ended.Ended.UnixMilli())/1000)
	}
	r.verified.Record(ctx, ended.Verified-ended.Broken, metric.WithAttributes(attribute.Bool("whole", true)))
	r.verified.Record(ctx, ended.Broken, metric.WithAttributes(attribute.Bool("whole", false)))
}

// Braked implements enforce.Metrics.
func (r *Registry) Braked(ctx context.Context, is bool) {
	value := int64(0)
	if is {
		value = 1
	}
	r.braked.Record(ctx, value)
}

// Quarantined implements enforce.Metrics.
func (r *Registry) Quarantined(ctx context.Context, _, bytes int64) { r.quarantine.Record(ctx, bytes) }

// Doubted implements enforce.Metrics.
func (r *Registry) Doubted(ctx context.Context, manifests int64) { r.doubts.Record(ctx, manifests) }

// Notified implements notify.Metrics.
func (r *Registry) Notified(ctx context.Context, outcome string, n int) {
	r.notified.Add(ctx, int64(n), metric.WithAttributes(attribute.String("outcome", outcome)))
}

// Checked takes what checks found.
func (r *Registry) Checked(ctx context.Context, report check.Report) {
	for _, result := range report.Results {
		for _, state := range check.States() {
			value := int64(0)
			if state == result.State {
				value = 1
			}
			r.check.Record(ctx, value, metric.WithAttributes(
				attribute.String("check", result.Name), attribute.String("state", state.String())))
		}
		if result.Latency != nil {
			r.latency.Record(ctx, result.Latency.Seconds())
		}
		if result.Disk != nil {
			r.diskFree.Record(ctx, result.Disk.Free)
			r.diskTotal.Record(ctx, result.Disk.Total)
		}
	}
	r.checked.Record(ctx, float64(report.Time.UnixMilli())/1000)
}

// Surveyed implements usage.Metrics.
func (r *Registry) Surveyed(ctx context.Context, s usage.Snapshot) {
	bytes := func(kind string, n int64) {
		r.bytes.Record(ctx, n, metric.WithAttributes(attribute.String("kind", kind)))
	}
	bytes("deduplicated", s.Total.DeduplicatedBytes)
	bytes("own", s.Total.SumOwnBytes)
	if s.Storage != nil && s.Storage.Err == nil {
		bytes("stored", s.Storage.BlobBytes)
		bytes("untagged", s.Storage.UntaggedBytes)
		bytes("uploads", s.Storage.UploadBytes)
		if s.Storage.DiskTotal > 0 { // else it has no bound
			r.diskFree.Record(ctx, s.Storage.DiskFree)
			r.diskTotal.Record(ctx, s.Storage.DiskTotal)
		}
	}
	r.repositories.Record(ctx, s.Total.Repositories)
	r.tags.Record(ctx, s.Total.Tags)
	r.manifests.Record(ctx, s.Total.Manifests)
	r.blobs.Record(ctx, s.Total.Blobs)
	r.surveyed.Record(ctx, float64(s.Time.UnixMilli())/1000)
}
