// Package telemetry sets up traces, metrics and logs for one service.
//
// Nothing is global: several services run in one process, each with its own.
// Where traces and metrics go is set by the standard OTEL_* variables; without
// them nothing is sent and no connection is tried. Prometheus metrics are always
// there, in Telemetry.Metrics.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"go.opentelemetry.io/otel/metric"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
	nooptrace "go.opentelemetry.io/otel/trace/noop"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// Options says what to set up.
type Options struct {
	// Service is the name in traces, metrics and logs, such as "kiln-builder".
	// OTEL_SERVICE_NAME overrides it in traces and metrics.
	Service string
	// Version is the version of the service. It may be empty.
	Version string
	// LogLevel is "debug", "info", "warn" or "error". Empty: info.
	LogLevel string
	// LogFormat is "text" or "json". Empty: text when LogWriter is a terminal,
	// else json.
	LogFormat string
	// LogWriter takes the log. Nil: standard error.
	LogWriter io.Writer
}

// Telemetry is what a service measures and logs with. No field is nil.
type Telemetry struct {
	// Tracer makes spans.
	Tracer trace.TracerProvider
	// Meter makes metrics.
	Meter metric.MeterProvider
	// Propagator carries W3C trace context and baggage over calls.
	Propagator propagation.TextMapPropagator
	// Logger logs; records made with a context carry trace_id and span_id.
	Logger *slog.Logger
	// Metrics answers Prometheus scrapes.
	Metrics http.Handler

	panics  metric.Int64Counter // nil: not counted
	closers *lifecycle.Stack
}

// Setup makes the telemetry of a service. Call Shutdown at the end, so that what
// is still in memory goes out.
func Setup(ctx context.Context, opts Options) (_ *Telemetry, err error) {
	logger, err := newLogger(opts)
	if err != nil {
		return nil, err
	}
	closers := &lifecycle.Stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, closers.Close(context.WithoutCancel(ctx)))
		}
	}()
	res, err := newResource(ctx, opts)
	if err != nil {
		return nil, err
	}
	tracer, err := newTracer(ctx, res, closers)
	if err != nil {
		return nil, err
	}
	meter, scrape, err := newMeter(ctx, res, closers)
	if err != nil {
		return nil, err
	}
	panics, err := newPanics(ctx, meter)
	if err != nil {
		return nil, err
	}
	return &Telemetry{
		Tracer: tracer, Meter: meter, Propagator: newPropagator(), Logger: logger, Metrics: scrape,
		panics: panics, closers: closers,
	}, nil
}

// Discard is telemetry that keeps nothing, for tests.
func Discard() *Telemetry {
	return &Telemetry{
		Tracer:     nooptrace.NewTracerProvider(),
		Meter:      noopmetric.NewMeterProvider(),
		Propagator: newPropagator(),
		Logger:     slog.New(slog.DiscardHandler),
		Metrics:    http.NotFoundHandler(),
		closers:    &lifecycle.Stack{},
	}
}

// Shutdown sends what is still in memory and stops, within ctx. Telemetry stays
// usable; what it is given then goes nowhere.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if t.closers == nil {
		return nil
	}
	return t.closers.Close(ctx)
}

// WithAttrs is the same telemetry with attributes on each log record.
func (t *Telemetry) WithAttrs(attrs ...any) *Telemetry {
	copied := *t
	copied.Logger = t.Logger.With(attrs...)
	copied.closers = nil // The original shuts down.
	return &copied
}

func newPropagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}

// newResource describes the process. Attributes from OTEL_RESOURCE_ATTRIBUTES
// and OTEL_SERVICE_NAME win, since an operator set them on purpose.
func newResource(ctx context.Context, opts Options) (*resource.Resource, error) {
	attrs := []resource.Option{
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithProcessPID(),
		resource.WithAttributes(semconv.ServiceName(opts.Service)),
	}
	if opts.Version != "" {
		attrs = append(attrs, resource.WithAttributes(semconv.ServiceVersion(opts.Version)))
	}
	res, err := resource.New(ctx, append(attrs, resource.WithFromEnv())...)
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("describing the process for telemetry: %w", err)
	}
	return res, nil
}
