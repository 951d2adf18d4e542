package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/pkg/testkit"
)

// quiet clears what the environment of the test may say of telemetry.
func quiet(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
		"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_SERVICE_NAME", "OTEL_SDK_DISABLED", "OTEL_BSP_SCHEDULE_DELAY",
	} {
		t.Setenv(name, "")
	}
}

func setenv(t *testing.T, environ []string) {
	t.Helper()
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
}

func setup(t *testing.T, opts telemetry.Options) *telemetry.Telemetry {
	t.Helper()
	if opts.LogWriter == nil {
		opts.LogWriter = io.Discard
	}
	tel, err := telemetry.Setup(t.Context(), opts)
	if err != nil {
		t.Fatalf("Setup: %v", err)
	}
	return tel
}

func shutdown(t *testing.T, tel *telemetry.Telemetry) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	if err := tel.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestSpansAreExported(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	quiet(t)
	otlp := testkit.NewOTLP(t)
	setenv(t, otlp.Environ())
	// Two services in one process, as in `kiln up`.
	builder := setup(t, telemetry.Options{Service: "kiln-builder", Version: "v1"})
	janitor := setup(t, telemetry.Options{Service: "kiln-janitor"})
	ctx, parent := builder.Tracer.Tracer("test").Start(t.Context(), "build")
	_, child := janitor.Tracer.Tracer("test").Start(ctx, "lease")
	child.End()
	parent.End()
	shutdown(t, builder)
	shutdown(t, janitor)
	spans := map[string]testkit.Span{}
	for _, span := range otlp.Spans() {
		spans[span.Name] = span
	}
	build, lease := spans["build"], spans["lease"]
	if build.Service != "kiln-builder" || lease.Service != "kiln-janitor" {
		t.Errorf("services: %q %q", build.Service, lease.Service)
	}
	if build.ParentID != "" || lease.ParentID != build.SpanID || lease.TraceID != build.TraceID || build.TraceID != parent.SpanContext().TraceID().String() {
		t.Errorf("the spans are not one trace: %+v %+v", build, lease)
	}
}

// Without OTEL_* nothing is sent, and spans still have ids, for the logs.
func TestSpansHaveIDsWithoutExport(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	quiet(t)
	tel := setup(t, telemetry.Options{Service: "s"})
	_, span := tel.Tracer.Tracer("test").Start(t.Context(), "op")
	if !span.SpanContext().IsValid() {
		t.Error("a span has no id, so logs could not carry it")
	}
	span.End()
	shutdown(t, tel)
}

func TestServiceNameFromEnvironment(t *testing.T) {
	quiet(t)
	otlp := testkit.NewOTLP(t)
	setenv(t, append(otlp.Environ(), "OTEL_SERVICE_NAME=prod-builder"))
	tel := setup(t, telemetry.Options{Service: "kiln-builder"})
	_, span := tel.Tracer.Tracer("test").Start(t.Context(), "op")
	span.End()
	shutdown(t, tel)
	if spans := otlp.Spans(); len(spans) != 1 || spans[0].Service != "prod-builder" {
		t.Errorf("spans: %+v", spans)
	}
}

func TestExporterErrors(t *testing.T) {
	for _, name := range []string{"OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"} {
		t.Run(name, func(t *testing.T) {
			testkit.VerifyNoLeaks(t)
			quiet(t)
			t.Setenv(name, "nonsense")
			_, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "s", LogWriter: io.Discard})
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("error %v does not name %s", err, name)
			}
		})
	}
}

// A collector that does not answer must not hold up the end.
func TestShutdownIsBounded(t *testing.T) {
	quiet(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0") // Takes connections, says nothing.
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+listener.Addr().String())
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	tel := setup(t, telemetry.Options{Service: "s"})
	_, span := tel.Tracer.Tracer("test").Start(t.Context(), "op")
	span.End()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := tel.Shutdown(ctx); err == nil {
		t.Error("lost spans are not an error")
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("Shutdown took %s", took)
	}
}

func TestPrometheusMetrics(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	quiet(t)
	t.Setenv("OTEL_METRICS_EXPORTER", "prometheus") // Must not start a second HTTP server.
	first, second := setup(t, telemetry.Options{Service: "a"}), setup(t, telemetry.Options{Service: "b"})
	defer shutdown(t, first)
	defer shutdown(t, second)
	counter, err := first.Meter.Meter("test").Int64Counter("kiln.builds")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	scrape := func(tel *telemetry.Telemetry) string {
		answer := httptest.NewRecorder()
		tel.Metrics.ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
		return answer.Body.String()
	}
	if text := scrape(first); !strings.Contains(text, "kiln_builds_total") || !strings.Contains(text, "go_goroutines") {
		t.Errorf("metrics lack the counter or the process:\n%s", text)
	}
	if strings.Contains(scrape(second), "kiln_builds_total") {
		t.Error("one service shows the metrics of another")
	}
}

func TestLog(t *testing.T) {
	quiet(t)
	var out bytes.Buffer
	tel := setup(t, telemetry.Options{Service: "s", LogLevel: "warn", LogWriter: &out})
	defer shutdown(t, tel)
	ctx, span := tel.Tracer.Tracer("test").Start(t.Context(), "op")
	defer span.End()
	tel.Logger.InfoContext(ctx, "below the level")
	tel.WithAttrs("daemon", "d1").Logger.With("a", 1).WithGroup("g").WarnContext(ctx, "text", "b", 2)
	var record map[string]any
	if err := json.Unmarshal(out.Bytes(), &record); err != nil {
		t.Fatalf("not one JSON record: %v: %s", err, out.String())
	}
	if record["service"] != "s" || record["daemon"] != "d1" || record["msg"] != "text" {
		t.Errorf("record: %v", record)
	}
	ids := trace.SpanContextFromContext(ctx)
	if text := out.String(); !strings.Contains(text, ids.TraceID().String()) || !strings.Contains(text, ids.SpanID().String()) {
		t.Errorf("the record lacks the ids of the span: %s", text)
	}
}

func TestLogOptions(t *testing.T) {
	quiet(t)
	for _, opts := range []telemetry.Options{{LogLevel: "loud"}, {LogFormat: "xml"}} {
		if _, err := telemetry.Setup(t.Context(), opts); err == nil {
			t.Errorf("Setup took %+v", opts)
		}
	}
	var out bytes.Buffer
	tel := setup(t, telemetry.Options{Service: "s", LogFormat: "text", LogWriter: &out})
	defer shutdown(t, tel)
	tel.Logger.InfoContext(t.Context(), "hello")
	if !strings.Contains(out.String(), "level=INFO msg=hello service=s") {
		t.Errorf("text: %s", out.String())
	}
}

func TestDiscard(t *testing.T) {
	tel := telemetry.Discard()
	_, span := tel.Tracer.Tracer("test").Start(t.Context(), "op")
	span.End()
	tel.Logger.InfoContext(t.Context(), "nothing")
	if tel.Meter == nil || tel.Propagator == nil || tel.Metrics == nil {
		t.Error("a field is nil")
	}
	shutdown(t, tel)
	shutdown(t, tel)
}

type stackError struct{}

func (stackError) Error() string { return "short" }

func (stackError) Format(out fmt.State, verb rune) {
	_, _ = fmt.Fprint(out, "short\na stack of many lines")
}

func TestLogIsReadable(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			var out bytes.Buffer
			tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "s", LogWriter: &out, LogFormat: format})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tel.Shutdown(t.Context()) }()
			tel.Logger.Info("m", "took", 1500*time.Millisecond, "error", stackError{})
			if line := out.String(); !strings.Contains(line, "1.5s") || strings.Contains(line, "stack") || strings.Count(line, "\n") != 1 {
				t.Errorf("logged %q", line)
			}
		})
	}
}
