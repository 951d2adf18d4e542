package gateway

import (
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// Whether a method streams is written down by hand; the descriptors of the
// BuildKit version that is linked say whether that is true.
func TestStreamsAreThoseOfTheContracts(t *testing.T) {
	seen := make(map[string]bool)
	for _, service := range []grpc.ServiceDesc{
		controlapi.Control_ServiceDesc, gatewaypb.LLBBridge_ServiceDesc, contentapi.Content_ServiceDesc, tracepb.TraceService_ServiceDesc,
	} {
		if !services[service.ServiceName] {
			t.Errorf("service %s is not passed on", service.ServiceName)
		}
		for _, method := range service.Methods {
			if name := "/" + service.ServiceName + "/" + method.MethodName; streams[name] {
				t.Errorf("%s is unary", name)
			}
		}
		for _, stream := range service.Streams {
			name := "/" + service.ServiceName + "/" + stream.StreamName
			seen[name] = true
			if !streams[name] {
				t.Errorf("%s streams", name)
			}
		}
	}
	for name := range streams {
		if !seen[name] {
			t.Errorf("%s is in no contract", name)
		}
	}
}
