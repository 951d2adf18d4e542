package telemetry

import (
	"context"

	"go.opentelemetry.io/otel/metric"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// newPanics makes the counter of recovered panics. It starts at zero, so that the
// first panic is an increase.
func newPanics(ctx context.Context, provider metric.MeterProvider) (metric.Int64Counter, error) {
	counter, err := provider.Meter("github.com/kilnbuild/kiln/pkg/telemetry").Int64Counter("kiln.panics",
		metric.WithDescription("Panics that were recovered: faults in Kiln or in a library"), metric.WithUnit("{panic}"))
	if err == nil {
		counter.Add(ctx, 0)
	}
	return counter, err
}

// Panicked logs a recovered panic with its stack, and counts it. It is a
// lifecycle.Reporter.
func (t *Telemetry) Panicked(ctx context.Context, p *lifecycle.PanicError) {
	p.Log(ctx, t.Logger)
	if t.panics != nil {
		t.panics.Add(ctx, 1)
	}
}
