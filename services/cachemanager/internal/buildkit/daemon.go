// Package buildkit is the cache manager's only way to buildkitd.
package buildkit

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/grpcerrors"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/pkg/buildkitd"
	"github.com/kilnbuild/kiln/pkg/clock"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/disk"
)

// Daemon is one buildkitd daemon.
type Daemon struct {
	name, address string
	root          string // directory of its state on this host; empty: not here
	client        *client.Client
	lock          lock
	clock         offset
	disk          *meter // nil: its root is not here
}

// Dial returns a daemon without waiting for the connection to it.
func Dial(ctx context.Context, cfg *configv1.DaemonConfig, tel *telemetry.Telemetry) (*Daemon, error) {
	bk, err := buildkitd.Client(ctx, buildkitd.Options{Daemon: cfg, Telemetry: tel})
	if err != nil {
		return nil, err
	}
	d := &Daemon{name: cfg.GetName(), address: cfg.GetAddress(), root: cfg.GetRoot(), client: bk, lock: lock{since: time.Now()}}
	if d.root != "" {
		d.disk = &meter{root: d.root}
	}
	return d, nil
}

// Name is the daemon's name.
func (d *Daemon) Name() string { return d.name }

// Close lets go of the daemon's lock and ends the connection.
func (d *Daemon) Close() error {
	d.lock.mu.Lock()
	d.letGo()
	d.lock.mu.Unlock()
	if d.disk != nil {
		d.disk.close()
	}
	return d.client.Close()
}

// Ping asks whether the daemon answers. It leaves no span: it is asked too often.
func (d *Daemon) Ping(ctx context.Context) error {
	_, err := d.client.Info(unsampled(ctx))
	if grpcerrors.Code(err) == codes.Unavailable {
		d.abandon()
	}
	return d.explain(ctx, err, "answer")
}

// Clock is the daemon's clock. It leaves no span, as Ping.
func (d *Daemon) Clock() clock.Source {
	asks := buildkitd.Clock(d.name, d.client)
	return clock.NewSource(asks.Name(), func(ctx context.Context) (time.Time, error) { return asks.Time(unsampled(ctx)) })
}

// Ref names the daemon's cache.
func (d *Daemon) Ref() cache.Ref { return cache.Ref{Daemon: d.name} }

// Records lists the daemon's cache as it is now. It asks twice: the listing that
// follows a use of a mutable record still shows the use before, and makes the
// next one right.
func (d *Daemon) Records(ctx context.Context) ([]cache.Record, error) {
	if _, err := d.list(ctx); err != nil {
		return nil, d.explain(ctx, err, "list its cache")
	}
	infos, err := d.list(ctx)
	if err != nil {
		return nil, d.explain(ctx, err, "list its cache")
	}
	records := make([]cache.Record, 0, len(infos))
	for _, info := range infos {
		records = append(records, recordOf(*info))
	}
	return records, nil
}

// workers are the ids of the daemon's workers.
func (d *Daemon) workers(ctx context.Context) (ids []string, err error) {
	workers, err := d.client.ListWorkers(ctx)
	for _, w := range workers {
		ids = append(ids, w.ID)
	}
	return ids, err
}

// justUsed is how long a record counts as in use after its last use: a run tells
// those that were used since its listing by their time, which needs some distance.
const justUsed = time.Second

// List lists the daemon's cache and its history as they are now. Times are the daemon's.
func (d *Daemon) List(ctx context.Context) (cache.Listing, error) {
	builds, err := d.history(ctx)
	if err != nil {
		return cache.Listing{}, d.explain(ctx, err, "list its history")
	}
	began := time.Now()
	records, err := d.Records(ctx)
	if err != nil {
		return cache.Listing{}, err
	}
	listing := cache.Listing{Cache: d.Ref(), Time: time.Now(), ClockOffset: builds.ahead}
	if listing.Workers, err = d.workers(ctx); err != nil {
		return cache.Listing{}, d.explain(ctx, err, "list its workers")
	}
	for i := range records {
		hold(&records[i], began.Add(builds.ahead), listing.Time.Add(builds.ahead), builds.running > 0)
	}
	listing.Records = append(records, builds.records...)
	listing.Unreadable, listing.Unread = builds.unreadable, builds.why
	if d.disk != nil {
		var bytes int64
		for _, r := range listing.Records {
			bytes += max(r.Bytes, 0)
		}
		listing.Uncounted = d.disk.uncounted(ctx, bytes)
	}
	listing.Disk, err = d.Disk()
	return listing, err
}

// hold notes who holds a record that was listed between two moments of the daemon's clock. One that was
// used a moment ago counts as in use.
func hold(r *cache.Record, began, ended time.Time, builds bool) {
	switch {
	case r.InUse && !builds:
		r.Hold = cache.HeldWithoutBuild
	case r.InUse, ended.Sub(r.LastUsed) >= justUsed:
	case r.Mutable && !r.LastUsed.Before(began):
		r.InUse, r.Hold = true, cache.HeldByListing
	default:
		r.InUse, r.Hold = true, cache.HeldByLastUse
	}
}

// Disk looks at the file system that the daemon's state is on; nil when that is
// not on this host.
func (d *Daemon) Disk() (*cache.Disk, error) {
	if d.root == "" {
		return nil, nil
	}
	on, err := disk.Of(d.root)
	if err != nil {
		return nil, fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("the disk of daemon %q cannot be looked at at %s", d.name, d.root),
			"set the daemon's root to the directory of its state on this host, or leave it out for a daemon on another one")
	}
	return on, nil
}

// recordOf translates a record of BuildKit's.
func recordOf(info client.UsageInfo) cache.Record {
	r := cache.Record{
		ID: info.ID, Type: cache.ParseType(string(info.RecordType)), Description: text(info.Description),
		Bytes: info.Size, Parents: info.Parents, Mutable: info.Mutable, InUse: info.InUse, Shared: info.Shared,
		Created: info.CreatedAt, UsageCount: info.UsageCount,
	}
	if info.LastUsedAt != nil {
		r.LastUsed = *info.LastUsedAt
	}
	return r
}

// text is a text of BuildKit's as Kiln's contracts take it: what is not UTF-8 is replaced. A
// description has the names of files and arguments, which may be any bytes.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// unsampled makes calls within ctx leave no spans, here and in the daemon, unless
// they are part of a trace that is recorded anyway.
func unsampled(ctx context.Context) context.Context {
	if trace.SpanContextFromContext(ctx).IsValid() {
		return ctx
	}
	return trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, Remote: true,
	}))
}
