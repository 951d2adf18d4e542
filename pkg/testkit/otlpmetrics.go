package testkit

import (
	"context"
	"slices"

	metricsv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
)

// otlpMetrics is the RPC for metrics.
type otlpMetrics struct {
	metricsv1.UnimplementedMetricsServiceServer
	of *OTLP
}

// Export keeps the names of metrics, by the service that they are of.
func (m otlpMetrics) Export(_ context.Context, req *metricsv1.ExportMetricsServiceRequest) (*metricsv1.ExportMetricsServiceResponse, error) {
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	for _, resource := range req.GetResourceMetrics() {
		service := serviceName(resource)
		for _, scope := range resource.GetScopeMetrics() {
			for _, metric := range scope.GetMetrics() {
				if !slices.Contains(m.of.metrics[service], metric.GetName()) {
					m.of.metrics[service] = append(m.of.metrics[service], metric.GetName())
				}
			}
		}
	}
	return &metricsv1.ExportMetricsServiceResponse{}, nil
}

// Metrics are the names of the metrics of a service that have come in so far.
func (o *OTLP) Metrics(service string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.metrics[service])
}
