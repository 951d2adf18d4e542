package janitor

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

// DefaultConfig returns the configuration of a janitor that was told nothing.
func DefaultConfig() *configv1.JanitorConfig { return Complete(&configv1.JanitorConfig{}) }

// Complete returns a copy of cfg with a default in each unset field.
func Complete(cfg *configv1.JanitorConfig) *configv1.JanitorConfig {
	out := proto.CloneOf(cfg)
	if out.Server == nil {
		out.Server = &configv1.ServerConfig{}
	}
	out.Server.Listen = cmp.Or(out.Server.Listen, "127.0.0.1:50053")
	out.Server.HttpListen = cmp.Or(out.Server.HttpListen, "127.0.0.1:9463")
	if out.Registry == nil {
		out.Registry = &configv1.RegistryConfig{}
	}
	out.Registry.Address = cmp.Or(out.Registry.Address, "localhost:5000")
	if out.KeepAge == nil {
		out.KeepAge = durationpb.New(7 * 24 * time.Hour)
	}
	if out.CheckInterval == nil {
		out.CheckInterval = durationpb.New(15 * time.Second)
	}
	out.StateDir = cmp.Or(out.StateDir, statedir.Default("janitor"))
	if out.Settle == nil {
		out.Settle = durationpb.New(5 * time.Second)
	}
	if out.Schedule == nil {
		out.Schedule = &configv1.ScheduleConfig{}
	}
	out.Schedule.Cron = cmp.Or(out.Schedule.Cron, "23 * * * *")
	out.Schedule.TimeZone = cmp.Or(out.Schedule.TimeZone, "UTC")
	if out.Schedule.Jitter == nil {
		out.Schedule.Jitter = durationpb.New(5 * time.Minute)
	}
	if out.Schedule.MaxRemovalPercent == nil {
		out.Schedule.MaxRemovalPercent = proto.Int32(50)
	}
	if out.Schedule.LowDiskPercent == nil {
		out.Schedule.LowDiskPercent = proto.Int32(5)
	}
	return out
}

// Command is the kiln-janitor command.
func Command() *cobra.Command {
	spec := service.Spec[*configv1.JanitorConfig]{
		Name:      "kiln-janitor",
		Short:     "Keeps a registry to a policy: what was not used for 7 days goes, blobs included",
		EnvPrefix: "KILN_JANITOR",
		Example: `  # With a registry at localhost:5000, whose storage is on this host:
  kiln-janitor --set registry.storage_root=/var/lib/registry

  # One run, for a timer or a CronJob:
  kiln-janitor run --once --set registry.storage_root=/var/lib/registry

  # With another one, whose storage is on this host:
  kiln-janitor --set registry.address=localhost:5001 --set registry.storage_root=/var/lib/registry

  # With one whose storage is in S3, as its configuration says:
  kiln-janitor --set registry.storage_config=/etc/distribution/config.yml

  # With credentials:
  kiln-janitor --set registry.address=registry.example.org --set registry.username=janitor --set registry.password_file=/etc/kiln/password`,
		NewConfig: DefaultConfig,
		Run: func(ctx context.Context, cfg *configv1.JanitorConfig, tel *telemetry.Telemetry) error {
			tuneMemory()
			s, err := New(ctx, cfg, tel)
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	}
	cmd := service.Command(spec)
	cmd.AddCommand(runCommand(spec))
	return cmd
}
