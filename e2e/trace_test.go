package e2e_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// tracedStack is a stack whose daemon and builder send their spans to a collector.
func tracedStack(t *testing.T) (*stack, *testkit.OTLP) {
	t.Helper()
	collector := testkit.NewOTLP(t)
	addr := strings.TrimPrefix(collector.Endpoint(), "http://")
	return ownStack(t, lab.StackOptions{
		Buildkitd:  lab.BuildkitdOptions{OTLP: addr},
		BuilderEnv: lab.OTLPEnv(addr, "kiln-builder"),
	}), collector
}

// One trace holds the caller's span, the builder's and buildkitd's own, as one
// tree, and the build's events and record name it.
func TestS9_OneTraceFromTheCallerIntoBuildkitd(t *testing.T) {
	s, collector := tracedStack(t)
	ctx := labtest.Context(t, time.Minute)
	for _, kv := range lab.OTLPEnv(strings.TrimPrefix(collector.Endpoint(), "http://"), "caller") {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	tel := labtest.Must(telemetry.Setup(ctx, telemetry.Options{Service: "caller"}))(t)
	conn := labtest.Must(rpc.Dial(s.Builder.Addr, rpc.ClientOptions{Telemetry: tel}))(t)
	defer conn.Close()

	called, span := tel.Tracer.Tracer("e2e").Start(ctx, "the caller's own")
	r := readBuild(called, builderv1.NewBuilderServiceClient(conn), dockerfile("FROM "+s.base+"\nRUN echo "+unique()+"\n", s.ref("traced")))
	span.End()
	if r.err != nil || r.outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Fatalf("%v, %v", r.err, r.outcome)
	}
	if err := tel.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	trace := span.SpanContext().TraceID().String()
	if got := r.events[0].GetStarted().GetTraceId(); got != trace {
		t.Errorf("the first event says trace %s, the caller's is %s", got, trace)
	}
	if rec := labtest.Must(s.api.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: r.id()}))(t); rec.GetBuild().GetTraceId() != trace {
		t.Errorf("the record says trace %s, the caller's is %s", rec.GetBuild().GetTraceId(), trace)
	}
	isOneTree(t, collector, trace, "caller", "kiln-builder", "buildkitd")
}

// The same for `kiln build`, which goes through the gateway.
func TestS9_OneTraceOfKilnBuild(t *testing.T) {
	s, collector := tracedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo " + unique() + "\n"})
	kilnBuildIsOneTree(t, collector, s.Builder.Addr, dir, s.ref("traced"))
	if !slices.ContainsFunc(collector.Spans(), func(span testkit.Span) bool {
		return span.Service == "kiln-builder" && span.Name == "wait for a build slot"
	}) {
		t.Error("the trace does not tell the time in the queue")
	}
}

// kilnBuildIsOneTree builds a directory with kiln build, whose spans go to the
// collector too, and waits until the trace is whole.
func kilnBuildIsOneTree(t *testing.T, collector *testkit.OTLP, builder, dir, ref string) {
	t.Helper()
	labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Path: labtest.Must(lab.Bin("kiln"))(t),
		Args: []string{"build", dir, dir, ref, "--builder", builder, "--progress", "quiet"},
		Env:  lab.OTLPEnv(strings.TrimPrefix(collector.Endpoint(), "http://"), "kiln"),
	}))(t)
	labtest.Eventually(t, 10*time.Second, "the root span of kiln build", func() bool {
		for _, span := range collector.Spans() {
			if span.Service == "kiln" && span.ParentID == "" {
				isOneTree(t, collector, span.TraceID, "kiln", "kiln-builder", "buildkitd")
				return true
			}
		}
		return false
	})
}

// isOneTree waits until the trace has spans of all services, each of them below
// another span of the trace but for one root of the first service.
func isOneTree(t *testing.T, collector *testkit.OTLP, trace string, services ...string) {
	t.Helper()
	var why string
	complete := func() bool {
		ids, seen := map[string]testkit.Span{}, map[string]int{}
		for _, span := range collector.Spans() {
			if span.TraceID == trace {
				ids[span.SpanID] = span
				seen[span.Service]++
			}
		}
		for _, service := range services {
			if seen[service] == 0 {
				why = "no span of " + service
				return false
			}
		}
		roots, run := 0, false
		for _, span := range ids {
			run = run || span.Service == "buildkitd" && strings.Contains(span.Name, "RUN echo")
			if span.ParentID == "" && span.Service == services[0] {
				roots++
			} else if _, ok := ids[span.ParentID]; !ok {
				why = span.Service + ": " + span.Name + " has no parent in the trace"
				return false
			}
		}
		if why = "no span of the RUN step"; !run {
			return false
		}
		why = "not one root"
		return roots == 1
	}
	deadline := time.Now().Add(15 * time.Second)
	for !complete() {
		if time.Now().After(deadline) {
			for _, span := range collector.Spans() {
				t.Logf("%s %s <- %s %s: %s", span.TraceID, span.SpanID, span.ParentID, span.Service, span.Name)
			}
			t.Fatalf("trace %s: %s", trace, why)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
