package registrylease_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/registrylease"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// janitor keeps leases by their references, and may be unreachable.
type janitor struct {
	janitorv1.JanitorServiceClient
	away    atomic.Bool
	mu      sync.Mutex // guards what follows
	n       int
	expires map[string]time.Time
	uses    int
}

func (j *janitor) err() error {
	if j.away.Load() {
		return status.Error(codes.Unavailable, "it is away")
	}
	return nil
}

func (j *janitor) leased() (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, at := range j.expires {
		if at.After(time.Now()) {
			n++
		}
	}
	return n
}

func (j *janitor) AcquireLease(_ context.Context, req *janitorv1.AcquireLeaseRequest, _ ...grpc.CallOption) (*janitorv1.AcquireLeaseResponse, error) {
	if req.GetReferences()[0] == "elsewhere/x" {
		return nil, status.Error(codes.InvalidArgument, "another registry")
	}
	if err := j.err(); err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.n++
	id := fmt.Sprint(j.n)
	j.expires[id] = time.Now().Add(req.GetTtl().AsDuration())
	return &janitorv1.AcquireLeaseResponse{Lease: &janitorv1.Lease{Id: id, References: req.GetReferences()}}, nil
}

func (j *janitor) RenewLease(_ context.Context, req *janitorv1.RenewLeaseRequest, _ ...grpc.CallOption) (*janitorv1.RenewLeaseResponse, error) {
	if err := j.err(); err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.expires[req.GetLeaseId()].After(time.Now()) {
		return nil, status.Error(codes.NotFound, "there is no lease")
	}
	j.expires[req.GetLeaseId()] = time.Now().Add(time.Minute)
	return &janitorv1.RenewLeaseResponse{}, nil
}

func (j *janitor) ReleaseLease(_ context.Context, req *janitorv1.ReleaseLeaseRequest, _ ...grpc.CallOption) (*janitorv1.ReleaseLeaseResponse, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.expires, req.GetLeaseId())
	return &janitorv1.ReleaseLeaseResponse{}, j.err()
}

func (j *janitor) RecordUse(_ context.Context, req *janitorv1.RecordUseRequest, _ ...grpc.CallOption) (*janitorv1.RecordUseResponse, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.uses = len(req.GetUses())
	return &janitorv1.RecordUseResponse{}, j.err()
}

// Leases that were lost while the janitor was unreachable, or that it could not give at first, are
// taken again when it answers; none is left when the build has ended.
func TestLeases_AreTakenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &janitor{expires: map[string]time.Time{}}
		j.away.Store(true)
		wants := []registrylease.Want{{Reference: "here/a"}, {Reference: "here/b", Export: true}, {Reference: "elsewhere/x"}}
		missed := 0
		l := registrylease.Acquire(t.Context(), j, "b", wants, slog.New(slog.DiscardHandler), func() { missed++ })
		if missed != 2 || j.leased() != 0 {
			t.Errorf("the janitor is away: %d missed, %d leased", missed, j.leased())
		}
		j.away.Store(false)
		time.Sleep(20 * time.Second)
		if j.leased() != 2 {
			t.Errorf("20 s after the janitor came: %d leased", j.leased())
		}
		time.Sleep(10 * time.Minute)
		if j.leased() != 2 {
			t.Errorf("ten minutes later: %d leased", j.leased())
		}
		j.away.Store(true)
		time.Sleep(5 * time.Minute)
		if j.leased() != 0 {
			t.Errorf("away again: %d leased", j.leased())
		}
		j.away.Store(false)
		time.Sleep(20 * time.Second)
		if j.leased() != 2 {
			t.Errorf("back again: %d leased", j.leased())
		}
		l.Release(t.Context())
		if missed != 2 {
			t.Errorf("%d missed", missed)
		}
		if j.leased() != 0 || j.uses != 2 {
			t.Errorf("after the end: %d leased, %d uses", j.leased(), j.uses)
		}
	})
}
