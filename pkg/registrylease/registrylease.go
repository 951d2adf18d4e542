// Package registrylease holds leases on the references of a build's registry caches, so
// that the janitor removes nothing under its hands, and tells of their use when it ends.
//
// A lease helps, and is no condition of a build: when the janitor does not answer, or
// does not keep the registry, the build goes on without one. What then keeps its cache is
// the grace of the janitor's policy.
package registrylease

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/renewal"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

const (
	// lasts is how long a lease lasts unless it is renewed: so long is what a build used
	// kept after its process was killed.
	lasts = time.Minute
	// renewEvery leaves time for two more tries.
	renewEvery = lasts / 4
	// callTimeout bounds each call.
	callTimeout = 5 * time.Second
)

// Want is one use of a reference, such as "localhost:5000/cache/web:main".
type Want struct {
	Reference string
	Export    bool // write to it; else read from it
}

// Leases are those of one build.
type Leases struct {
	api   janitorv1.JanitorServiceClient
	log   *slog.Logger
	build string
	wants []Want // those that the janitor keeps
	held  []*janitorv1.Lease
	stop  func()
}

// Acquire takes the leases of a build and keeps them until Release. Why there is none is
// logged, and missed is called; that the janitor does not keep the registry is no reason to.
func Acquire(ctx context.Context, api janitorv1.JanitorServiceClient, build string, wants []Want, log *slog.Logger, missed func()) *Leases {
	l := &Leases{api: api, log: log, build: build}
	for _, want := range wants {
		mode := janitorv1.LeaseMode_LEASE_MODE_IMPORT
		if want.Export {
			mode = janitorv1.LeaseMode_LEASE_MODE_EXPORT
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		res, err := api.AcquireLease(call, &janitorv1.AcquireLeaseRequest{
			References: []string{want.Reference}, Mode: mode, Holder: "build " + build, Ttl: durationpb.New(lasts),
		})
		cancel()
		switch {
		case err == nil:
			l.held, l.wants = append(l.held, res.GetLease()), append(l.wants, want)
		case status.Code(err) != codes.InvalidArgument: // else it is another registry's
			l.wants = append(l.wants, want)
			log.WarnContext(ctx, "no lease on a cache in the registry: the grace of the janitor's policy alone keeps what the build uses", "reference", want.Reference, "error", err)
			missed()
		}
	}
	l.stop = renewal.Keep(ctx, renewEvery, l.renew)
	return l
}

func (l *Leases) renew(ctx context.Context) {
	for _, lease := range l.held {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := l.api.RenewLease(call, &janitorv1.RenewLeaseRequest{LeaseId: lease.GetId()})
		cancel()
		if err != nil && ctx.Err() == nil {
			l.log.WarnContext(ctx, "a lease on a cache in the registry could not be renewed", "references", lease.GetReferences(), "error", err)
		}
	}
}

// Release ends the leases and tells of the uses, also when ctx has ended.
func (l *Leases) Release(ctx context.Context) {
	l.stop()
	ctx = context.WithoutCancel(ctx)
	var uses []*janitorv1.Use
	for _, want := range l.wants {
		kind := janitorv1.UseKind_USE_KIND_IMPORT
		if want.Export {
			kind = janitorv1.UseKind_USE_KIND_EXPORT
		}
		uses = append(uses, &janitorv1.Use{Reference: want.Reference, Kind: kind, BuildId: l.build})
	}
	if len(uses) > 0 {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		if _, err := l.api.RecordUse(call, &janitorv1.RecordUseRequest{Uses: uses}); err != nil {
			l.log.WarnContext(ctx, "the janitor was not told of the caches that a build used", "error", err)
		}
		cancel()
	}
	for _, lease := range l.held {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		if _, err := l.api.ReleaseLease(call, &janitorv1.ReleaseLeaseRequest{LeaseId: lease.GetId()}); err != nil {
			l.log.WarnContext(ctx, "a lease on a cache in the registry could not be released; it ends by itself", "references", lease.GetReferences(), "error", err)
		}
		cancel()
	}
}
