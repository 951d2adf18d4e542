// Package cachelease holds leases on directories of BuildKit's type=local cache while
// a build uses them, so that the cache manager collects nothing under its hands.
//
// A lease helps, and is no condition of a build: when the cache manager does not
// answer, or does not keep the directory, the build goes on without one. What then
// keeps its cache is the grace that each directory has.
package cachelease

import (
	"cmp"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/renewal"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

const (
	// lasts is how long a lease lasts unless it is renewed: so long is what a build used
	// kept after its process was killed.
	lasts = time.Minute
	// renewEvery leaves time for two more tries.
	renewEvery = lasts / 4
	// callTimeout bounds each call.
	callTimeout = 5 * time.Second
	// defaultTag is BuildKit's.
	defaultTag = "latest"
)

// Holder is whose the leases are.
type Holder struct {
	Name    string // for people
	Project string // that the cache counts for; empty: not known
}

// Want is one use of a directory.
type Want struct {
	Directory string
	Tag       string // empty: "latest"
	Export    bool   // write to it; else read from it
}

// Leases are those of one build.
type Leases struct {
	api    cachemanagerv1.CacheManagerServiceClient
	log    *slog.Logger
	holder Holder
	uses   []*use // by the place of the want

	stop func() // renewing
}

// use is one want with its lease.
type use struct {
	Want
	lease  *cachemanagerv1.Lease // nil: none
	again  bool                  // without a lease: the cache manager keeps the directory, and one is acquired when it answers
	digest string                // of the lease that was acquired first
	leased bool                  // whether there was one at first
}

// Acquire takes the leases of a build and keeps them until Release. A lease that the cache manager
// does not know any more is acquired again, and so is one that it could not give at first. Why there
// is none, or one was lost, is logged.
func Acquire(ctx context.Context, api cachemanagerv1.CacheManagerServiceClient, holder Holder, wants []Want, log *slog.Logger) *Leases {
	l := &Leases{api: api, log: log, holder: holder}
	for _, want := range wants {
		u := &use{Want: want}
		l.acquire(ctx, u)
		u.digest, u.leased = u.lease.GetDigest(), u.lease != nil
		l.uses = append(l.uses, u)
	}
	l.stop = renewal.Keep(ctx, renewEvery, l.renew) // a build that is cancelled still reads until it has ended
	return l
}

// acquire acquires the lease of a use, for the manifest that an earlier one held.
func (l *Leases) acquire(ctx context.Context, u *use) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	mode := cachemanagerv1.LeaseMode_LEASE_MODE_IMPORT
	if u.Export {
		mode = cachemanagerv1.LeaseMode_LEASE_MODE_EXPORT
	}
	res, err := l.api.AcquireLease(call, &cachemanagerv1.AcquireLeaseRequest{
		Directory: filepath.Clean(u.Directory), Tag: cmp.Or(u.Tag, defaultTag), Mode: mode, Holder: l.holder.Name, Project: l.holder.Project,
		Ttl: durationpb.New(lasts), Digest: u.digest,
	})
	u.lease, u.again = res.GetLease(), false
	switch {
	case err == nil:
	case status.Code(err) == codes.NotFound:
		l.log.InfoContext(ctx, "no lease on a cache directory: the cache manager's configuration does not name it", "directory", u.Directory)
	default:
		u.again = true
		if ctx.Err() == nil {
			l.log.WarnContext(ctx, "no lease on a cache directory: its grace alone keeps what the build uses", "directory", u.Directory, "error", err)
		}
	}
}

// Digest is that of the manifest that a want is to import, all of which stays until
// Release. leased is false when there is no lease; then nothing is known. A lease with
// an empty digest says that there is nothing to import.
func (l *Leases) Digest(want int) (digest string, leased bool) {
	return l.uses[want].digest, l.uses[want].leased
}

// renew renews the leases, and acquires those again that are lost.
func (l *Leases) renew(ctx context.Context) {
	for _, u := range l.uses {
		switch {
		case u.lease != nil:
			l.renewOne(ctx, u)
		case u.again:
			l.acquire(ctx, u)
		}
	}
}

func (l *Leases) renewOne(ctx context.Context, u *use) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	_, err := l.api.RenewLease(call, &cachemanagerv1.RenewLeaseRequest{LeaseId: u.lease.GetId()})
	cancel()
	switch {
	case err == nil || ctx.Err() != nil:
	case status.Code(err) == codes.NotFound:
		l.log.WarnContext(ctx, "a lease on a cache directory was lost; it is acquired again", "directory", u.Directory, "error", err)
		l.acquire(ctx, u)
	default:
		l.log.WarnContext(ctx, "a lease on a cache directory could not be renewed", "directory", u.Directory, "error", err)
	}
}

// Release ends the leases, also when ctx has ended.
func (l *Leases) Release(ctx context.Context) {
	l.stop()
	for _, u := range l.uses {
		if u.lease == nil {
			continue
		}
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		_, err := l.api.ReleaseLease(call, &cachemanagerv1.ReleaseLeaseRequest{LeaseId: u.lease.GetId()})
		cancel()
		if err != nil {
			l.log.WarnContext(ctx, "a lease on a cache directory could not be released; it ends by itself", "directory", u.Directory, "error", err)
		}
	}
}

// IsCollision reports whether a solve failed only because another client wrote to the
// same cache directory at the same moment. BuildKit's client does not wait then, neither
// for the index (client/ociindex, Put) nor for a blob that both write, whose unfinished
// files the one that is first takes away (containerd's content store, which locks within
// a process only). To solve it again runs no step, and finds what the other has written.
func IsCollision(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return strings.Contains(text, "could not lock") && strings.Contains(text, "index.json.lock") ||
		strings.Contains(text, "/ingest/") && strings.Contains(text, "no such file or directory")
}
