// Package builder is Kiln's builder: it takes builds over gRPC and solves them
// on buildkitd daemons.
package builder

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/google/uuid"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/gateway"
	"github.com/kilnbuild/kiln/services/builder/internal/grpcapi"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
	"github.com/kilnbuild/kiln/services/builder/internal/metrics"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
	"github.com/kilnbuild/kiln/services/builder/internal/pool"
)

// Service is a builder that is listening, and serves once Run is called.
type Service struct {
	server *rpc.Server
	fleet  fleet
	daemon *buildkit.Daemon
	builds *build.Service
	guard  *guard.Guard
	egress net.Listener  // of the proxy; nil without one
	grace  time.Duration // of calls under way when the builder stops

	stopped chan struct{} // closed when Run returns
}

// fleet gives the domain and the gateway their view of the pool.
type fleet struct {
	*pool.Pool[*buildkit.Daemon]
}

func (f fleet) Pick(ctx context.Context) (build.Daemon, error) { return f.Pool.Pick(ctx) }

func (f fleet) upstream(ctx context.Context) (gateway.Upstream, error) { return f.Current(ctx) }

// New makes a builder from its configuration, whose unset fields get their
// defaults, and binds its addresses. ctx bounds the making only. A builder that
// is not Run must be closed.
func New(ctx context.Context, cfg *configv1.BuilderConfig, tel *telemetry.Telemetry) (_ *Service, err error) {
	cfg = Complete(cfg)
	var undo lifecycle.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Close(context.WithoutCancel(ctx)))
		}
	}()

	sources, err := newGuard(cfg.GetPolicy().GetSources(), tel)
	if err != nil {
		return nil, err
	}
	egress, err := listenEgress(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if egress != nil {
		undo.Push("egress proxy", func(context.Context) error { return egress.Close() })
	}
	daemon, err := buildkit.Dial(ctx, cfg.GetDaemons()[0], buildkit.Options{
		Roots: cfg.GetAllowedRoots(), Guard: sources, Policy: policy.New(cfg.GetPolicy()),
	}, tel)
	if err != nil {
		return nil, err
	}
	undo.Push("daemon", func(context.Context) error { return daemon.Close() })
	members := fleet{pool.New(daemon, tel.Logger)}
	counters, err := metrics.New(tel.Meter)
	if err != nil {
		return nil, err
	}
	builds := build.NewService(members, build.NewRecords(int(cfg.GetMaxBuildsKept())), build.Limits{
		MaxRunning: int(cfg.GetMaxRunningBuilds()), MaxBuildTime: cfg.GetMaxBuildTime().AsDuration(),
	}, counters, tel.Logger, uuid.NewString)

	passOn := gateway.New(members.upstream, builds, grpcapi.Caller)
	server, err := rpc.NewServer(rpc.ServerOptions{
		Name: "kiln-builder", Config: cfg.GetServer(), Telemetry: tel,
		GRPC: passOn.ServerOptions(),
	})
	if err != nil {
		return nil, err
	}
	builderv1.RegisterBuilderServiceServer(server,
		grpcapi.NewServer(builds, members, grpcapi.Translator{CacheRepository: cfg.GetCacheRepository()}))
	server.Depend("buildkitd "+daemon.Name(), readyEvery, members.Ready)
	return &Service{
		server: server, fleet: members, daemon: daemon, builds: builds, stopped: make(chan struct{}),
		guard: sources, egress: egress,
		grace: cfg.GetServer().GetLimits().GetShutdownGrace().AsDuration(),
	}, nil
}

// readyEvery is how often the health status looks at what the pool knows, which
// costs nothing.
const readyEvery = 500 * time.Millisecond

// tellEnd is what it takes at most to end a solve and to tell so.
const tellEnd = 4 * time.Second

// Addr is the address of the gRPC server.
func (s *Service) Addr() string { return s.server.Addr() }

// HTTPAddr is the address of the HTTP server, empty when it is off.
func (s *Service) HTTPAddr() string { return s.server.HTTPAddr() }

// Close gives back what a builder holds that is not Run.
func (s *Service) Close() error {
	err := errors.Join(s.server.Close(), s.daemon.Close())
	if s.egress != nil {
		err = errors.Join(err, s.egress.Close())
	}
	return err
}

// Run serves until ctx ends, then lets the builds that are running end within
// the grace time of the configuration.
func (s *Service) Run(ctx context.Context) error {
	// Builds that are still running a little before the server cuts their calls
	// get their end while it can still be told.
	defer context.AfterFunc(ctx, func() {
		select {
		case <-s.stopped:
		case <-time.After(max(0, s.grace-tellEnd)):
			s.builds.Interrupt()
		}
	})()
	defer close(s.stopped)
	// The pool goes on while the server drains: running builds ask it.
	checks, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	tasks := []lifecycle.Task{
		{Name: "server", Run: func(ctx context.Context) error {
			defer stop()
			return s.server.Run(ctx)
		}},
		{Name: "pool", Run: func(context.Context) error { return s.fleet.Run(checks) }},
	}
	if s.egress != nil {
		// As long as the pool: builds that end in the grace time still fetch.
		tasks = append(tasks, lifecycle.Task{Name: "egress proxy", Run: func(context.Context) error { return s.guard.ServeProxy(checks, s.egress) }})
	}
	err := lifecycle.Run(ctx, tasks...)
	return errors.Join(err, s.daemon.Close())
}
