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
	"github.com/kilnbuild/kiln/pkg/statedir"
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
	out.MaxBuildsKept = cmp.Or(out.MaxBuildsKept, 10_000)
	out.MaxRunningBuilds = cmp.Or(out.MaxRunningBuilds, 64)
	out.StateDir = cmp.Or(out.StateDir, statedir.Default("builder"))
	completeStores(out)
	if out.Admission == nil {
		out.Admission = &configv1.AdmissionConfig{}
	}
	out.Admission.MaxQueued = cmp.Or(out.Admission.MaxQueued, 1000)
	out.Admission.MaxQueuedBytes = cmp.Or(out.Admission.MaxQueuedBytes, 256<<20)
	if out.Policy == nil {
		out.Policy = &configv1.BuildPolicyConfig{}
	}
	if out.Policy.Sources == nil {
		out.Policy.Sources = &configv1.SourcesConfig{}
	}
	if len(out.Policy.Sources.Schemes) == 0 {
		out.Policy.Sources.Schemes = []string{"https", "http", "ssh"}
	}
	if out.Egress == nil {
		out.Egress = &configv1.EgressConfig{}
	}
	out.Egress.Listen = cmp.Or(out.Egress.Listen, "off")
	return out
}

// completeStores sets the bounds of what the builder keeps.
func completeStores(out *configv1.BuilderConfig) {
	if out.Retention == nil {
		out.Retention = &configv1.RetentionConfig{}
	}
	keep := out.Retention
	keep.BuildAge = orDuration(keep.BuildAge, 30*24*time.Hour)
	keep.BuildBytes = cmp.Or(keep.BuildBytes, 2_000_000_000)
	keep.ArtifactAge = orDuration(keep.ArtifactAge, 7*24*time.Hour)
	keep.ArtifactBytes = cmp.Or(keep.ArtifactBytes, 20_000_000_000)
	keep.ProjectArtifactBytes = cmp.Or(keep.ProjectArtifactBytes, threeQuarters(keep.ArtifactBytes))
	keep.Interval = orDuration(keep.Interval, time.Minute)
	if out.Contexts == nil {
		out.Contexts = &configv1.ContextsConfig{}
	}
	contexts := out.Contexts
	contexts.KeepAge = orDuration(contexts.KeepAge, 48*time.Hour)
	contexts.KeepBytes = cmp.Or(contexts.KeepBytes, 20_000_000_000)
	contexts.ProjectBytes = cmp.Or(contexts.ProjectBytes, threeQuarters(contexts.KeepBytes))
	contexts.MaxBytes = cmp.Or(contexts.MaxBytes, 10_000_000_000)
	contexts.MaxEntries = cmp.Or(contexts.MaxEntries, 500_000)
	contexts.MaxRatio = cmp.Or(contexts.MaxRatio, 200)
	contexts.MaxDepth = cmp.Or(contexts.MaxDepth, 128)
	contexts.MaxPathBytes = cmp.Or(contexts.MaxPathBytes, 4096)
	contexts.FetchTimeout = orDuration(contexts.FetchTimeout, 10*time.Minute)
}

// threeQuarters is the part of a store that one project may fill, so that there is
// room for others.
func threeQuarters(bytes uint64) uint64 { return max(1, bytes/4*3) }

func orDuration(set *durationpb.Duration, otherwise time.Duration) *durationpb.Duration {
	if set != nil {
		return set
	}
	return durationpb.New(otherwise)
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
			limitMemory(ctx)
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
