package up

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder"
	"github.com/kilnbuild/kiln/services/cachemanager"
	"github.com/kilnbuild/kiln/services/janitor"
	"github.com/kilnbuild/kiln/services/kiln/internal/supervise"
)

// serviceGrace is how long running builds may go on after the end was asked for.
const serviceGrace = 15 * time.Second

// flushTimeout bounds how long the telemetry of a service may take to go out.
const flushTimeout = 5 * time.Second

// service is one of the three services, in this process.
type service interface {
	Addr() string
	HTTPAddr() string
	Run(ctx context.Context) error
	Close() error
}

// part is a service and what the user calls it.
type part struct {
	name, log string
	service   service
}

// newServices makes the three services, which listen from now on, and returns
// how to end their telemetry after they have run.
func (r *runner) newServices(ctx context.Context) (_ []part, _ *lifecycle.Stack, err error) {
	made, telemetries := &lifecycle.Stack{}, &lifecycle.Stack{}
	defer func() {
		if err != nil {
			ctx := context.WithoutCancel(ctx)
			err = errors.Join(err, made.Close(ctx), telemetries.Close(ctx))
		}
	}()
	var parts []part
	for _, kind := range []struct {
		name, log, telemetry string
		make                 func(context.Context, *telemetry.Telemetry) (service, error)
	}{
		{"builder", "builder", "kiln-builder", r.newBuilder},
		{"cache manager", "cachemanager", "kiln-cachemanager", r.newCacheManager},
		{"janitor", "janitor", "kiln-janitor", r.newJanitor},
	} {
		tel, err := r.newTelemetry(ctx, kind.telemetry, kind.log, telemetries)
		if err != nil {
			return nil, nil, err
		}
		service, err := kind.make(ctx, tel)
		if err != nil {
			return nil, nil, err
		}
		made.Push(kind.name, func(context.Context) error { return service.Close() })
		parts = append(parts, part{kind.name, kind.log, reporting{service, tel}})
	}
	return parts, telemetries, nil
}

// reporting is a service whose panics go to its own telemetry.
type reporting struct {
	service
	tel *telemetry.Telemetry
}

// Run implements service.
func (r reporting) Run(ctx context.Context) error {
	return r.service.Run(lifecycle.WithReporter(ctx, r.tel.Panicked))
}

// newTelemetry makes the telemetry of a service, which logs to a file of its own.
func (r *runner) newTelemetry(ctx context.Context, name, log string, closers *lifecycle.Stack) (*telemetry.Telemetry, error) {
	file, err := supervise.NewLog(r.paths.log(log), 0)
	if err != nil {
		return nil, err
	}
	closers.Push(name+" log", func(context.Context) error { return file.Close() })
	tel, err := telemetry.Setup(ctx, telemetry.Options{Service: name, LogLevel: r.opts.LogLevel, LogFormat: "text", LogWriter: file})
	if err != nil {
		return nil, err
	}
	closers.Push(name+" telemetry", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, flushTimeout)
		defer cancel()
		return tel.Shutdown(ctx)
	})
	return tel, nil
}

func (r *runner) newBuilder(ctx context.Context, tel *telemetry.Telemetry) (service, error) {
	return builder.New(ctx, &configv1.BuilderConfig{
		Server:          r.server(r.addrs.builder, r.addrs.builderHTTP),
		Daemons:         r.daemons(),
		AllowedRoots:    r.opts.AllowRoots,
		CacheRepository: r.addrs.registryName() + "/cache",
		StateDir:        r.paths.builder(),
		Policy:          &configv1.BuildPolicyConfig{Sources: &configv1.SourcesConfig{Networks: r.opts.AllowNetworks}},
		Egress:          &configv1.EgressConfig{Listen: r.addrs.egress},
		CacheManager:    &configv1.CacheManagerClient{Address: r.addrs.cacheManager, TokenFile: r.peerToken()},
		Janitor:         &configv1.JanitorClient{Address: r.addrs.janitor, TokenFile: r.peerToken()},
	}, tel)
}

func (r *runner) newCacheManager(ctx context.Context, tel *telemetry.Telemetry) (service, error) {
	return cachemanager.New(ctx, &configv1.CacheManagerConfig{
		Server:  r.server(r.addrs.cacheManager, r.addrs.cacheManagerHTTP),
		Daemons: r.daemons(), StateDir: r.paths.cacheManager(),
	}, tel)
}

func (r *runner) newJanitor(ctx context.Context, tel *telemetry.Telemetry) (service, error) {
	return janitor.New(ctx, &configv1.JanitorConfig{
		Server: r.server(r.addrs.janitor, r.addrs.janitorHTTP),
		Registry: &configv1.RegistryConfig{
			Address: r.addrs.registryName(), PlainHttp: true, StorageRoot: r.paths.registry(),
		},
		StateDir: r.paths.janitor(), RegistryNames: r.addrs.registryNames(), Notifications: &configv1.NotificationsConfig{SecretFile: r.paths.eventsSecret()},
	}, tel)
}

func (r *runner) server(listen, http string) *configv1.ServerConfig {
	return r.restrict(&configv1.ServerConfig{
		Listen: listen, HttpListen: http,
		Limits: &configv1.LimitsConfig{ShutdownGrace: durationpb.New(serviceGrace)},
	})
}

func (r *runner) daemons() []*configv1.DaemonConfig {
	return []*configv1.DaemonConfig{{Name: "local", Address: "unix://" + r.paths.buildkitSocket(), Root: r.paths.buildkit()}}
}
