// Package janitor is Kiln's registry janitor: it says whether a registry is well,
// what it holds, and what a policy would remove. It does not remove anything yet.
package janitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kilnbuild/kiln/pkg/clock"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/grpcapi"
	"github.com/kilnbuild/kiln/services/janitor/internal/metrics"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/registry"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// Service is a janitor that is listening, and serves once Run is called.
type Service struct {
	server   *rpc.Server
	client   *registry.Client
	surveyor *usage.Surveyor
	watch    *watch
}

// New makes a janitor from its configuration, whose unset fields get their
// defaults, and binds its addresses. The registry need not answer yet. ctx bounds
// the making only. A janitor that is not Run must be closed.
func New(ctx context.Context, cfg *configv1.JanitorConfig, tel *telemetry.Telemetry) (_ *Service, err error) {
	cfg = Complete(cfg)
	var undo lifecycle.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Close(context.WithoutCancel(ctx)))
		}
	}()

	inForce, err := policyOf(cfg)
	if err != nil {
		return nil, err
	}
	client, err := registry.New(cfg.GetRegistry(), tel)
	if err != nil {
		return nil, err
	}
	gauges, err := metrics.New(tel.Meter)
	if err != nil {
		return nil, err
	}
	// Interfaces that hold no pointer to nothing.
	var checkedStorage check.Storage
	var store usage.Store
	var storageToPlan enforce.Storage
	if root := cfg.GetRegistry().GetStorageRoot(); root != "" {
		s := storage.New(root)
		checkedStorage, store, storageToPlan = s, s, s
	}
	tracer := tel.Tracer.Tracer("github.com/kilnbuild/kiln/services/janitor")
	checker := check.New(client, checkedStorage)
	surveyor := usage.NewSurveyor(client, store, gauges, tracer)
	undo.Push("surveyor", func(context.Context) error { surveyor.Close(); return nil })

	server, err := rpc.NewServer(rpc.ServerOptions{Name: "kiln-janitor", Config: cfg.GetServer(), Telemetry: tel})
	if err != nil {
		return nil, err
	}
	interval := cfg.GetCheckInterval().AsDuration()
	w := &watch{checker: checker, surveyor: surveyor, gauges: gauges, tracer: tracer, log: tel.Logger, every: surveyPause * interval}
	engine := enforce.New(enforce.Options{Storage: storageToPlan, Checker: checker, Policy: inForce, Tracer: tracer, Now: clock.Now})
	janitorv1.RegisterJanitorServiceServer(server, grpcapi.NewServer(client.Address(), w, surveyor, engine))
	server.Depend("registry "+client.Address(), interval, client.Ping)
	tel.Logger.InfoContext(ctx, "pruning is not scheduled yet: this version removes nothing from the registry",
		"registry", client.Address(), "keep_age", cfg.GetKeepAge().AsDuration())
	return &Service{server: server, client: client, surveyor: surveyor, watch: w}, nil
}

// policyOf is the configured policy: that of policy_file or, without one, that of
// keep_age.
func policyOf(cfg *configv1.JanitorConfig) (policy.Policy, error) {
	file := cfg.GetPolicyFile()
	if file == "" {
		return policy.Default(cfg.GetKeepAge().AsDuration()), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return policy.Policy{}, fmt.Errorf("policy_file: %w", err)
	}
	return wire.ReadPolicy(file, string(text))
}

// surveyPause is how many check intervals pass between two looks at the whole
// registry, which cost far more than the check for the health status.
const surveyPause time.Duration = 20

// Addr is the address of the gRPC server.
func (s *Service) Addr() string { return s.server.Addr() }

// HTTPAddr is the address of the HTTP server, empty when it is off.
func (s *Service) HTTPAddr() string { return s.server.HTTPAddr() }

// Close gives up what New took. It is for a janitor that never ran.
func (s *Service) Close() error {
	s.release()
	return s.server.Close()
}

func (s *Service) release() {
	s.surveyor.Close()
	s.client.Close()
}

// Run serves, and watches the registry, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer s.release()
	return lifecycle.Run(ctx,
		lifecycle.Task{Name: "server", Run: s.server.Run},
		lifecycle.Task{Name: "watch", Run: s.watch.run},
	)
}
