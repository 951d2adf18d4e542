// Package attack does to a builder what clients do that mean harm.
package attack

import (
	"context"

	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/e2e/lab"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Target is what is attacked.
type Target struct {
	// Addr is the address of the builder, host:port or unix:///path.
	Addr string
	// Base is an image that builds may use.
	Base string
}

// Attack is one way to attack a builder.
type Attack struct {
	// Name says what the clients do.
	Name string
	// Run attacks until ctx ends. Its error is that the attack could not begin.
	Run func(ctx context.Context, s *Target) error
}

// All are the attacks.
var All = []Attack{
	{"nested graphs", nestedGraphs},
	{"16 MiB of names", names},
	{"10,000 streams on a connection", manyStreams},
	{"streams that are reset at once", rapidReset},
	{"readers that do not read", slowReaders},
	{"connections that say little", slowLoris},
	{"floods of pings", pingFlood},
	{"floods of settings", settingsFlood},
	{"steps with names of 1 MB", longStepNames},
	{"uploads without an end", endlessUploads},
	{"sessions that are never used", idleSessions},
	{"sessions that speak no HTTP/2", garbageSessions},
	{"refs by the thousand", manyRefs},
	{"large metadata", largeMetadata},
}

// dial connects to the builder until ctx ends.
func (s *Target) dial(ctx context.Context, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	conn, err := lab.Dial(s.Addr, opts...)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, nil
}

// Inline is a build of a Dockerfile.
func Inline(dockerfile string) *builderv1.BuildSpec {
	return &builderv1.BuildSpec{Context: &builderv1.Context{Kind: &builderv1.Context_Inline{Inline: &builderv1.InlineContext{
		Files: map[string]*builderv1.InlineFile{"Dockerfile": {Content: []byte(dockerfile)}},
	}}}}
}
