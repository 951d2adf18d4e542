package gateway

import (
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// A method that a new version of BuildKit adds is not served until somebody has said
// how.
func TestMethods_AreThoseOfBuildKitsServices(t *testing.T) {
	listed := make(map[string]bool)
	for _, service := range []grpc.ServiceDesc{
		controlapi.Control_ServiceDesc, gatewaypb.LLBBridge_ServiceDesc, contentapi.Content_ServiceDesc, tracepb.TraceService_ServiceDesc,
	} {
		for _, m := range service.Methods {
			listed["/"+service.ServiceName+"/"+m.MethodName] = true
		}
		for _, s := range service.Streams {
			listed["/"+service.ServiceName+"/"+s.StreamName] = true
		}
	}
	for name := range listed {
		if methods[name] == nil {
			t.Errorf("methods does not say how %s is handled", name)
		}
	}
	for name := range methods {
		if !listed[name] {
			t.Errorf("BuildKit has no method %s", name)
		}
	}
}
