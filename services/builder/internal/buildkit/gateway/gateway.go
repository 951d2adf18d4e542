// Package gateway serves BuildKit's own API, so that unmodified BuildKit clients
// build through the builder. Their builds are builds like all others: they wait for
// a slot, are held to the policy, and leave a record and events.
//
// Every call finds its route first (the build or session that it names; see route),
// then the caller's right to it, then the daemon. methods.go lists every method of
// BuildKit's services and what is done with it; what is not listed is not served.
package gateway

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// ProjectKey is the metadata key by which a client of the gateway may name the
// project of its build.
const ProjectKey = "kiln-project"

// Options is what a gateway needs.
type Options struct {
	Daemons Daemons
	Builds  *build.Service
	Policy  buildkit.Policy
	// Caller says who makes a call.
	Caller func(context.Context) build.Caller
	// SyncKey returns the key under which a daemon keeps a client's files, from who the
	// client is, its project, and the key that it sent.
	SyncKey func(identity, project, sent string) string
	// Steps are those of the builds of all callers, and their secrets.
	Steps *mask.Steps
	Log   *slog.Logger
}

// Gateway serves BuildKit's API.
type Gateway struct {
	daemons Daemons
	builds  *build.Service
	policy  buildkit.Policy
	caller  func(context.Context) build.Caller
	syncKey func(identity, project, sent string) string
	steps   *mask.Steps
	log     *slog.Logger

	routes *routes
	pongs  *pongs
	queue  *contention
	blobs  *blobs
	held   *held

	spansUnderWay *semaphore.Weighted // by bytes
}

// New returns a gateway.
func New(o Options) *Gateway {
	return &Gateway{
		daemons: o.Daemons, builds: o.Builds, policy: o.Policy, caller: o.Caller, syncKey: o.SyncKey, steps: o.Steps, log: o.Log,
		routes: newRoutes(), pongs: newPongs(), queue: newContention(o.Builds.Waiting), blobs: newBlobs(), held: newHeld(),
		spansUnderWay: semaphore.NewWeighted(maxSpansUnderWay),
	}
}

// ServerOptions returns what a server needs to have the gateway.
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
	name, _ := grpc.MethodFromServerStream(down)
	method, ok := methods[name]
	if !ok {
		return status.Errorf(codes.Unimplemented, "unknown method %s", name)
	}
	c := &call{ServerStream: down, method: name, owner: g.ownerOf(down.Context())}
	done, err := g.held.enter(c.owner.identity)
	if err != nil {
		return withRemedy(err)
	}
	defer done()
	return withRemedy(method(g, c))
}

// current returns a daemon for a call that belongs to no build.
func (g *Gateway) current(ctx context.Context) (*upstream, error) {
	daemon, err := g.daemons.Current(ctx)
	if err != nil {
		return nil, err
	}
	return &upstream{daemon}, nil
}

// withRemedy adds the remedy of a fault to its message: BuildKit's clients show
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
