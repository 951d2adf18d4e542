// Package gateway passes BuildKit's own API on to a daemon, message for message,
// so that unmodified BuildKit clients build through the builder. Their builds are
// builds like all others: they wait for their turn, are held to the policy, and
// leave a record and events.
package gateway

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// ProjectKey is the metadata key by which a client of the gateway may name the
// project of its build.
const ProjectKey = "kiln-project"

// The methods that are more than passed on.
const (
	controlMethods = "/moby.buildkit.v1.Control/"
	bridgeMethods  = "/moby.buildkit.v1.frontend.LLBBridge/"
	methodSolve    = controlMethods + "Solve"
	methodStatus   = controlMethods + "Status"
	methodSession  = controlMethods + "Session"
	methodPing     = bridgeMethods + "Ping"
)

// services are those of buildkitd that clients need. Its health and reflection
// are answered by the builder for itself.
var services = map[string]bool{
	"moby.buildkit.v1.Control":                            true,
	"moby.buildkit.v1.frontend.LLBBridge":                 true,
	"containerd.services.content.v1.Content":              true,
	"opentelemetry.proto.collector.trace.v1.TraceService": true,
}

// Upstream is a daemon that calls are passed on to.
type Upstream interface {
	Name() string
	Conn() *grpc.ClientConn
}

// Gateway passes calls on.
type Gateway struct {
	pick   func(context.Context) (Upstream, error)
	builds *build.Service
	policy buildkit.Policy
	caller func(context.Context) build.Caller

	solves   *solves
	sessions *sessions
	pongs    *pongs
}

// New returns a gateway to the daemons that pick returns, whose builds are taken
// by builds and held to the policy. caller says who makes a call.
func New(pick func(context.Context) (Upstream, error), builds *build.Service, policy buildkit.Policy, caller func(context.Context) build.Caller) *Gateway {
	return &Gateway{pick: pick, builds: builds, policy: policy, caller: caller, solves: newSolves(), sessions: newSessions(), pongs: newPongs()}
}

// ServerOptions are what a server needs that has the gateway.
func (g *Gateway) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnknownServiceHandler(g.Handle),
		grpc.ForceServerCodecV2(rawcodec.Codec{}),
		grpc.StaticStreamWindowSize(buildkit.StreamWindow),
		grpc.StaticConnWindowSize(buildkit.ConnectionWindow),
	}
}

// Handle serves every method that the server does not know by itself; see
// grpc.UnknownServiceHandler.
func (g *Gateway) Handle(_ any, down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if !services[service] {
		return status.Errorf(codes.Unimplemented, "unknown method %s", method)
	}
	upstream, err := g.pick(down.Context())
	if err != nil {
		return withRemedy(err)
	}
	switch {
	case method == methodSolve:
		err = g.solve(down, upstream)
	case method == methodStatus:
		err = g.status(down, upstream.Conn())
	case method == methodSession:
		err = g.session(down, upstream.Conn())
	case strings.HasPrefix(method, bridgeMethods):
		err = g.bridge(method, down, upstream)
	default:
		err = pass(down.Context(), upstream.Conn(), method, down, nil)
	}
	return withRemedy(err)
}

// withRemedy puts the remedy of a fault into its message: BuildKit's clients show
// nothing else.
func withRemedy(err error) error {
	own, ok := errors.AsType[*fault.Error](err)
	if !ok || own.Kind == fault.Internal {
		return err
	}
	shown := *own
	shown.Message, shown.Field, shown.Err = fault.Line(own), "", nil
	return &shown
}
