package e2e_test

import (
	"slices"
	"testing"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// The error at the end of a step is in its report, by both doors, though BuildKit
// clipped what the step wrote before to its other stream.
func TestFailure_ShowsTheEndOfAClippedStep(t *testing.T) {
	s := sharedStack(t)
	text := "FROM " + s.base + "\nRUN yes this line is standard output | head -c 3000000; echo it broke here >&2; exit 3\n"
	r, byRPC := s.fail(t, dockerfile(text))
	_, byGateway := s.throughGateway(t, nil, s.mounted(t, map[string]string{"Dockerfile": text}, nil))
	for door, f := range map[string]*errorsv1.BuildFailure{"RPC": byRPC, "gateway": byGateway} {
		tail := f.GetLogTail()
		if !f.GetLogClipped() || !slices.Contains(tail, "it broke here") || !slices.Contains(tail, "this line is standard output") {
			t.Errorf("%s: clipped %t, %q", door, f.GetLogClipped(), tail)
		}
	}
	if !slices.ContainsFunc(r.events, func(e *builderv1.BuildEvent) bool { return e.GetLog().GetClipped() }) {
		t.Error("no event says that output was clipped")
	}
}
