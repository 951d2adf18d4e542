// Package metrics shows how the registry is and what it holds. Labels are fixed
// sets: a repository is never one.
package metrics

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/kilnbuild/kiln/services/janitor/internal/check"
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
	return &r, errors.Join(errs...)
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
		r.diskFree.Record(ctx, s.Storage.DiskFree)
		r.diskTotal.Record(ctx, s.Storage.DiskTotal)
	}
	r.repositories.Record(ctx, s.Total.Repositories)
	r.tags.Record(ctx, s.Total.Tags)
	r.manifests.Record(ctx, s.Total.Manifests)
	r.blobs.Record(ctx, s.Total.Blobs)
	r.surveyed.Record(ctx, float64(s.Time.UnixMilli())/1000)
}
