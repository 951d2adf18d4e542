package gateway

import (
	"strings"
	"sync"

	controlapi "github.com/moby/buildkit/api/services/control"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/graph"
)

// sessionKey is the metadata in which a Session has its id; see
// session/grpchijack of BuildKit.
const sessionKey = "x-docker-expose-session-uuid"

// sessions keeps callers out of one another's sessions, through which a daemon
// reads a caller's files, secrets and credentials. A session belongs to the
// identity that names it first, in Session or in a Solve, for as long as any call
// names it: nobody else can open it or use it in that time. So a caller who names
// the session of another is refused when that is open, and one who named it before
// keeps the other from opening it. It guarantees nothing among callers without an
// identity, who are all one to the builder; and of graphs that the daemon itself
// reads, from a frontend or a file, it sees nothing: that ids are random holds there.
type sessions struct {
	mu   sync.Mutex
	byID map[string]*holding
}

// holding says whose a session is, and how many calls name it.
type holding struct {
	identity string
	calls    int
}

func newSessions() *sessions { return &sessions{byID: make(map[string]*holding)} }

// claim takes sessions for a call of an identity, all or none of them, until
// release is called. It returns a PERMISSION_DENIED fault when one is another's.
func (s *sessions) claim(identity string, ids []string) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if h := s.byID[id]; h != nil && h.identity != identity {
			return nil, fault.New(fault.PermissionDenied, "DENIED", "the session that the call names belongs to another caller",
				"name sessions only that the same caller opens")
		}
	}
	for _, id := range ids {
		h := s.byID[id]
		if h == nil {
			h = &holding{identity: identity}
			s.byID[id] = h
		}
		h.calls++
	}
	return func() { s.release(ids) }, nil
}

func (s *sessions) release(ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		h := s.byID[id]
		if h.calls--; h.calls == 0 {
			delete(s.byID, id)
		}
	}
}

// session passes a Session on.
func (g *Gateway) session(down grpc.ServerStream, conn *grpc.ClientConn) error {
	ctx := down.Context()
	release, err := g.sessions.claim(g.caller(ctx).Identity, metadata.ValueFromIncomingContext(ctx, sessionKey))
	if err != nil {
		return err
	}
	defer release()
	return pass(ctx, conn, methodSession, down, nil)
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
