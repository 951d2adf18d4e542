package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/builds"
	"github.com/kilnbuild/kiln/services/kiln/internal/secrets"
)

// startDetached uploads the context and starts a build that goes on by itself.
func (o *options) startDetached(ctx context.Context, tel *telemetry.Telemetry, stdout, stderr io.Writer) error {
	spec, err := o.spec()
	if err != nil {
		return err
	}
	c, err := o.dial(tel)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // nothing is left to lose
	var upload []client.UploadOption
	if path := spec.GetDockerfile().GetPath(); path != "" {
		upload = append(upload, client.Dockerfile(path))
	}
	up, err := c.UploadDir(ctx, o.project, o.contextDir, upload...)
	if err != nil {
		return o.conn.Explain(err)
	}
	spec.Context = &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: up.GetDigest()}}}
	b, err := c.Start(ctx, spec)
	if err != nil {
		return o.conn.Explain(err)
	}
	if o.format == "json" {
		return o.print(stdout, stderr, outcome{
			BuildID: b.GetId(), State: strings.TrimPrefix(b.GetState().String(), "BUILD_STATE_"), Tag: o.firstTag(), TraceID: b.GetTraceId(),
		}, nil)
	}
	return builds.PrintStarted(stdout, stderr, b.GetId())
}

// dial makes a client whose calls belong to the command's trace.
func (o *options) dial(tel *telemetry.Telemetry) (*client.Client, error) {
	return o.conn.Dial(client.WithDialOptions(grpc.WithStatsHandler(otelgrpc.NewClientHandler(
		otelgrpc.WithTracerProvider(tel.Tracer), otelgrpc.WithMeterProvider(tel.Meter), otelgrpc.WithPropagators(tel.Propagator),
	))))
}

// spec says in the contract's terms what the options ask for, but for the context.
func (o *options) spec() (*builderv1.BuildSpec, error) {
	spec := &builderv1.BuildSpec{
		Project: o.project, Target: o.target, Platforms: o.platforms, NoCache: o.noCache, NoCacheStages: o.noCacheFilter, Pull: o.pull,
	}
	var err error
	if spec.Dockerfile, err = o.dockerfile(); err != nil {
		return nil, err
	}
	if spec.BuildArgs, err = pairs("build-arg", o.buildArgs, true); err != nil {
		return nil, err
	}
	if spec.Labels, err = pairs("label", o.labels, false); err != nil {
		return nil, err
	}
	if spec.Secrets, err = secrets.Read(o.secrets); err != nil {
		return nil, err
	}
	if spec.SshKeys, err = secrets.ReadSSH(o.ssh); err != nil {
		return nil, err
	}
	if o.push {
		spec.Outputs = []*builderv1.Output{{Kind: &builderv1.Output_Registry{Registry: &builderv1.RegistryOutput{Tags: o.tags}}}}
	}
	spec.Cache = o.cachePolicy()
	return spec, nil
}

// cachePolicy says in the contract's terms where steps are read from and written to.
// Nil: nowhere but in the daemon's own cache.
func (o *options) cachePolicy() *builderv1.CachePolicy {
	from, to := o.cacheFrom, o.cacheTo
	if o.registryCache {
		imports, export := o.cacheEntries()
		from, to = append(from[:len(from):len(from)], imports...), append(to[:len(to):len(to)], export)
	}
	if len(from)+len(to) == 0 {
		return nil
	}
	policy := &builderv1.CachePolicy{Mode: builderv1.CacheMode_CACHE_MODE_EXPLICIT}
	for _, entry := range from {
		policy.Imports = append(policy.Imports, &builderv1.CacheEntry{Type: entry.Type, Attributes: entry.Attrs})
	}
	for _, entry := range to {
		policy.Exports = append(policy.Exports, &builderv1.CacheEntry{Type: entry.Type, Attributes: entry.Attrs})
	}
	return policy
}

// maxDockerfile is the contract's bound on a Dockerfile in a request, in bytes.
const maxDockerfile = 1 << 20

// dockerfile is the Dockerfile's path in the context or, when it lies elsewhere,
// its text.
func (o *options) dockerfile() (*builderv1.Dockerfile, error) {
	file := filepath.Join(o.dockerfileDir, o.dockerfileName)
	inside, err := filepath.Rel(o.contextDir, file)
	if err != nil {
		return nil, err
	}
	if filepath.IsLocal(inside) {
		return &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Path{Path: filepath.ToSlash(inside)}}, nil
	}
	if _, err := os.Stat(file + ".dockerignore"); err == nil {
		return nil, fmt.Errorf("--detach cannot send %s.dockerignore, for it is outside the context; move it and its Dockerfile into %s", file, o.contextDir)
	}
	text, err := os.ReadFile(file)
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxDockerfile:
		return nil, fmt.Errorf("--detach sends %s in the request, for it is outside the context, and it is larger than 1 MiB; move it into %s", file, o.contextDir)
	}
	return &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: string(text)}}, nil
}
