package cachemanager

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/pkg/statedir"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// The policy of a cache manager that was told nothing.
const (
	defaultKeepAge   = 48 * time.Hour
	defaultKeepBytes = 100_000_000_000
	defaultInterval  = 10 * time.Minute
	defaultGrace     = time.Hour
	// defaultMaxRemoval is the share of a cache, in percent.
	defaultMaxRemoval = 50
)

// DefaultConfig returns the configuration of a cache manager that was told
// nothing.
func DefaultConfig() *configv1.CacheManagerConfig { return Complete(&configv1.CacheManagerConfig{}) }

// Complete returns a copy of cfg with a default in each unset field.
func Complete(cfg *configv1.CacheManagerConfig) *configv1.CacheManagerConfig {
	out := proto.CloneOf(cfg)
	if out.Server == nil {
		out.Server = &configv1.ServerConfig{}
	}
	out.Server.Listen = cmp.Or(out.Server.Listen, "127.0.0.1:50052")
	out.Server.HttpListen = cmp.Or(out.Server.HttpListen, "127.0.0.1:9462")
	if len(out.Daemons) == 0 && len(out.Directories) == 0 {
		out.Daemons = []*configv1.DaemonConfig{{Address: "unix:///run/buildkit/buildkitd.sock"}}
	}
	for _, daemon := range out.Daemons {
		daemon.Name = cmp.Or(daemon.Name, "default")
	}
	for _, directory := range out.Directories {
		if directory.Grace == nil {
			directory.Grace = durationpb.New(defaultGrace)
		}
	}
	if out.KeepAge == nil {
		out.KeepAge = durationpb.New(defaultKeepAge)
	}
	if out.MaxRemovalPercent == nil {
		out.MaxRemovalPercent = proto.Int32(defaultMaxRemoval)
	}
	out.KeepBytes = cmp.Or(out.KeepBytes, defaultKeepBytes)
	out.StateDir = cmp.Or(out.StateDir, statedir.Default("cachemanager"))
	if out.Interval == nil {
		out.Interval = durationpb.New(defaultInterval)
	}
	return out
}

// Command is the kiln-cachemanager command.
func Command() *cobra.Command {
	return service.Command(service.Spec[*configv1.CacheManagerConfig]{
		Name:      "kiln-cachemanager",
		Short:     "Keeps the caches of buildkitd daemons to a policy of age and size",
		EnvPrefix: "KILN_CACHEMANAGER",
		Example: `  # With buildkitd at its usual socket: unused for 48 hours goes, then down to 100 GB:
  kiln-cachemanager

  # Another policy:
  kiln-cachemanager --set keep_age=24h --set keep_bytes=20GB

  # A directory of BuildKit's type=local cache too:
  kiln-cachemanager --set 'directories=[{path: /var/cache/buildkit-cache}]'

  # Several daemons:
  kiln-cachemanager --set 'daemons=[{name: a, address: "unix:///run/a.sock"}, {name: b, address: "tcp://10.0.0.2:1234"}]'`,
		NewConfig: func() *configv1.CacheManagerConfig {
			cfg := DefaultConfig()
			cfg.Daemons = nil // the default one is there only when nothing else is
			return cfg
		},
		Complete: func(cfg *configv1.CacheManagerConfig) {
			complete := Complete(cfg)
			proto.Reset(cfg)
			proto.Merge(cfg, complete)
		},
		Run: func(ctx context.Context, cfg *configv1.CacheManagerConfig, tel *telemetry.Telemetry) error {
			s, err := New(ctx, cfg, tel)
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	})
}
