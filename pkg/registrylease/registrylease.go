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
	api    janitorv1.JanitorServiceClient
	log    *slog.Logger
	build  string
	held   []*held // of the references that the janitor keeps
	missed func()
	stop   func()
}

// held is the lease on one reference.
type held struct {
	want  Want
	lease *janitorv1.Lease // nil: there is none now
	told  bool             // that there is none, and why
}

// Acquire takes the leases of a build and keeps them until Release; one that cannot be taken, or that
// was lost while the janitor was unreachable, is taken as soon as that is possible. Why there is none
// is logged, and missed is called; that the janitor does not keep the registry is no reason to.
func Acquire(ctx context.Context, api janitorv1.JanitorServiceClient, build string, wants []Want, log *slog.Logger, missed func()) *Leases {
	l := &Leases{api: api, log: log, build: build, missed: missed}
	for _, want := range wants {
		h := &held{want: want}
		if l.acquire(ctx, h) {
			l.held = append(l.held, h)
		}
	}
	l.stop = renewal.Keep(ctx, renewEvery, l.renew)
	return l
}

// acquire takes a lease. It reports whether the janitor keeps the registry of the reference, as far as
// it answers.
func (l *Leases) acquire(ctx context.Context, h *held) bool {
	mode := janitorv1.LeaseMode_LEASE_MODE_IMPORT
	if h.want.Export {
		mode = janitorv1.LeaseMode_LEASE_MODE_EXPORT
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := l.api.AcquireLease(call, &janitorv1.AcquireLeaseRequest{
		References: []string{h.want.Reference}, Mode: mode, Holder: "build " + l.build, Ttl: durationpb.New(lasts),
	})
	if err == nil {
		h.lease, h.told = res.GetLease(), false
		return true
	}
	if status.Code(err) == codes.InvalidArgument { // it is another registry's
		return false
	}
	if h.told {
		return true
	}
	h.told = true
	l.log.WarnContext(ctx, "no lease on a cache in the registry: the grace of the janitor's policy alone keeps what the build uses; it is tried again",
		"reference", h.want.Reference, "error", err)
	l.missed()
	return true
}

// renew renews the leases, and takes those again that there are none of.
func (l *Leases) renew(ctx context.Context) {
	for _, h := range l.held {
		if h.lease == nil {
			l.again(ctx, h)
			continue
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := l.api.RenewLease(call, &janitorv1.RenewLeaseRequest{LeaseId: h.lease.GetId()})
		cancel()
		switch {
		case err == nil || ctx.Err() != nil:
		case status.Code(err) == codes.NotFound: // it has expired while the janitor was unreachable
			h.lease = nil
			l.again(ctx, h)
		default:
			l.log.WarnContext(ctx, "a lease on a cache in the registry could not be renewed", "reference", h.want.Reference, "error", err)
		}
	}
}

// again takes a lease that there is none of.
func (l *Leases) again(ctx context.Context, h *held) {
	if l.acquire(ctx, h); h.lease != nil {
		l.log.InfoContext(ctx, "a cache in the registry is leased again", "reference", h.want.Reference)
	}
}

// Release ends the leases and tells of the uses, also when ctx has ended.
func (l *Leases) Release(ctx context.Context) {
	l.stop()
	ctx = context.WithoutCancel(ctx)
	var uses []*janitorv1.Use
	for _, h := range l.held {
		kind := janitorv1.UseKind_USE_KIND_IMPORT
		if h.want.Export {
			kind = janitorv1.UseKind_USE_KIND_EXPORT
		}
		uses = append(uses, &janitorv1.Use{Reference: h.want.Reference, Kind: kind, BuildId: l.build})
	}
	if len(uses) > 0 {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		if _, err := l.api.RecordUse(call, &janitorv1.RecordUseRequest{Uses: uses}); err != nil {
			l.log.WarnContext(ctx, "the janitor was not told of the caches that a build used", "error", err)
		}
		cancel()
	}
	for _, h := range l.held {
		if h.lease == nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		if _, err := l.api.ReleaseLease(call, &janitorv1.ReleaseLeaseRequest{LeaseId: h.lease.GetId()}); err != nil {
			l.log.WarnContext(ctx, "a lease on a cache in the registry could not be released; it ends by itself", "reference", h.want.Reference, "error", err)
		}
		cancel()
	}
}
