package janitor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/clock"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/pagetoken"
	"github.com/kilnbuild/kiln/pkg/statedir"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/canary"
	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/driver"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/metrics"
	"github.com/kilnbuild/kiln/services/janitor/internal/notify"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/registry"
	"github.com/kilnbuild/kiln/services/janitor/internal/remote"
	"github.com/kilnbuild/kiln/services/janitor/internal/state"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// parts are what a janitor is made of, with a server or without.
type parts struct {
	client   *registry.Client
	storage  *storage.Storage // nil: out of reach
	store    *state.Store
	pages    *pagetoken.Tokens
	clock    *clock.Guard
	gauges   *metrics.Registry
	checker  *check.Checker
	surveyor *usage.Surveyor
	listener *notify.Listener // nil: no notifications
	engine   *enforce.Engine
	schedule *enforce.Schedule
	tracer   trace.Tracer
	log      *slog.Logger
	undo     lifecycle.Stack
}

// newParts makes them from a complete configuration. When nothing serves, nothing listens.
func newParts(ctx context.Context, cfg *configv1.JanitorConfig, tel *telemetry.Telemetry, serves bool) (_ *parts, err error) {
	p := &parts{tracer: tel.Tracer.Tracer("github.com/kilnbuild/kiln/services/janitor"), log: tel.Logger}
	defer func() {
		if err != nil {
			_ = p.close(context.WithoutCancel(ctx)) // the first error counts
		}
	}()
	timetable, err := enforce.NewTimetable(cfg.GetSchedule().GetCron(), cfg.GetSchedule().GetTimeZone(), cfg.GetSchedule().GetJitter().AsDuration())
	if err != nil {
		return nil, err
	}
	if err := p.openState(ctx, cfg, tel); err != nil {
		return nil, err
	}
	if p.client, err = registry.New(cfg.GetRegistry(), tel); err != nil {
		return nil, err
	}
	p.clock.Compare(p.client.Clock())
	p.undo.Push("registry client", func(context.Context) error { p.client.Close(); return nil })
	if p.gauges, err = metrics.New(tel.Meter); err != nil {
		return nil, err
	}
	if serves {
		if err := p.store.ReviveLeases(ctx, clock.Now()); err != nil {
			return nil, err
		}
		if p.listener, err = p.listen(cfg); err != nil {
			return nil, err
		}
	}
	if p.storage, err = reach(ctx, cfg.GetRegistry()); err != nil {
		return nil, err
	}
	p.keep(ctx, cfg, timetable)
	return p, nil
}

// keep makes what keeps the registry, from the client, the storage, the state and the listener.
func (p *parts) keep(ctx context.Context, cfg *configv1.JanitorConfig, timetable enforce.Timetable) {
	// Interfaces that hold no pointer to nothing.
	var ears canary.Ears
	if p.listener != nil {
		ears = p.listener
	}
	var checked check.Storage
	var surveyed usage.Store
	var kept enforce.Storage
	var bird check.Canary
	var lag time.Duration // until this host sees what another has written
	if p.storage != nil {
		checked, surveyed, kept, lag = p.storage, p.storage, p.storage, p.storage.Lag()
	}
	if p.storage != nil || ears != nil {
		song := &canary.Canary{Registry: p.client, Ears: ears, Patience: canaryPatience}
		if p.storage != nil {
			song.Storage = p.storage
		}
		bird = song
	}
	p.checker = check.New(p.client, checked, bird, p.listener != nil)
	p.surveyor = usage.NewSurveyor(p.client, surveyed, p.gauges, p.tracer)
	p.undo.Push("surveyor", func(context.Context) error { p.surveyor.Close(); return nil })
	p.engine = enforce.New(enforce.Options{
		Storage: kept, Remote: remote.New(p.client), Registry: p.client, Checker: p.checker, State: p.store, Metrics: p.gauges,
		Log: p.log, Tracer: p.tracer, NewID: newRunID, Now: clock.Now, Clock: p.clock.Check,
		MaxShare: cfg.GetSchedule().GetMaxRemovalPercent(),
		Settle:   cfg.GetSettle().AsDuration() + lag, Listens: p.listener != nil, Looked: makeRoom,
	})
	p.schedule = enforce.NewSchedule(p.engine, timetable)
	if p.storage != nil {
		p.schedule.LowDisk = enforce.LowDisk{Percent: cfg.GetSchedule().GetLowDiskPercent(), Disk: p.disk}
		if err := p.storage.Reserve(); err != nil {
			p.log.WarnContext(ctx, "cannot reserve disk space for runs on a full disk", "error", err)
		}
	}
}

// disk returns how many bytes the file system of the storage has, and how many are free.
func (p *parts) disk() (total, free int64, err error) {
	is, err := p.storage.Disk()
	return is.Total, is.Free, err
}

// reach is the registry's storage; nil when it is not said where that is.
func reach(ctx context.Context, cfg *configv1.RegistryConfig) (*storage.Storage, error) {
	root, file := cfg.GetStorageRoot(), cfg.GetStorageConfig()
	switch {
	case root != "" && file != "":
		return nil, fault.Invalid("registry.storage_config", file, "is set beside registry.storage_root", "leave one of them out")
	case root != "":
		return storage.New(root), nil
	case file != "":
		return driver.Open(ctx, file)
	}
	return nil, nil //nolint:nilnil // out of reach
}

// canaryPatience is how long a notification of the janitor's own push may take.
const canaryPatience = 10 * time.Second

// newRunID names a run so that names are in the order of time.
func newRunID() string {
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.NewString() // without its order
	}
	return id.String()
}

func (p *parts) close(ctx context.Context) error { return p.undo.Close(ctx) }

// openState opens what outlives the process, with the configured policy.
func (p *parts) openState(ctx context.Context, cfg *configv1.JanitorConfig, tel *telemetry.Telemetry) error {
	configured, err := policyOf(cfg)
	if err != nil {
		return err
	}
	dir, err := statedir.Open(cfg.GetStateDir(), "janitor", &p.undo)
	if err != nil {
		return err
	}
	if p.pages, err = pagetoken.OpenTokens(dir); err != nil {
		return err
	}
	if p.store, err = state.Open(ctx, filepath.Join(dir, "janitor.db")); err != nil {
		return err
	}
	p.undo.Push("state", func(context.Context) error { return p.store.Close() })
	last, err := p.store.Runs(ctx, 1, time.Time{}, "")
	if err != nil {
		return err
	}
	opts := clock.Options{StateDir: dir, Log: tel.Logger, Meter: tel.Meter}
	if len(last) > 0 {
		opts.Newest = last[0].Started
	}
	if p.clock, err = clock.NewGuard(opts); err != nil {
		return err
	}
	return p.store.Configure(ctx, configured, clock.Now())
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
	configured, err := wire.ReadPolicy(file, string(text))
	if err != nil {
		return policy.Policy{}, err
	}
	// The schedule asks nobody, so what is extreme has to be said by UpdatePolicy.
	resolved, err := policy.Resolve(configured)
	if err == nil {
		err = policy.Extreme(resolved)
	}
	return configured, err
}

// minSecret is the least that the secret of notifications may have, in bytes.
const minSecret = 16

// listen makes the listener for notifications, if they are configured.
func (p *parts) listen(cfg *configv1.JanitorConfig) (*notify.Listener, error) {
	file := cfg.GetNotifications().GetSecretFile()
	if file == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("notifications.secret_file: %w", err)
	}
	secret := strings.TrimSpace(string(raw))
	if len(secret) < minSecret {
		return nil, fault.Invalid("notifications.secret_file", file, fmt.Sprintf("holds a secret of %d bytes", len(secret)), fmt.Sprintf("write at least %d random bytes into it, for example with: openssl rand -hex 32", minSecret))
	}
	return notify.New(notify.Options{Store: p.store, Metrics: p.gauges, Log: p.log, Secret: secret, UserAgent: registry.UserAgent, Now: clock.Now}), nil
}
