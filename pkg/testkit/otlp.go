package testkit

import (
	"context"
	"encoding/hex"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	metricsv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Span is a span that the receiver got. Ids are lower-case hexadecimal.
type Span struct {
	TraceID  string
	SpanID   string
	ParentID string // Empty for a root.
	Name     string
	Service  string // The service.name of the resource.
}

// OTLP is an OpenTelemetry collector that keeps what it gets.
type OTLP struct {
	collectorv1.UnimplementedTraceServiceServer
	address string

	mu      sync.Mutex
	spans   []Span
	raw     [][]byte
	metrics map[string][]string // names, by service
}

// NewOTLP starts a collector for traces and metrics over gRPC, on loopback, until the end of
// the test.
func NewOTLP(t testing.TB) *OTLP {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listening for OTLP: %v", err)
	}
	o := &OTLP{address: listener.Addr().String(), metrics: map[string][]string{}}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, o)
	metricsv1.RegisterMetricsServiceServer(server, otlpMetrics{of: o})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("OTLP receiver: %v", err)
			}
		case <-time.After(stopWithin):
			t.Error("the OTLP receiver has not stopped")
		}
	})
	return o
}

// Endpoint is the value for OTEL_EXPORTER_OTLP_ENDPOINT, with
// OTEL_EXPORTER_OTLP_PROTOCOL=grpc.
func (o *OTLP) Endpoint() string { return "http://" + o.address }

// Environ is the environment that sends a process's traces here, at once.
func (o *OTLP) Environ() []string {
	return []string{
		"OTEL_TRACES_EXPORTER=otlp",
		"OTEL_METRICS_EXPORTER=none",
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + o.Endpoint(),
		"OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
		"OTEL_BSP_SCHEDULE_DELAY=100",
	}
}

// Spans is what has come in so far.
func (o *OTLP) Spans() []Span {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.spans)
}

// Raw is every message that has come in so far, as it was sent: for a search for
// what must not be in it.
func (o *OTLP) Raw() [][]byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.raw)
}

// Export is the RPC of the collector.
func (o *OTLP) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if raw, err := proto.Marshal(req); err == nil {
		o.raw = append(o.raw, raw)
	}
	for _, resource := range req.GetResourceSpans() {
		service := serviceName(resource)
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				o.spans = append(o.spans, Span{
					TraceID:  hex.EncodeToString(span.GetTraceId()),
					SpanID:   hex.EncodeToString(span.GetSpanId()),
					ParentID: hex.EncodeToString(span.GetParentSpanId()),
					Name:     span.GetName(),
					Service:  service,
				})
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func serviceName(resource interface{ GetResource() *resourcev1.Resource }) string {
	for _, attr := range resource.GetResource().GetAttributes() {
		if attr.GetKey() == "service.name" {
			return attr.GetValue().GetStringValue()
		}
	}
	return ""
}
