package telemetry

import (
	"strings"
	"testing"
)

func TestExportOnlyWhenAsked(t *testing.T) {
	for name, test := range map[string]struct {
		environ         []string
		traces, metrics bool
	}{
		"nothing":          {},
		"endpoint":         {environ: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4317"}, traces: true, metrics: true},
		"traces endpoint":  {environ: []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c:4317"}, traces: true},
		"metrics endpoint": {environ: []string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://c:4317"}, metrics: true},
		"exporter":         {environ: []string{"OTEL_TRACES_EXPORTER=otlp"}, traces: true},
		"none":             {environ: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4317", "OTEL_METRICS_EXPORTER=none"}, traces: true},
		"prometheus":       {environ: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4317", "OTEL_METRICS_EXPORTER=prometheus"}, traces: true},
		"disabled":         {environ: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4317", "OTEL_SDK_DISABLED=True"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, unset := range []string{
				"OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT",
				"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
			} {
				t.Setenv(unset, "")
			}
			for _, entry := range test.environ {
				key, value, _ := strings.Cut(entry, "=")
				t.Setenv(key, value)
			}
			if got := wanted("TRACES"); got != test.traces {
				t.Errorf("traces are exported: %v, want %v", got, test.traces)
			}
			if got := wanted("METRICS"); got != test.metrics {
				t.Errorf("metrics are exported: %v, want %v", got, test.metrics)
			}
		})
	}
}
