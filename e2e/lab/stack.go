package lab

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// StackOptions says what a stack is made of.
type StackOptions struct {
	// Buildkitd is for the daemon; the registry is added to its registries.
	Buildkitd BuildkitdOptions
	// Builder is for the builder; its daemon and cache repository are set.
	Builder *configv1.BuilderConfig
	// BuilderEnv is added to the builder's environment.
	BuilderEnv []string
	// ResolvConf is for the builder and the daemon; see Command.
	ResolvConf string
}

// Stack is a registry, a buildkitd and a builder that know one another.
type Stack struct {
	// Registry keeps the images and the caches.
	Registry *Registry
	// Buildkitd builds.
	Buildkitd *Buildkitd
	// Builder is kiln-builder.
	Builder *Service
}

// StartStack starts a stack and waits until all of it serves.
func (l *Lab) StartStack(ctx context.Context, opts StackOptions) (*Stack, error) {
	registry, err := l.StartRegistry(ctx, RegistryOptions{})
	if err != nil {
		return nil, err
	}
	opts.Buildkitd.Registries = append(opts.Buildkitd.Registries, registry.Addr)
	if opts.ResolvConf != "" {
		opts.Buildkitd.ResolvConf = opts.ResolvConf
	}
	daemon, err := l.StartBuildkitd(ctx, opts.Buildkitd)
	if err != nil {
		return nil, err
	}
	builder, err := l.StartBuilder(ctx, BuilderConfig(opts.Builder, daemon.Addr, registry.Addr), ServiceOptions{Env: opts.BuilderEnv, ResolvConf: opts.ResolvConf})
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, daemon.Tail(20))
	}
	return &Stack{Registry: registry, Buildkitd: daemon, Builder: builder}, nil
}

// BuilderConfig returns cfg, which may be nil, with its daemon and the registry
// of its caches set.
func BuilderConfig(cfg *configv1.BuilderConfig, daemon, registry string) *configv1.BuilderConfig {
	merged := &configv1.BuilderConfig{}
	if cfg != nil {
		merged = proto.CloneOf(cfg)
	}
	merged.Daemons = []*configv1.DaemonConfig{{Name: "lab", Address: daemon}}
	merged.CacheRepository = registry + "/cache"
	return merged
}
