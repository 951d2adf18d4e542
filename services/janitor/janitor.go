// Package janitor is Kiln's registry janitor: it says whether a registry is well and what
// it holds, and keeps it to a policy, blobs included, while pushes and pulls go on.
package janitor

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/kilnbuild/kiln/pkg/clock"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/grpcapi"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/verify"
)

// Service is a janitor that is listening, and serves once Run is called.
type Service struct {
	*parts
	server *rpc.Server
	watch  *watch
	end    context.CancelFunc // of the runs under way
}

// New makes a janitor from its configuration, whose unset fields get their
// defaults, and binds its addresses. The registry need not answer yet. ctx bounds
// the making only. A janitor that is not Run must be closed.
func New(ctx context.Context, cfg *configv1.JanitorConfig, tel *telemetry.Telemetry) (_ *Service, err error) {
	cfg = Complete(cfg)
	p, err := newParts(ctx, cfg, tel, true)
	if err != nil {
		return nil, err
	}
	s := &Service{parts: p}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close(context.WithoutCancel(ctx)))
		}
	}()
	s.server, err = rpc.NewServer(rpc.ServerOptions{Name: "kiln-janitor", Config: cfg.GetServer(), Telemetry: tel})
	if err != nil {
		return nil, err
	}
	p.undo.Push("server", func(context.Context) error { return s.server.Close() })
	interval := cfg.GetCheckInterval().AsDuration()
	s.watch = &watch{checker: p.checker, surveyor: p.surveyor, gauges: p.gauges, tracer: p.tracer, log: tel.Logger, samples: p.store, every: surveyPause * interval}
	life, end := context.WithCancel(context.Background()) // runs outlive the calls that start them
	s.end = end
	p.undo.Push("runs", func(context.Context) error { end(); p.engine.Wait(); return nil })
	var verified verify.Storage // an interface that holds no pointer to nothing
	if p.storage != nil {
		verified = p.storage
	}
	janitorv1.RegisterJanitorServiceServer(s.server, grpcapi.NewServer(grpcapi.Options{
		Address: p.client.Address(), Names: lastuse.Registry{Address: p.client.Address(), Names: cfg.GetRegistryNames()}, Checker: s.watch, Surveyor: p.surveyor,
		Engine: p.engine, Schedule: p.schedule, Verified: verified, State: p.store, Life: life, NewID: uuid.NewString, Now: clock.Now, Pages: p.pages,
	}))
	s.server.Depend("registry "+p.client.Address(), interval, p.client.Ping)
	if p.storage != nil {
		s.server.Depend("storage of the registry", interval, func(context.Context) error { return p.storage.Writable() })
	}
	if p.listener != nil {
		s.server.HandleHTTP("/registry-events", p.listener)
	}
	reached := "" // by the API alone
	if p.storage != nil {
		reached = p.storage.Root()
	}
	tel.Logger.InfoContext(ctx, "the registry is kept to a policy", "registry", p.client.Address(), "storage", reached,
		"cron", cfg.GetSchedule().GetCron(), "notifications", p.listener != nil)
	return s, nil
}

// surveyPause is how many check intervals pass between two looks at the whole
// registry, which cost far more than the check for the health status.
const surveyPause time.Duration = 20

// Addr is the address of the gRPC server.
func (s *Service) Addr() string { return s.server.Addr() }

// HTTPAddr is the address of the HTTP server, empty when it is off.
func (s *Service) HTTPAddr() string { return s.server.HTTPAddr() }

// Close gives up what New took. It is for a janitor that never ran.
func (s *Service) Close() error { return s.close(context.Background()) }

// Run serves, watches the registry, and keeps it to the policy, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	err := lifecycle.Run(ctx,
		lifecycle.Task{Name: "server", Run: s.server.Run},
		lifecycle.Task{Name: "watch", Run: s.watch.run},
		lifecycle.Task{Name: "clock", Run: s.clock.Run},
		lifecycle.Task{Name: "schedule", Run: s.schedule.Run},
		lifecycle.Task{Name: "runs", Run: func(ctx context.Context) error { <-ctx.Done(); s.end(); return nil }},
		lifecycle.Task{Name: "listener", Run: s.beat},
	)
	return errors.Join(err, s.Close())
}

// beatEvery is how often it is noted that the listener is there.
const beatEvery = 20 * time.Second

// beat notes that the listener is there, until ctx ends.
func (s *Service) beat(ctx context.Context) error {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for s.listener != nil {
		if err := s.store.Beat(ctx, clock.Now(), time.Now()); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "that notifications are listened to cannot be kept", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	<-ctx.Done()
	return nil
}
