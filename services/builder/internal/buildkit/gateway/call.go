package gateway

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/protocodec"
	"github.com/kilnbuild/kiln/pkg/protolimit"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// call is one call of a client.
type call struct {
	grpc.ServerStream
	method string
	owner  owner
}

// owner identifies who made a call, a build or a session. The identity has the
// right to it; a connection is one client program.
type owner struct{ identity, connection string }

func (g *Gateway) ownerOf(ctx context.Context) owner {
	o := owner{identity: g.caller(ctx).Identity}
	if from, ok := peer.FromContext(ctx); ok {
		o.connection = from.Addr.String()
	}
	return o
}

// frame reads the request of a call that has one.
func (c *call) frame() (*rawcodec.Frame, error) {
	request := new(rawcodec.Frame)
	return request, c.RecvMsg(request)
}

// receive reads a request and decodes a copy of it into a fresh message. A request
// that cannot be decoded is not passed on: the daemon might read it in another way
// than the builder, and build what was not checked.
func (c *call) receive(into proto.Message) (*rawcodec.Frame, error) {
	request, err := c.frame()
	if err != nil {
		return nil, err
	}
	if err := protolimit.Unmarshal(request.Data.Materialize(), into, protolimit.Default); err != nil {
		return nil, unreadable(err)
	}
	return request, nil
}

// audit notes what a call is about, beside its project. Its error ends the call.
func (c *call) audit(attrs ...slog.Attr) error {
	return rpc.Audit(c.Context(), append(attrs, slog.String("project", project(c.Context())))...)
}

// brief returns as much of a name that a client chose as the audit log has.
func brief(name string) string { return name[:min(len(name), 128)] }

// project returns the project that the metadata of a call names.
func project(ctx context.Context) string {
	if named := metadata.ValueFromIncomingContext(ctx, ProjectKey); len(named) > 0 && build.ValidProject(named[0]) {
		return named[0]
	}
	return build.DefaultProject
}

// encoded returns a message as a frame that may be sent several times.
func encoded(m proto.Message) (*rawcodec.Frame, error) {
	raw, err := protocodec.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding a %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return rawcodec.FrameOf(raw), nil
}
