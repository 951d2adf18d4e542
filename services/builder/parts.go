package builder

import (
	"context"
	"strings"

	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/gateway"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
	"github.com/kilnbuild/kiln/services/builder/internal/disk"
	"github.com/kilnbuild/kiln/services/builder/internal/pool"
	"github.com/kilnbuild/kiln/services/builder/internal/queue"
	"github.com/kilnbuild/kiln/services/builder/internal/quota"
)

// fleet gives the domain and the gateway their view of the pool.
type fleet struct {
	*pool.Pool[*buildkit.Daemon]
}

func (f fleet) Pick(ctx context.Context) (build.Daemon, error) { return f.Pool.Pick(ctx) }

// daemons gives the gateway its view of the pool.
type daemons struct{ fleet }

func (d daemons) Pick(ctx context.Context) (gateway.Daemon, error) { return d.Pool.Pick(ctx) }

func (d daemons) Current(ctx context.Context) (gateway.Daemon, error) { return d.Pool.Current(ctx) }

// turns gives the domain its view of the queue.
type turns struct{ *queue.Queue }

func (t turns) Enter(e build.Entry) (build.Turn, error) {
	ticket, err := t.Queue.Enter(queue.Entry(e))
	if err != nil {
		return nil, err
	}
	return turn{ticket}, nil
}

func (t turns) Readmit(e build.Entry) build.Turn {
	return turn{t.Queue.Readmit(queue.Entry(e))}
}

type turn struct{ *queue.Ticket }

func (t turn) Wait(ctx context.Context, notify func(build.Waiting)) error {
	return t.Ticket.Wait(ctx, func(p queue.Place) { notify(build.Waiting{Position: p.Position, Reason: p.Reason}) })
}

// matches reports whether a pattern, with "*" at its end as a wildcard, fits a name.
func matches(pattern, name string) bool {
	prefix, wildcard := strings.CutSuffix(pattern, "*")
	return pattern == name || wildcard && strings.HasPrefix(name, prefix)
}

// contextLimits are the bounds of the contexts in a directory.
func contextLimits(cfg *configv1.ContextsConfig, dir string) contextstore.Limits {
	return contextstore.Limits{
		FileBytes: disk.PerFile(dir),
		KeepAge:   cfg.GetKeepAge().AsDuration(), KeepBytes: int64(cfg.GetKeepBytes()), ProjectBytes: int64(cfg.GetProjectBytes()), MaxBytes: int64(cfg.GetMaxBytes()), //nolint:gosec // bounded by the contract
		MaxEntries: int(cfg.GetMaxEntries()), MaxRatio: int(cfg.GetMaxRatio()), MaxDepth: int(cfg.GetMaxDepth()),
		MaxPathBytes: int(cfg.GetMaxPathBytes()), FetchTimeout: cfg.GetFetchTimeout().AsDuration(),
	}
}

func artifactLimits(cfg *configv1.RetentionConfig) quota.Limits {
	return quota.Limits{All: int64(cfg.GetArtifactBytes()), Each: int64(cfg.GetProjectArtifactBytes())} //nolint:gosec // bounded by the contract
}

// newQueue makes the queue of a configuration with all its defaults.
func newQueue(cfg *configv1.BuilderConfig) *queue.Queue {
	slots := int(cfg.GetMaxRunningBuilds())
	if limit := int(cfg.GetDaemons()[0].GetMaxBuilds()); limit > 0 {
		slots = min(slots, limit)
	}
	admission := cfg.GetAdmission()
	return queue.New(queue.Options{
		Slots: slots, MaxQueued: int(admission.GetMaxQueued()), MaxQueuedBytes: int64(admission.GetMaxQueuedBytes()), //nolint:gosec // bounded by the contract
		Limits: func(tenant string) queue.Limits {
			limits := admission.GetDefaults()
			for _, named := range admission.GetTenants() {
				if matches(named.GetName(), tenant) {
					limits = named.GetLimits()
					break
				}
			}
			return queue.Limits{
				MaxRunning: int(limits.GetMaxRunning()), MaxQueued: int(limits.GetMaxQueued()), Weight: int(limits.GetWeight()),
				MaxQueuedBytes: int64(limits.GetMaxQueuedBytes()), //nolint:gosec // bounded by the contract
			}
		},
	})
}
