// Package cachemanager is Kiln's cache manager: it says what the caches of
// buildkitd daemons hold, and keeps them to a policy.
package cachemanager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kilnbuild/kiln/pkg/clock"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/pagetoken"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/statedir"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/attribution"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/buildkit"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/grpcapi"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/local"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/metrics"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/state"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// Service is a cache manager that is listening, and serves once Run is called.
type Service struct {
	server   *rpc.Server
	schedule *enforce.Schedule
	daemons  fleet
	pages    *pagetoken.Tokens
	clock    *clock.Guard
	parts    *lifecycle.Stack // what is closed when all has ended
}

// New makes a cache manager from its configuration, whose unset fields get their
// defaults, and binds its addresses. ctx bounds the making only. A cache manager
// that is not Run must be closed.
func New(ctx context.Context, cfg *configv1.CacheManagerConfig, tel *telemetry.Telemetry) (_ *Service, err error) {
	cfg = Complete(cfg)
	s := &Service{parts: &lifecycle.Stack{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.parts.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := errors.Join(distinct(cfg.GetDaemons()), distinctDirectories(cfg.GetDirectories())); err != nil {
		return nil, err
	}
	store, err := s.openState(ctx, cfg, tel)
	if err != nil {
		return nil, err
	}
	var caches []enforce.Cache
	for _, daemonConfig := range cfg.GetDaemons() {
		daemon, err := buildkit.Dial(ctx, daemonConfig, tel)
		if err != nil {
			return nil, err
		}
		s.parts.Push("daemon "+daemon.Name(), func(context.Context) error { return daemon.Close() })
		s.daemons, caches = append(s.daemons, daemon), append(caches, daemon)
	}
	s.clock.Compare(s.daemons.clocks()...)
	var directories []*local.Directory
	for _, directoryConfig := range cfg.GetDirectories() {
		directory := local.New(local.Options{Path: directoryConfig.GetPath(), Grace: directoryConfig.GetGrace().AsDuration(), Log: tel.Logger})
		s.parts.Push("directory "+directoryConfig.GetPath(), func(context.Context) error { return directory.Close() })
		directories, caches = append(directories, directory), append(caches, directory)
	}
	counters, err := metrics.New(tel.Meter)
	if err != nil {
		return nil, err
	}
	engine := enforce.New(enforce.Options{
		Caches: caches, State: store, Uses: &attribution.Book{Store: store}, Metrics: counters, Log: tel.Logger, NewID: uuid.NewString, Now: clock.Now,
		Clock: s.clock.Check, MaxRemovalPercent: int(cfg.GetMaxRemovalPercent()),
		Tracer: tel.Tracer.Tracer("github.com/kilnbuild/kiln/services/cachemanager"),
	})
	s.server, err = rpc.NewServer(rpc.ServerOptions{Name: "kiln-cachemanager", Config: cfg.GetServer(), Telemetry: tel})
	if err != nil {
		return nil, err
	}
	s.parts.Push("server", func(context.Context) error { return s.server.Close() })
	cachemanagerv1.RegisterCacheManagerServiceServer(s.server, grpcapi.NewServer(grpcapi.Options{
		Engine: engine, State: store, Directories: directories, NewID: uuid.NewString, Now: clock.Now, Pages: s.pages,
	}))
	s.server.Depend("buildkitd", readyEvery, s.daemons.ready)
	s.schedule = enforce.NewSchedule(engine, cfg.GetInterval().AsDuration())
	tel.Logger.InfoContext(ctx, "caches are kept to a policy", "interval", cfg.GetInterval().AsDuration(), "daemons", len(s.daemons), "directories", len(directories))
	return s, nil
}

// openState opens what outlives the process, with the configured policy.
func (s *Service) openState(
	ctx context.Context, cfg *configv1.CacheManagerConfig, tel *telemetry.Telemetry,
) (*state.Store, error) {
	configured, err := policyOf(cfg)
	if err != nil {
		return nil, err
	}
	dir, err := statedir.Open(cfg.GetStateDir(), "cache manager", s.parts)
	if err != nil {
		return nil, err
	}
	if s.pages, err = pagetoken.OpenTokens(dir); err != nil {
		return nil, err
	}
	store, err := state.Open(ctx, filepath.Join(dir, "cache.db"))
	if err != nil {
		return nil, err
	}
	s.parts.Push("state", func(context.Context) error { return store.Close() })
	last, err := store.Runs(ctx, 1, time.Time{}, "")
	if err != nil {
		return nil, err
	}
	opts := clock.Options{StateDir: dir, Log: tel.Logger, Meter: tel.Meter}
	if len(last) > 0 {
		opts.Newest = last[0].Started
	}
	if s.clock, err = clock.NewGuard(opts); err != nil {
		return nil, err
	}
	return store, store.Configure(ctx, configured, clock.Now())
}

// policyOf is the configured policy: that of policy_file or, without one, that of
// keep_age and keep_bytes.
func policyOf(cfg *configv1.CacheManagerConfig) (policy.Policy, error) {
	file := cfg.GetPolicyFile()
	if file == "" {
		return policy.Default(cfg.GetKeepAge().AsDuration(), int64(cfg.GetKeepBytes())), nil //nolint:gosec // bounded by the contract
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return policy.Policy{}, fmt.Errorf("policy_file: %w", err)
	}
	configured, err := wire.ReadPolicy(file, string(text))
	if err != nil {
		return policy.Policy{}, err
	}
	_, err = policy.Resolve(configured)
	return configured, err
}

// distinct refuses two daemons of one name, and one daemon under two names: it
// would be pruned twice at once.
func distinct(daemons []*configv1.DaemonConfig) error {
	names, addresses := map[string]bool{}, map[string]bool{}
	for i, d := range daemons {
		if names[d.GetName()] {
			return fmt.Errorf("daemons[%d].name: there are two daemons %q: give each a name of its own", i, d.GetName())
		}
		if addresses[d.GetAddress()] {
			return fmt.Errorf("daemons[%d].address: %s is there twice: name each daemon once", i, d.GetAddress())
		}
		names[d.GetName()], addresses[d.GetAddress()] = true, true
	}
	return nil
}

// distinctDirectories refuses a directory that is named twice, or not as it is: two
// would be swept at once, and leases name it by its path.
func distinctDirectories(directories []*configv1.CacheDirectory) error {
	known := map[string]bool{}
	for i, d := range directories {
		if d.GetPath() != filepath.Clean(d.GetPath()) || d.GetPath() == "/" {
			return fmt.Errorf("directories[%d].path: %q is not the plain path of a cache directory: write %q", i, d.GetPath(), filepath.Clean(d.GetPath()))
		}
		if known[d.GetPath()] {
			return fmt.Errorf("directories[%d].path: %s is there twice: name each directory once", i, d.GetPath())
		}
		known[d.GetPath()] = true
	}
	return nil
}

// readyEvery is how often the daemons are asked for the health status.
const readyEvery = 2 * time.Second

// fleet is all daemons.
type fleet []*buildkit.Daemon

// ready is an error when no daemon answers: one that is away is no reason to be
// sent away from the others.
func (f fleet) ready(ctx context.Context) error {
	errs := make([]error, len(f))
	var wait sync.WaitGroup
	for i, d := range f {
		wait.Go(func() { errs[i] = d.Ping(ctx) })
	}
	wait.Wait()
	for _, err := range errs {
		if err == nil {
			return nil
		}
	}
	return errors.Join(errs...)
}

// clocks are those of the daemons.
func (f fleet) clocks() []clock.Source {
	var all []clock.Source
	for _, d := range f {
		all = append(all, d.Clock())
	}
	return all
}

// Addr is the address of the gRPC server.
func (s *Service) Addr() string { return s.server.Addr() }

// HTTPAddr is the address of the HTTP server, empty when it is off.
func (s *Service) HTTPAddr() string { return s.server.HTTPAddr() }

// Close gives back what a cache manager holds that is not Run.
func (s *Service) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return s.parts.Close(ctx)
}

// closeTimeout bounds how long it may take to store how the last run ended.
const closeTimeout = 10 * time.Second

// Run serves, and keeps the caches to the policy, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	err := lifecycle.Run(ctx,
		lifecycle.Task{Name: "server", Run: s.server.Run},
		lifecycle.Task{Name: "clock", Run: s.clock.Run},
		lifecycle.Task{Name: "schedule", Run: s.schedule.Run},
	)
	return errors.Join(err, s.Close())
}
