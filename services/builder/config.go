package builder

import (
	"cmp"
	"context"
	"os"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// DefaultConfig returns the configuration of a builder that was told nothing.
func DefaultConfig() *configv1.BuilderConfig { return Complete(&configv1.BuilderConfig{}) }

// Complete returns a copy of cfg with a default in each unset field.
func Complete(cfg *configv1.BuilderConfig) *configv1.BuilderConfig {
	out := proto.CloneOf(cfg)
	if out.Server == nil {
		out.Server = &configv1.ServerConfig{}
	}
	out.Server.Listen = cmp.Or(out.Server.Listen, "127.0.0.1:50051")
	out.Server.HttpListen = cmp.Or(out.Server.HttpListen, "127.0.0.1:9461")
	if out.Server.Limits == nil {
		out.Server.Limits = &configv1.LimitsConfig{}
	}
	if out.Server.Limits.ShutdownGrace == nil {
		out.Server.Limits.ShutdownGrace = durationpb.New(15 * time.Second)
	}
	if len(out.Daemons) == 0 {
		out.Daemons = []*configv1.DaemonConfig{{Address: "unix:///run/buildkit/buildkitd.sock"}}
	}
	for _, daemon := range out.Daemons {
		daemon.Name = cmp.Or(daemon.Name, "default")
	}
	if out.Egress == nil {
		out.Egress = &configv1.EgressConfig{}
	}
	out.Egress.Listen = cmp.Or(out.Egress.Listen, egressOff)
	out.CacheRepository = cmp.Or(out.CacheRepository, "localhost:5000/cache")
	if out.MaxBuildTime == nil {
		out.MaxBuildTime = durationpb.New(time.Hour)
	}
	out.MaxBuildsKept = cmp.Or(out.MaxBuildsKept, 1000)
	out.MaxRunningBuilds = cmp.Or(out.MaxRunningBuilds, 64)
	return out
}

// Command is the kiln-builder command.
func Command() *cobra.Command {
	return service.Command(service.Spec[*configv1.BuilderConfig]{
		Name:      "kiln-builder",
		Short:     "Takes builds over gRPC and solves them on buildkitd daemons",
		EnvPrefix: "KILN_BUILDER",
		Example: `  # With buildkitd at its usual socket and a registry at localhost:5000:
  kiln-builder

  # On another port, letting requests name directories below /srv/src:
  kiln-builder --set server.listen=127.0.0.1:6000 --set 'allowed_roots=["/srv/src"]'

  # See the whole configuration:
  kiln-builder --config builder.yaml --print-config`,
		NewConfig: DefaultConfig,
		Run: func(ctx context.Context, cfg *configv1.BuilderConfig, tel *telemetry.Telemetry) error {
			if err := service.NoCoreDumps(); err != nil { // Builds bring secrets.
				return err
			}
			shareProcessors()
			s, err := New(ctx, cfg, tel)
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	})
}

// shareProcessors leaves half of the host's processors to what runs beside the
// builder, as a rule buildkitd, unless GOMAXPROCS says otherwise. The builder
// mostly passes small messages on; a thread that wakes on another processor for
// each of them takes more from the daemon than it gives to the builder
// (gateway_added_vs_direct_buildctl of `make bench` shows it on two processors).
func shareProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	}
}
