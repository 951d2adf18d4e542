// Package buildkit is the builder's only way to buildkitd: it solves builds,
// tells what happens in them in the domain's words, and, in its subpackage
// gateway, passes BuildKit's own API on.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/buildkitd"
	"github.com/kilnbuild/kiln/pkg/clock"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/artifacts"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
	"github.com/kilnbuild/kiln/services/builder/internal/hostdir"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
	"github.com/kilnbuild/kiln/services/builder/internal/pool"
	"github.com/kilnbuild/kiln/services/builder/internal/synckey"
)

// Options is what the solves of a daemon lean on.
type Options struct {
	Roots     hostdir.Roots  // directories of this host that a request may name
	Contexts  Contexts       // contexts that were uploaded, or are fetched
	Artifacts Artifacts      // where archives and trees are kept
	Guard     Guard          // which hosts sources may come from
	Policy    *policy.Policy // what a request may ask for
	SyncKeys  synckey.Keys   // under which the daemon keeps local files
	Removals  Removals       // records that the daemon must drop
	Steps     *mask.Steps    // of the builds of all callers, and their secrets
	// Logins are the users as whom the daemon pulls and pushes.
	Logins []*configv1.RegistryLogin
	// CacheManager gives leases on the directories of type=local caches; nil: there is
	// none.
	CacheManager cachemanagerv1.CacheManagerServiceClient
	// Janitor gives leases on caches in the registry; nil: there is none.
	Janitor janitorv1.JanitorServiceClient
	// NoLease counts builds that go on without a lease. nil: nobody counts.
	NoLease func()
	// CacheWritten notes that a build wrote the default scope of a cache repository.
	// nil: nobody does.
	CacheWritten func(repository, scope string)
}

// Contexts keeps contexts by the digest of their content. See package contextstore,
// which is it.
type Contexts interface {
	// Open opens a context of a project, which stays until it is closed, or is a NOT_FOUND fault.
	Open(project, digest string) (*contextstore.Tree, error)
	// Pin keeps a context until unpin is called, or is a NOT_FOUND fault.
	Pin(project, digest string) (unpin func(), err error)
	// Fetch gets the context in an archive for a project, bounded in time and size.
	Fetch(ctx context.Context, client *http.Client, project, url, digest string) (contextstore.Info, error)
}

// Artifacts keeps what builds give besides images in a registry.
type Artifacts interface {
	// Create begins an artifact of a project's build, which is there once it is
	// committed.
	Create(project, build, name string) (*artifacts.Writer, error)
}

// Daemon is one buildkitd daemon.
type Daemon struct {
	log           *slog.Logger
	name, address string
	plain         bool // what is sent to it can be read on the way
	opts          Options
	client        *client.Client
	conn          *grpc.ClientConn
	remover       *remover
	own           atomic.Pointer[ocispecs.Platform] // of its first worker, once it was asked
	workers       atomic.Pointer[[]string]          // their ids, once it was asked
	reading       *readers
	heard         *heard
	answer        atomic.Pointer[answer] // the last one to a check
}

// answer is what a daemon said of itself when it was asked.
type answer struct {
	info pool.Info
	at   time.Time
}

// busyFor is how long after its last answer to a check a daemon counts as busy that sends
// something, but no answer in time.
const busyFor = time.Minute

// Flow-control windows of the gateway's connections on both sides, in bytes. They
// are fixed, for gRPC measures its windows by a ping on nearly every message: in
// a gateway that is as many frames again as the messages.
const (
	StreamWindow     = 4 << 20
	ConnectionWindow = 16 << 20
)

// Dial returns a daemon without waiting for the connections to it. There are two, so that
// the messages of the gateway's clients do not delay the builder's own solves.
func Dial(ctx context.Context, cfg *configv1.DaemonConfig, options Options, tel *telemetry.Telemetry) (*Daemon, error) {
	address, err := buildkitd.ParseAddress(cfg.GetAddress())
	if err != nil {
		return nil, fmt.Errorf("daemon %q: %w", cfg.GetName(), err)
	}
	heard := newHeard()
	listen := []grpc.DialOption{grpc.WithStatsHandler(heard)}
	bk, err := buildkitd.Client(ctx, buildkitd.Options{Daemon: cfg, Telemetry: tel, GRPC: listen})
	if err != nil {
		return nil, err
	}
	conn, err := buildkitd.Conn(buildkitd.Options{
		Daemon: cfg, Telemetry: tel, StreamWindow: StreamWindow, ConnectionWindow: ConnectionWindow, GRPC: listen,
	})
	if err != nil {
		return nil, errors.Join(err, bk.Close())
	}
	plain := cfg.GetTls() == nil && !address.Local()
	return &Daemon{
		heard: heard, plain: plain, log: tel.Logger, name: cfg.GetName(), address: cfg.GetAddress(), opts: options, client: bk, conn: conn,
		reading: newReaders(maxReading, maxReadingEach),
		remover: newRemover(cfg.GetName(), bk.ControlClient(), options.Removals, tel.Logger),
	}, nil
}

// Name is the daemon's name.
func (d *Daemon) Name() string { return d.name }

// Address is where it listens.
func (d *Daemon) Address() string { return d.address }

// Conn is the connection for the gateway.
func (d *Daemon) Conn() *grpc.ClientConn { return d.conn }

// Clock is the daemon's clock.
func (d *Daemon) Clock() clock.Source { return buildkitd.Clock(d.name, d.client) }

// RemoveRecords has the daemon drop its records of builds with secrets, also those of
// earlier processes, until ctx ends.
func (d *Daemon) RemoveRecords(ctx context.Context) error { return d.remover.run(ctx) }

// Close ends both connections.
func (d *Daemon) Close() error { return errors.Join(d.client.Close(), d.conn.Close()) }

// Check asks the daemon for its workers. One that is too busy to answer within ctx, and
// answers other calls meanwhile, is as it was at its last answer.
func (d *Daemon) Check(ctx context.Context) (pool.Info, error) {
	begun := time.Now()
	workers, err := d.client.ListWorkers(ctx)
	if err != nil {
		last := d.answer.Load()
		if ctx.Err() != nil && last != nil && time.Since(last.at) < busyFor && d.heard.since(begun) {
			return last.info, nil
		}
		return pool.Info{}, err
	}
	if len(workers) == 0 {
		return pool.Info{}, errors.New("it has no worker")
	}
	if all := workers[0].Platforms; len(all) > 0 {
		d.own.Store(&all[0])
	}
	ids := make([]string, len(workers))
	for i, w := range workers {
		ids[i] = w.ID
	}
	d.workers.Store(&ids)
	info := pool.Info{Version: workers[0].BuildkitVersion.Version}
	for _, platform := range workers[0].Platforms {
		info.Platforms = append(info.Platforms, platforms.Format(platform))
	}
	d.answer.Store(&answer{info, time.Now()})
	return info, nil
}

// Workers are the ids of its workers: what it is for who knows it by another name. None
// until it was asked.
func (d *Daemon) Workers() []string {
	if ids := d.workers.Load(); ids != nil {
		return *ids
	}
	return nil
}

// ownPlatform is the daemon's own, and this host's until it was asked.
func (d *Daemon) ownPlatform() ocispecs.Platform {
	if own := d.own.Load(); own != nil {
		return *own
	}
	return platforms.DefaultSpec()
}
