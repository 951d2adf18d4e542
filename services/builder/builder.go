// Package builder is Kiln's builder: it takes builds over gRPC and solves them
// on buildkitd daemons.
package builder

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/google/uuid"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/clock"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/pagetoken"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/artifacts"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/gateway"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
	"github.com/kilnbuild/kiln/services/builder/internal/grpcapi"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
	"github.com/kilnbuild/kiln/services/builder/internal/hostdir"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
	"github.com/kilnbuild/kiln/services/builder/internal/metrics"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
	"github.com/kilnbuild/kiln/services/builder/internal/pool"
	"github.com/kilnbuild/kiln/services/builder/internal/scopes"
	"github.com/kilnbuild/kiln/services/builder/internal/sqlite"
	"github.com/kilnbuild/kiln/services/builder/internal/synckey"
	"github.com/kilnbuild/kiln/services/builder/internal/wire"
)

// Service is a builder that is listening, and serves once Run is called.
type Service struct {
	cfg       *configv1.BuilderConfig // complete
	log       *slog.Logger
	server    *rpc.Server
	fleet     fleet
	builds    *build.Service
	store     build.Store
	scopes    *scopes.Book
	removals  buildkit.Removals
	daemon    *buildkit.Daemon
	contexts  *contextstore.Store
	syncKeys  synckey.Keys
	artifacts *artifacts.Store
	pages     *pagetoken.Tokens
	clock     *clock.Guard
	guard     *guard.Guard
	caches    cachemanagerv1.CacheManagerServiceClient // nil: there is no cache manager
	pruner    *pruner                                  // nil: no run is asked for
	reporter  *reporter                                // nil: there is nobody to tell of builds
	egress    net.Listener                             // of the proxy; nil without one
	steps     *mask.Steps                              // of the builds at the daemons
	parts     *lifecycle.Stack                         // what is closed when all has ended
}

// New makes a builder from its configuration, whose unset fields get their
// defaults, takes up the builds that an earlier process left, and binds its
// addresses. ctx bounds the making only. A builder that is not Run must be closed.
func New(ctx context.Context, cfg *configv1.BuilderConfig, tel *telemetry.Telemetry) (_ *Service, err error) {
	s := &Service{cfg: Complete(cfg), log: tel.Logger, steps: mask.NewSteps(), parts: &lifecycle.Stack{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.parts.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := CheckRoots(s.cfg.GetAllowedRoots(), s.cfg.GetStateDir()); err != nil {
		return nil, err
	}
	if err := s.openStores(ctx, tel); err != nil {
		return nil, err
	}
	if s.guard, err = newGuard(s.cfg.GetPolicy().GetSources(), tel); err != nil {
		return nil, err
	}
	if s.egress, err = listenEgress(ctx, s.cfg); err != nil {
		return nil, err
	}
	if s.egress != nil {
		s.parts.Push("egress proxy", func(context.Context) error {
			if err := s.egress.Close(); !errors.Is(err, net.ErrClosed) { // Run has closed it
				return err
			}
			return nil
		})
	}
	if err := s.dialCacheManager(tel); err != nil {
		return nil, err
	}
	janitor, missed, err := s.dialJanitor(tel)
	if err != nil {
		return nil, err
	}
	if err := buildkit.CheckLogins(s.cfg.GetRegistries()); err != nil {
		return nil, err
	}
	rules := policy.New(s.cfg.GetPolicy())
	daemon, err := s.dialDaemon(ctx, buildkit.Options{Policy: rules, Janitor: janitor, NoLease: missed}, tel)
	if err != nil {
		return nil, err
	}
	counters, err := metrics.New(tel.Meter)
	if err != nil {
		return nil, err
	}
	translate := grpcapi.Translator{CacheRepository: s.cfg.GetCacheRepository(), OtherScopes: s.scopes.Others}
	s.builds = s.newBuilds(daemon, counters, translate, tel)
	s.parts.Push("builds", s.builds.Close)
	if err := s.serve(translate, rules, tel); err != nil {
		return nil, err
	}
	// Once there are rules to hold them to; calls are served from Run on.
	return s, s.builds.Recover(ctx)
}

// dialDaemon makes the daemon and the fleet of it. opts lacks what the service has.
func (s *Service) dialDaemon(ctx context.Context, opts buildkit.Options, tel *telemetry.Telemetry) (*buildkit.Daemon, error) {
	opts.Roots, opts.Contexts, opts.Artifacts = s.cfg.GetAllowedRoots(), s.contexts, s.artifacts
	opts.Guard, opts.SyncKeys, opts.Logins = s.guard, s.syncKeys, s.cfg.GetRegistries()
	opts.Removals, opts.Steps, opts.CacheManager, opts.CacheWritten = s.removals, s.steps, s.caches, s.noteScope
	daemon, err := buildkit.Dial(ctx, s.cfg.GetDaemons()[0], opts, tel)
	if err != nil {
		return nil, err
	}
	s.daemon = daemon
	s.parts.Push("daemon", func(context.Context) error { return daemon.Close() })
	s.clock.Compare(daemon.Clock())
	s.fleet = fleet{pool.New(daemon, tel.Logger)}
	return daemon, daemon.AdoptRemovals(ctx, []string{daemon.Name()})
}

// newBuilds makes the service that takes builds.
func (s *Service) newBuilds(
	daemon *buildkit.Daemon, counters build.Metrics, translate grpcapi.Translator, tel *telemetry.Telemetry,
) *build.Service {
	return build.NewService(build.Options{
		Pool: s.fleet, Store: s.store, Queue: turns{newQueue(s.cfg)}, Metrics: counters, Log: tel.Logger,
		MaxBuildTime: s.cfg.GetMaxBuildTime().AsDuration(), NewID: uuid.NewString, Encode: wire.Encode, Decode: translate.Decode,
		Hold:   func(spec build.Spec) (release func()) { return buildkit.Hold(s.contexts, spec) },
		Behalf: s.onBehalf,
		AfterBuild: func(rec build.Record, graph []build.StepEvent) {
			s.reporter.add(rec, graph, daemon.Workers())
			s.pruner.ask()
		},
	})
}

// onBehalf returns ctx with what the caller of a build may do now.
func (s *Service) onBehalf(ctx context.Context, rec build.Record) context.Context {
	return auth.WithGrant(ctx, s.server.GrantOf(ctx, rec.Caller,
		builderv1.BuilderService_StartBuild_FullMethodName, builderv1.BuilderService_Build_FullMethodName))
}

// openStores opens what the builder keeps on disk.
func (s *Service) openStores(ctx context.Context, tel *telemetry.Telemetry) error {
	dir, err := openState(s.cfg.GetStateDir(), s.parts)
	if err != nil {
		return err
	}
	if s.pages, err = pagetoken.OpenTokens(dir.dir); err != nil {
		return err
	}
	if s.syncKeys, err = synckey.Open(dir.dir); err != nil {
		return err
	}
	if s.scopes, err = scopes.Open(dir.dir); err != nil {
		return err
	}
	store, err := sqlite.Open(ctx, dir.database())
	if err != nil {
		return err
	}
	s.store, s.removals = store, store
	s.parts.Push("store", func(context.Context) error { return store.Close() })
	if s.clock, err = newClock(ctx, dir.dir, s.store, tel); err != nil {
		return err
	}
	if s.artifacts, err = artifacts.Open(dir.artifacts(), artifactLimits(s.cfg.GetRetention()), s.log, clock.Now); err != nil {
		return err
	}
	s.parts.Push("artifacts", func(context.Context) error { return s.artifacts.Close() })
	s.contexts, err = contextstore.Open(dir.contexts(), contextLimits(s.cfg.GetContexts(), dir.dir), s.log, clock.Now)
	if err != nil {
		return err
	}
	s.contexts.Ages(func() bool { return s.clock.Check(context.Background()) == nil })
	s.parts.Push("contexts", func(context.Context) error { return s.contexts.Close() })
	return nil
}

// noteScope notes a scope that a build wrote to its project's cache.
func (s *Service) noteScope(repository, scope string) {
	if err := s.scopes.Wrote(repository, scope); err != nil {
		s.log.Warn("the scopes of a project's cache cannot be noted; its next builds may read fewer of them", "error", err)
	}
}

// serve binds the addresses.
func (s *Service) serve(translate grpcapi.Translator, rules *policy.Policy, tel *telemetry.Telemetry) (err error) {
	passOn := gateway.New(gateway.Options{
		Daemons: daemons{s.fleet}, Builds: s.builds, Policy: rules, Caller: grpcapi.Caller, SyncKey: s.syncKeys.Client, Steps: s.steps,
		Log: tel.Logger,
	})
	s.server, err = rpc.NewServer(rpc.ServerOptions{
		Name: "kiln-builder", Config: s.cfg.GetServer(), Telemetry: tel, GRPC: passOn.ServerOptions(),
	})
	if err != nil {
		return err
	}
	s.parts.Push("server", func(context.Context) error { return s.server.Close() })
	builderv1.RegisterBuilderServiceServer(s.server, grpcapi.NewServer(s.builds, s.fleet, translate, s.contexts, s.artifacts, s.pages))
	s.server.Depend("buildkitd "+s.cfg.GetDaemons()[0].GetName(), readyEvery, s.fleet.Ready)
	return nil
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
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return s.parts.Close(ctx)
}

// closeTimeout bounds how long it may take to store how the last builds ended.
const closeTimeout = 10 * time.Second

// Run serves until ctx ends, then lets the builds that are running end within
// the grace time of the configuration.
func (s *Service) Run(ctx context.Context) error {
	grace := s.cfg.GetServer().GetLimits().GetShutdownGrace().AsDuration()
	// The pool goes on while the server drains: running builds ask it.
	checks, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	tasks := []lifecycle.Task{
		{Name: "server", Run: func(ctx context.Context) error {
			defer stop()
			// Builds that are still running a little before the server cuts their
			// calls get their end while it can still be told. Detached ones are no
			// calls that the server waits for.
			drained := make(chan struct{})
			undo := context.AfterFunc(ctx, func() {
				defer close(drained)
				s.builds.Drain(max(0, grace-tellEnd))
				s.builds.Interrupt()
			})
			err := s.server.Run(ctx)
			if !undo() {
				<-drained
			}
			ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			return errors.Join(err, s.builds.Close(ending))
		}},
		{Name: "pool", Run: func(context.Context) error { return s.fleet.Run(checks) }},
		{Name: "clock", Run: s.clock.Run},
		{Name: "removal of records with secrets", Run: func(context.Context) error { return s.daemon.RemoveRecords(checks) }},
		{Name: "sweep", Run: func(ctx context.Context) error {
			return s.sweep(ctx, s.cfg.GetRetention(), int(s.cfg.GetMaxBuildsKept()))
		}},
	}
	if s.egress != nil {
		// As long as the pool: builds that end in the grace time still fetch.
		tasks = append(tasks, lifecycle.Task{Name: "egress proxy", Run: func(context.Context) error { return s.guard.ServeProxy(checks, s.egress) }})
	}
	if s.reporter != nil {
		// As long as the pool: builds that end in the grace time are told of too.
		tasks = append(tasks, lifecycle.Task{Name: "reports of builds", Run: func(context.Context) error { return s.reporter.run(checks) }})
	}
	if s.pruner != nil {
		tasks = append(tasks, lifecycle.Task{Name: "prune after builds", Run: s.pruner.run})
	}
	err := lifecycle.Run(ctx, tasks...)
	return errors.Join(err, s.Close())
}

// CheckRoots refuses allowed roots that give away more than directories of sources:
// the host's root directory, and what contains, or lies in, a directory of state.
func CheckRoots(roots []string, state string) error { return hostdir.Roots(roots).Check(state) }
