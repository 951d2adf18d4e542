package cachelease

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

// manager is a cache manager that forgets leases, or does not answer.
type manager struct {
	cachemanagerv1.CacheManagerServiceClient // its other methods are not called

	away, unknown bool
	leases        map[string]*cachemanagerv1.AcquireLeaseRequest
	granted       int
	digest        string
}

func (m *manager) refuses() error {
	switch {
	case m.away:
		return status.Error(codes.Unavailable, "away")
	case m.unknown:
		return status.Error(codes.NotFound, "not configured")
	}
	return nil
}

func (m *manager) AcquireLease(_ context.Context, req *cachemanagerv1.AcquireLeaseRequest, _ ...grpc.CallOption) (*cachemanagerv1.AcquireLeaseResponse, error) {
	if err := m.refuses(); err != nil {
		return nil, err
	}
	m.granted++
	id := fmt.Sprint(m.granted)
	m.leases[id] = req
	return &cachemanagerv1.AcquireLeaseResponse{Lease: &cachemanagerv1.Lease{Id: id, Digest: m.digest}}, nil
}

func (m *manager) RenewLease(_ context.Context, req *cachemanagerv1.RenewLeaseRequest, _ ...grpc.CallOption) (*cachemanagerv1.RenewLeaseResponse, error) {
	if err := m.refuses(); err != nil {
		return nil, err
	}
	if m.leases[req.GetLeaseId()] == nil {
		return nil, status.Error(codes.NotFound, "expired")
	}
	return &cachemanagerv1.RenewLeaseResponse{}, nil
}

func (m *manager) ReleaseLease(_ context.Context, req *cachemanagerv1.ReleaseLeaseRequest, _ ...grpc.CallOption) (*cachemanagerv1.ReleaseLeaseResponse, error) {
	delete(m.leases, req.GetLeaseId())
	return &cachemanagerv1.ReleaseLeaseResponse{}, nil
}

var wants = []Want{{Directory: "/c", Tag: "a"}, {Directory: "/c", Tag: "a", Export: true}}

func TestRenew_AcquiresLostLeasesAgain(t *testing.T) {
	m := &manager{leases: map[string]*cachemanagerv1.AcquireLeaseRequest{}, digest: "sha256:old"}
	l := Acquire(t.Context(), m, Holder{Name: "build", Project: "web"}, wants, slog.New(slog.DiscardHandler))
	m.away = true
	l.renew(t.Context())
	m.away, m.digest = false, "sha256:new"
	clear(m.leases) // they expired meanwhile
	l.renew(t.Context())
	if len(m.leases) != 2 {
		t.Fatalf("%d leases are held", len(m.leases))
	}
	for _, req := range m.leases {
		if req.GetDigest() != "sha256:old" || req.GetProject() != "web" || req.GetHolder() != "build" || req.GetTag() != "a" {
			t.Errorf("%v", req)
		}
	}
	if digest, leased := l.Digest(0); digest != "sha256:old" || !leased {
		t.Errorf("the build is to import %q", digest)
	}
	l.Release(t.Context())
	if len(m.leases) != 0 {
		t.Errorf("%d leases are left", len(m.leases))
	}
}

func TestRenew_AcquiresWhenTheManagerComesBack(t *testing.T) {
	m := &manager{leases: map[string]*cachemanagerv1.AcquireLeaseRequest{}, away: true}
	l := Acquire(t.Context(), m, Holder{}, wants, slog.New(slog.DiscardHandler))
	defer l.Release(t.Context())
	if _, leased := l.Digest(0); leased {
		t.Error("leased by nobody")
	}
	m.away = false
	l.renew(t.Context())
	if len(m.leases) != 2 {
		t.Errorf("%d leases are held", len(m.leases))
	}
}

func TestRenew_LeavesAnUnknownDirectoryAlone(t *testing.T) {
	m := &manager{leases: map[string]*cachemanagerv1.AcquireLeaseRequest{}, unknown: true}
	l := Acquire(t.Context(), m, Holder{}, wants, slog.New(slog.DiscardHandler))
	defer l.Release(t.Context())
	m.unknown = false
	l.renew(t.Context())
	if m.granted != 0 {
		t.Error("it is asked for again and again")
	}
}
