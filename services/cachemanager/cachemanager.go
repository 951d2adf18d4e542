// Package cachemanager is Kiln's cache manager: it says what the caches of
// buildkitd daemons hold, and keeps them to a policy.
package cachemanager

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/buildkit"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/grpcapi"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/metrics"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/usage"
)

// Service is a cache manager that is listening, and serves once Run is called.
type Service struct {
	server   *rpc.Server
	schedule *enforce.Schedule
	daemons  fleet
}

// New makes a cache manager from its configuration, whose unset fields get their
// defaults, and binds its addresses. ctx bounds the making only. A cache manager
// that is not Run must be closed.
func New(ctx context.Context, cfg *configv1.CacheManagerConfig, tel *telemetry.Telemetry) (_ *Service, err error) {
	cfg = Complete(cfg)
	var undo lifecycle.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Close(context.WithoutCancel(ctx)))
		}
	}()

	if err := distinct(cfg.GetDaemons()); err != nil {
		return nil, err
	}
	var daemons fleet
	for _, daemonConfig := range cfg.GetDaemons() {
		daemon, err := buildkit.Dial(ctx, daemonConfig, tel)
		if err != nil {
			return nil, err
		}
		undo.Push("daemon "+daemon.Name(), func(context.Context) error { return daemon.Close() })
		daemons = append(daemons, daemon)
	}
	counters, err := metrics.New(tel.Meter)
	if err != nil {
		return nil, err
	}
	server, err := rpc.NewServer(rpc.ServerOptions{Name: "kiln-cachemanager", Config: cfg.GetServer(), Telemetry: tel})
	if err != nil {
		return nil, err
	}
	policy := enforce.Policy{
		KeepAge:   cfg.GetKeepAge().AsDuration(),
		KeepBytes: int64(cfg.GetKeepBytes()), //nolint:gosec // bounded by the contract
	}
	cachemanagerv1.RegisterCacheManagerServiceServer(server, grpcapi.NewServer(usage.NewCollector(daemons), policy))
	server.Depend("buildkitd", readyEvery, daemons.ready)
	enforcer := enforce.New(policy, tel.Tracer.Tracer("github.com/kilnbuild/kiln/services/cachemanager"))
	tel.Logger.InfoContext(ctx, "policy", "keep_age", policy.KeepAge, "keep_bytes", policy.KeepBytes,
		"interval", cfg.GetInterval().AsDuration(), "daemons", len(daemons))
	return &Service{
		server: server, daemons: daemons,
		schedule: enforce.NewSchedule(daemons, enforcer, cfg.GetInterval().AsDuration(), counters, tel.Logger),
	}, nil
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

func (f fleet) close() error {
	var errs []error
	for _, d := range f {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// Addr is the address of the gRPC server.
func (s *Service) Addr() string { return s.server.Addr() }

// HTTPAddr is the address of the HTTP server, empty when it is off.
func (s *Service) HTTPAddr() string { return s.server.HTTPAddr() }

// Close gives up what New took. It is for a cache manager that never ran.
func (s *Service) Close() error { return errors.Join(s.server.Close(), s.daemons.close()) }

// Run serves, and keeps the daemons to the policy, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	err := lifecycle.Run(ctx,
		lifecycle.Task{Name: "server", Run: s.server.Run},
		lifecycle.Task{Name: "schedule", Run: s.schedule.Run},
	)
	return errors.Join(err, s.daemons.close())
}
