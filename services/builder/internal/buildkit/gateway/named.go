package gateway

import (
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/graph"
)

// openedBeside returns the sessions that a client opens beside a Solve.
func openedBeside(req *controlapi.SolveRequest) []string {
	var found named
	found.add(req.GetSession(), req.GetSourcePolicySession())
	found.attributes(req.GetFrontendAttrs())
	return found.ids
}

// sessionsOf returns the sessions that a request names, in its fields, in the
// attributes of its frontend, and in the sources of its graphs.
func sessionsOf(req proto.Message) ([]string, error) {
	var found named
	switch r := req.(type) {
	case *controlapi.SolveRequest:
		found.add(r.GetSession(), r.GetSourcePolicySession())
		found.attributes(r.GetFrontendAttrs())
		found.policies(r.GetSourcePolicy())
		found.graph(r.GetDefinition())
		for _, def := range r.GetFrontendInputs() {
			found.graph(def)
		}
	case *gatewaypb.SolveRequest:
		found.attributes(r.GetFrontendOpt())
		found.policies(r.GetSourcePolicies()...)
		found.graph(r.GetDefinition())
		for _, def := range r.GetFrontendInputs() {
			found.graph(def)
		}
	case *gatewaypb.ResolveImageConfigRequest:
		found.add(r.GetSessionID())
	case *gatewaypb.ResolveSourceMetaRequest:
		found.source(r.GetSource())
		found.policies(r.GetSourcePolicies()...)
	}
	return found.ids, found.err
}

// named gathers ids of sessions.
type named struct {
	ids []string
	err error
}

func (n *named) add(ids ...string) {
	for _, id := range ids {
		if id != "" {
			n.ids = append(n.ids, id)
		}
	}
}

// attributes reads those of the Dockerfile frontend; see frontend/dockerui of
// BuildKit.
func (n *named) attributes(attrs map[string]string) {
	for name, value := range attrs {
		if strings.HasPrefix(name, "local-sessionid:") {
			n.add(value)
		}
	}
}

// graph reads the sources of a graph, those of nested graphs included.
func (n *named) graph(def *pb.Definition) {
	err := graph.Walk(def, graph.Default, func(op *pb.Op) error {
		n.source(op.GetSource())
		return nil
	})
	if n.err == nil {
		n.err = err
	}
}

// policies reads the rules by which the daemon changes sources before it reads them.
func (n *named) policies(policies ...*spb.Policy) {
	for _, policy := range policies {
		for _, rule := range policy.GetRules() {
			n.source(&pb.SourceOp{Attrs: rule.GetUpdates().GetAttrs()})
		}
	}
}

func (n *named) source(source *pb.SourceOp) {
	n.add(source.GetAttrs()[pb.AttrLocalSessionID], source.GetAttrs()[pb.AttrOCILayoutSessionID])
}
