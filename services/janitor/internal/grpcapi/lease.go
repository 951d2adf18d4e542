package grpcapi

import (
	"cmp"
	"context"
	"fmt"
	"time"

	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/lease"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// defaultTTL is how long a lease lasts that names no time.
const defaultTTL = time.Minute

// AcquireLease implements the RPC.
func (s *Server) AcquireLease(ctx context.Context, req *janitorv1.AcquireLeaseRequest) (*janitorv1.AcquireLeaseResponse, error) {
	now := s.Now()
	l := lease.Lease{
		ID: s.NewID(), References: req.GetReferences(), Export: req.GetMode() == janitorv1.LeaseMode_LEASE_MODE_EXPORT, Holder: req.GetHolder(),
		Created: now, TTL: cmp.Or(req.GetTtl().AsDuration(), defaultTTL), RequestID: req.GetRequestId(),
	}
	l.Expires = now.Add(l.TTL)
	for i, text := range req.GetReferences() {
		ref, err := s.Names.Parse(fmt.Sprintf("references[%d]", i), text)
		if err != nil {
			return nil, err
		}
		l.Of = append(l.Of, ref)
	}
	l, err := s.State.AcquireLease(ctx, l)
	if err != nil {
		return nil, err
	}
	return &janitorv1.AcquireLeaseResponse{Lease: wire.LeaseProto(l)}, nil
}

// RenewLease implements the RPC.
func (s *Server) RenewLease(ctx context.Context, req *janitorv1.RenewLeaseRequest) (*janitorv1.RenewLeaseResponse, error) {
	l, err := s.State.RenewLease(ctx, req.GetLeaseId(), req.GetTtl().AsDuration(), s.Now())
	if err != nil {
		return nil, err
	}
	return &janitorv1.RenewLeaseResponse{Lease: wire.LeaseProto(l)}, nil
}

// ReleaseLease implements the RPC.
func (s *Server) ReleaseLease(ctx context.Context, req *janitorv1.ReleaseLeaseRequest) (*janitorv1.ReleaseLeaseResponse, error) {
	if err := s.State.ReleaseLease(ctx, req.GetLeaseId(), s.Now()); err != nil {
		return nil, err
	}
	return &janitorv1.ReleaseLeaseResponse{}, nil
}

// RecordUse implements the RPC.
func (s *Server) RecordUse(ctx context.Context, req *janitorv1.RecordUseRequest) (*janitorv1.RecordUseResponse, error) {
	now := s.Now()
	var uses []lastuse.Use
	for i, u := range req.GetUses() {
		ref, err := s.Names.Parse(fmt.Sprintf("uses[%d].reference", i), u.GetReference())
		if err != nil {
			return nil, err
		}
		at := now
		if u.GetTime() != nil && u.GetTime().AsTime().Before(now) {
			at = u.GetTime().AsTime()
		}
		push := u.GetKind() == janitorv1.UseKind_USE_KIND_PUSH || u.GetKind() == janitorv1.UseKind_USE_KIND_EXPORT
		use := lastuse.Use{Repository: ref.Repository, Name: ref.Name(), Push: push, At: at, Heard: now}
		uses = append(uses, use)
		if u.GetDigest() != "" && ref.Digest == "" {
			use.Name = lastuse.ByDigest(content.Digest(u.GetDigest()))
			uses = append(uses, use)
		}
	}
	news, err := s.State.RecordUses(ctx, uses)
	if err != nil {
		return nil, err
	}
	return &janitorv1.RecordUseResponse{Recorded: int32(min(news, len(req.GetUses())))}, nil //nolint:gosec // at most as many as asked
}
